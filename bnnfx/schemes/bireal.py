"""Bi-Real Net (Liu et al. 2018, arXiv 1808.00278).

Forward: activations `sign(x)`; weights `alpha_o sign(W)` with `alpha_o = mean |W|` per filter, which backward holds
constant.

Backward: activations, `max(0, 2 - 2|x|)` (equation 3); weights, by option `weight_gradient`:
`"code"` (default) passes the gradient of the scaled weight where |W| <= 1, without alpha, as the authors' PyTorch
code does; `"paper"` multiplies it by alpha (equation 7).

Graph: one shortcut per convolution, no ReLU anywhere. The authors' network has `AvgPool2d(2)` in front of its 1x1
shortcut convolutions; a block converted here keeps the shortcut layers that it came with.
"""

from torch import Tensor, nn

from bnnfx.nn import SignActivation, WeightBinarizer
from bnnfx.nn.sign import sign
from bnnfx.numerics.surrogates import approx_sign, clipped_identity
from bnnfx.schemes.scheme import Options, Scheme, register_scheme


class MagnitudeAwareSign(WeightBinarizer):
    """`alpha * sign(W)` with a constant alpha, the mean magnitude of each filter.

    The layer scales its integers by alpha after the convolution, so the gradient that arrives at the signs already
    holds alpha: `"code"` divides it out again.

    Args:
        weight_gradient: `"code"` or `"paper"`, see the module.

    Source: Bi-Real Net (arXiv 1808.00278), equation 7, and the authors' PyTorch code.
    """

    def __init__(self, weight_gradient: str = "code") -> None:
        super().__init__()
        if weight_gradient not in ("code", "paper"):
            raise ValueError(f"weight_gradient is 'code' or 'paper'; got {weight_gradient!r}.")
        self.weight_gradient = weight_gradient

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Signs of `weight` `[O, ...]` and the mean of its magnitudes `[O]`."""
        alpha = weight.detach().abs().flatten(1).mean(dim=1)
        if self.weight_gradient == "paper":
            return sign(weight, clipped_identity), alpha
        column = alpha.clamp_min(1e-12).view(-1, *(1,) * (weight.ndim - 1))
        return sign(weight, lambda w: clipped_identity(w) / column), alpha


def _weight(layer: nn.Module, options: Options) -> WeightBinarizer:
    return MagnitudeAwareSign(options["weight_gradient"])


BIREAL = register_scheme(
    Scheme(
        name="bireal",
        title="Bi-Real Net: ApproxSign, a shortcut per convolution",
        source="Liu et al. 2018, arXiv 1808.00278",
        activation=lambda options: SignActivation(approx_sign),
        weight=_weight,
        options={"weight_gradient": "code"},
        network_options={"shortcut_per_convolution": True},
    )
)
