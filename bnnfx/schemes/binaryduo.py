"""BinaryDuo (Kim et al. 2020, arXiv 2002.06517), first stage: the coupled network with ternary activations.

Activations: `t(x) = (H(x - 0.25) + H(x - 0.75)) / 2`, one of 0, 1/2, 1; backward 1 where 0 < x < 1, else 0. Weights:
`s sign(W)` with one scale per layer, `s = mean |W|` over the whole tensor; backward the gradient of `s sign(W)` goes
to W unchanged. Option `weight_bits=32` leaves the weights float, as the authors' VGG-7 for CIFAR-10 does.

`bnnfx.split` makes two binary activations of each ternary one, which doubles the input channels of the layer behind it.
So that the split network is no larger than the binary one it is compared with, layers are narrowed here: option
`width_factor`, 1/sqrt(2) by default and 1.0 to keep all widths, or `parity="exact"`, which searches the widths instead;
`Config.widths` sets single ones. See `bnnfx.passes.convert.couple_widths`. Published widths are partly picked by hand
(VGG-7 has 336 where the factor gives 362, AlexNet 0.59 to 0.92 of its baseline, ResNet-18 keeps its 64 channels and
ends in 512).

Graph: a ReLU that reaches a ternary activation is dropped, because the clip below 0 is inside; in a residual network
it is dropped from the stream too, as in the published networks. The last ReLU, which feeds float layers only, stays.
The published ResNet also keeps the ReLU of its stem, with a second batch norm behind the pool; here the stem is like
the rest. An inserted batch norm stands directly behind its layer, in front of a max-pool, where the authors' VGG-7 and
AlexNet have it behind. Option `shortcut_per_convolution=True` is the published variant "+sc".
"""

import math

from torch import Tensor, nn

from bnnfx.nn import TernaryActivation, WeightBinarizer
from bnnfx.nn.sign import sign
from bnnfx.schemes.scheme import Options, Scheme, register_scheme


class LayerScaledSign(WeightBinarizer):
    """`s * sign(W)` with one scale per layer, `s = mean |W|`, and the identity as its gradient.

    The layer scales its integers by s after the convolution, so the gradient that arrives at the signs already holds
    s; it is divided out again. The scale itself is constant in backward.

    Source: BinaryDuo's Torch code (arXiv 2002.06517); the same as DoReFa-Net's 1-bit weights.

    >>> import torch
    >>> signs, scale = LayerScaledSign()(torch.tensor([[0.5, -1.5], [0.0, 2.0]]))
    >>> signs.tolist(), scale
    ([[1.0, -1.0], [1.0, 1.0]], tensor([1., 1.]))
    """

    homogeneous = True

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Signs of `weight` `[O, ...]`, and its mean magnitude, the same for all `[O]`."""
        scale = weight.detach().abs().mean()
        return sign(weight, lambda w: (1 / scale.clamp_min(1e-12)).expand_as(w)), scale.repeat(weight.shape[0])


def _weight(layer: nn.Module, options: Options) -> WeightBinarizer | None:
    bits = options["weight_bits"]
    if bits not in (1, 32):
        raise ValueError(f"weight_bits is 1 or 32; got {bits!r}.")
    return LayerScaledSign() if bits == 1 else None


BINARYDUO = register_scheme(
    Scheme(
        name="binaryduo",
        title="BinaryDuo: ternary activations, to be split into two binary ones",
        source="Kim et al. 2020, arXiv 2002.06517",
        activation=lambda options: TernaryActivation(),
        weight=_weight,
        options={"weight_bits": 1},
        network_options={"shortcut_per_convolution": False, "width_factor": 1 / math.sqrt(2), "parity": "factor"},
    )
)
