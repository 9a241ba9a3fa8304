"""XNOR-Net (Rastegari et al. 2016, arXiv 1603.05279), in the form of its public code: without the K map.

Forward, per filter o: `W' = clamp(W - mean over the input channels, -1, 1)` is written back into the latent weight
before every training step; `W_b = alpha_o sign(W')`, `alpha_o = mean |W'|`. Activations: `sign(x)`.

Backward: activations, 1 where |x| < 1, else 0; weights, the product rule of `ScaledSign`.

Block order is BN, sign, binary convolution, pool (B-A-C-P, table 3b of the paper): batch norm is inserted where it is
missing and a ReLU in front of a sign is removed. Neither public code applies the run-time scale map K (equation 11
of the paper, which says that dropping it costs less than 1 %), so there is none here. Two more details of that code are
left out: it clamps the batch-norm weight to at least 0.01 (our thresholds take any sign), and it multiplies the weight
gradient by a constant per layer (which Adam, its optimizer, cancels).
"""

from torch import Tensor, nn

from bnnfx.nn import ScaledSign, SignActivation
from bnnfx.numerics.surrogates import open_clipped_identity
from bnnfx.schemes.scheme import Scheme, register_scheme


class CentredScaledSign(ScaledSign):
    """`ScaledSign` of weights that are centred over the input channels and clamped, in the latent weight itself.

    Source: XNOR-Net's public code; centring is per kernel position.
    """

    projects = True
    homogeneous = False  # the clamp to [-1, 1] is not

    def prepare(self, weight: Tensor) -> Tensor:
        """`clamp(W - mean over axis 1, -1, 1)`, `[O, I, ...]` to the same shape."""
        return (weight - weight.mean(dim=1, keepdim=True)).clamp(-1, 1)


def _refuses(layer: nn.Module) -> str | None:
    weight = layer.weight
    if isinstance(weight, Tensor) and weight.shape[1] == 1:
        return "each filter reads one input channel, and centring over the input channels would leave zeros"
    return None


XNOR = register_scheme(
    Scheme(
        name="xnor",
        title="XNOR-Net: sign activations, alpha * sign(W) weights",
        source="Rastegari et al. 2016, arXiv 1603.05279",
        activation=lambda options: SignActivation(open_clipped_identity),
        weight=lambda layer, options: CentredScaledSign(),
        refuses=_refuses,
    )
)
