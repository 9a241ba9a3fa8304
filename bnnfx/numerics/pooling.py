"""Max-pooling of packed bits: an OR per channel, or an AND where the mask says so."""

import numpy as np
import numpy.typing as npt

from bnnfx.numerics.convolution import Geometry


def max_pool2d(
    x: npt.NDArray[np.uint8],
    and_mask: npt.NDArray[np.uint8],
    kernel: tuple[int, int],
    geometry: Geometry,
    ceil_mode: bool = False,
) -> npt.NDArray[np.uint8]:
    """OR the bits of each window; channels whose bit of `and_mask` is 1 are ANDed instead.

    A bit that a decreasing function of the pooled value decides is the AND of the bits before the pool, and
    `AND(b) = NOT OR(NOT b)`: the mask is xored in before and after. Padding never wins a maximum, so it adds no bit.

    Args:
        x: packed bits `uint8[N, H, W, B]`.
        and_mask: packed bits `uint8[B]`.
        kernel: window as (rows, columns).
        geometry: stride, padding, dilation.
        ceil_mode: as in `torch.nn.MaxPool2d`.

    Returns:
        `uint8[N, OH, OW, B]`.
    """
    rows, columns = geometry.output_size(x.shape[1], x.shape[2], kernel, ceil_mode)
    (ph, pw), (sh, sw), (dh, dw) = geometry.padding, geometry.stride, geometry.dilation
    # ceil_mode windows may reach past the lower and right padding: pad as far as the last window goes
    reach = [
        (n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip((rows, columns), (sh, sw), (dh, dw), kernel, strict=True)
    ]
    below = [max(0, r - size - p) for r, size, p in zip(reach, x.shape[1:3], (ph, pw), strict=True)]
    padded = np.pad(x ^ and_mask, [(0, 0), (ph, below[0]), (pw, below[1]), (0, 0)])
    out = np.zeros((x.shape[0], rows, columns, x.shape[3]), np.uint8)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            out |= padded[:, i * dh :: sh, j * dw :: sw][:, :rows, :columns]
    return out ^ and_mask
