"""RBNN's bi-rotation: two small orthogonal matrices that turn every filter of a layer towards its binary vertex.

A filter of fan-in N is reshaped row by row to X (a x b) with a * b = N; rotating is `V = R1^T X R2`, which equals
`(R1 kron R2)^T vec(X)` for the row-major vec. Source: RBNN (arXiv 2009.13055), formulas as in the
authors' code.
"""

import math

import torch
from torch import Tensor


def factor_fan_in(fan_in: int) -> tuple[int, int]:
    """The pair (a, b) with a * b = fan_in and a the largest divisor not above sqrt(fan_in).

    >>> factor_fan_in(288), factor_fan_in(7)
    ((16, 18), (1, 7))
    """
    a = math.isqrt(fan_in)
    while fan_in % a:
        a -= 1
    return a, fan_in // a


def random_orthogonal(size: int) -> Tensor:
    """A Haar-distributed orthogonal matrix `float32[size, size]`, from torch's random state.

    Source: QR of a Gaussian matrix, with the signs of R's diagonal moved into Q (Mezzadri, math-ph/0609050).
    """
    q, r = torch.linalg.qr(torch.randn(size, size))
    rotation: Tensor = q * torch.where(r.diagonal() >= 0, 1.0, -1.0)
    return rotation


def standardize(weight: Tensor) -> Tensor:
    """Each filter minus its mean, divided by its unbiased standard deviation: `float[O, ...]` to `float[O, N]`.

    A constant filter has no spread to divide by and is only centred.
    """
    flat = weight.flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    if flat.shape[1] == 1:
        return centred
    # a constant filter has a spread of 0, whose root has an infinite gradient, or of the rounding of its mean
    variance = centred.pow(2).sum(dim=1, keepdim=True) / (flat.shape[1] - 1)
    constant = (flat == flat[:, :1]).all(dim=1, keepdim=True) | (variance == 0)
    return centred / torch.where(constant, 1.0, variance).sqrt()


def rotate(filters: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    """Rotate filters `float[O, N]` by R1 `[a, a]` and R2 `[b, b]`: each X becomes R1^T X R2. Returns `[O, N]`."""
    x = filters.reshape(-1, r1.shape[0], r2.shape[0])
    return (r1.T @ x @ r2).reshape(filters.shape)


def alignment(filters: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    """The objective: sum over filters of `<sign(V), V>`, the largest reachable `tr(B^T R1^T X R2)`. A scalar."""
    return rotate(filters, r1, r2).abs().sum()


def update_rotation(filters: Tensor, r1: Tensor, r2: Tensor, cycles: int = 3) -> tuple[Tensor, Tensor]:
    """Alternate the three closed-form maximisers of `sum tr(B^T R1^T X R2)`; each step cannot lower it.

    1. `B = sign(R1^T X R2)`
    2. `D1 = sum B R2^T X^T = U1 S1 V1^T`, `R1 = V1 U1^T`
    3. `D2 = sum X^T R1 B = U2 S2 V2^T` with the new R1, `R2 = U2 V2^T`

    Args:
        filters: standardized filters `float[O, N]`.
        r1: orthogonal `float[a, a]`.
        r2: orthogonal `float[b, b]`.
        cycles: how often the three are repeated; the authors find that three suffice.

    Returns:
        The new (R1, R2).

    Source: RBNN (arXiv 2009.13055), as in the authors' code.
    """
    x = filters.reshape(-1, r1.shape[0], r2.shape[0])
    for _ in range(cycles):
        b = torch.where(r1.T @ x @ r2 >= 0, 1.0, -1.0).to(x.dtype)
        r1 = nearest_rotation((b @ r2.T @ x.mT).sum(dim=0)).T
        r2 = nearest_rotation((x.mT @ r1 @ b).sum(dim=0))
    return r1, r2


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The orthogonal Q that maximises `tr(Q^T matrix)`: `U V^T` of its singular value decomposition."""
    u, _, vh = torch.linalg.svd(matrix)
    rotation: Tensor = u @ vh
    return rotation
