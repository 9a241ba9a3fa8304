"""RBNN, Rotated Binary Neural Network (Lin et al. 2020, arXiv 2009.13055), as in the authors' code.

Weights, per layer with fan-in N = a * b: each filter is centred and divided by its standard deviation (w2), rotated
(`V = R1^T X R2`), and moved towards the rotated copy by a learned share: `w3 = w2 + A (V - w2)`, `A = |sin beta|`.
Signs of w3, times a learned scale alpha per filter. R1 and R2 are recomputed between epochs from the weights alone.

Backward: weights, `max(0, k (sqrt(2) t - t^2 |w3|))`; activations, the same with k = 1 and `max(t, 1)`; t grows from
0.01 to 10 over the training and `k = max(1/t, 1)`, see `bnnfx.numerics.surrogates`.

Zero-gradient trap. The authors' code detaches V and starts at beta = pi/2, where A = 1: the latent weight then gets
exactly no gradient until weight decay has moved beta, thousands of steps later. That suits 1000 epochs and freezes a
short run. So beta starts below pi/2 here (option `initial_share`, the A at the start); `initial_share=1.0` with
`weight_gradient="code"` is the reference, `weight_gradient="full"` lets the gradient through the rotation,
`(1 - A) G + A R1 G R2^T`, and is free of the trap for every A.

Centring (option `centre`, off by default). The authors subtract from every activation map its mean over (C, H, W)
before the sign and divide by its standard deviation. The mean changes the bits and has to be computed at run time,
where it keeps everything behind it from folding into integers; without it a layer folds like any other. `centre=True`
is the reference.
"""

import math
import warnings

import torch
from torch import Tensor, nn

from bnnfx.nn import ActivationBinarizer, WeightBinarizer
from bnnfx.nn.sign import sign
from bnnfx.nn.weight import Rotation
from bnnfx.numerics.rotation import factor_fan_in, random_orthogonal, rotate, standardize, update_rotation
from bnnfx.numerics.surrogates import annealing, training_aware
from bnnfx.schemes.scheme import Options, Scheme, register_scheme


class RotatedSign(WeightBinarizer):
    """The weight path of RBNN.

    Parameters `alpha` and `beta` `[O]`; buffers `r1` `[a, a]`, `r2` `[b, b]`, and `t`, `k` of the surrogate.

    Args:
        weight: the float weight `[O, ...]` that it will binarize; gives the fan-in and the initial scale.
        initial_share: A = |sin beta| at the start, in (0, 1].
        weight_gradient: `"code"` (rotated copy detached) or `"full"`.

    Source: RBNN (arXiv 2009.13055) and the authors' code.
    """

    r1: Tensor
    r2: Tensor
    t: Tensor
    k: Tensor

    def __init__(self, weight: Tensor, initial_share: float = 0.7, weight_gradient: str = "code") -> None:
        super().__init__()
        if not 0 < initial_share <= 1:
            raise ValueError(f"initial_share is in (0, 1]; got {initial_share}.")
        if weight_gradient not in ("code", "full"):
            raise ValueError(f"weight_gradient is 'code' or 'full'; got {weight_gradient!r}.")
        self.weight_gradient = weight_gradient
        flat = weight.detach().flatten(1)
        a, b = factor_fan_in(flat.shape[1])
        if a == 1 and b > 3:
            warnings.warn(
                f"A fan-in of {b} is prime: its rotation is one {b} x {b} matrix instead of two small ones. It works, "
                "with more memory and slower updates; another channel count avoids it.",
                stacklevel=2,
            )
        self.alpha = nn.Parameter(flat.abs().mean(dim=1))
        self.beta = nn.Parameter(torch.full_like(flat[:, 0], math.asin(initial_share)))
        self.register_buffer("r1", random_orthogonal(a).to(flat))
        self.register_buffer("r2", random_orthogonal(b).to(flat))
        t, k = annealing(0.0)
        self.register_buffer("t", torch.tensor(t, device=flat.device))
        self.register_buffer("k", torch.tensor(k, device=flat.device))

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Signs of the adjusted rotated weight, shaped as `weight` `[O, ...]`, and alpha `[O]`."""
        w3 = self._filters(weight)[2]
        return sign(w3, lambda w: training_aware(w, self.t, self.k)).view(weight.shape), self.alpha

    def rotation(self, weight: Tensor) -> Rotation:
        """The standardized filters w2, their rotated copy V, and w3, whose signs are the bits."""
        w2, rotated, w3 = self._filters(weight)

        def at_random() -> Tensor:
            return rotate(w2, *(random_orthogonal(len(r)).to(w2) for r in (self.r1, self.r2)))

        return Rotation(w2, rotated, w3, at_random)

    def _filters(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w2 = standardize(weight)
        r1, r2, beta = (x.to(w2) for x in (self.r1, self.r2, self.beta))
        rotated = rotate(w2 if self.weight_gradient == "full" else w2.detach(), r1, r2)
        share = beta.sin().abs().unsqueeze(1)
        return w2, rotated, w2 + share * (rotated - w2)

    def on_epoch(self, progress: float) -> None:
        """Set t and k of the surrogate."""
        t, k = annealing(progress)
        self.t.fill_(t)
        self.k.fill_(k)

    def between_epochs(self, weight: Tensor) -> None:
        """Three cycles of the closed-form updates, from the current weight; R1 and R2 are written in place."""
        filters = standardize(weight.double())
        r1, r2 = update_rotation(filters, self.r1.double(), self.r2.double())
        self.r1.copy_(r1)
        self.r2.copy_(r2)


class TrainingAwareSign(ActivationBinarizer):
    """The activation path of RBNN: sign(x) with the training-aware pseudo-gradient, k = 1 and `max(t, 1)`.

    Args:
        centre: subtract the mean over all axes but the batch; the pseudo-gradient is that of the standardized value.

    Source: RBNN (arXiv 2009.13055) and the authors' code, which always centres.
    """

    t: Tensor

    def __init__(self, centre: bool = False) -> None:
        super().__init__()
        self.centre = centre
        self.pointwise = not centre
        self.register_buffer("t", torch.tensor(1.0))

    def binarize(self, x: Tensor) -> Tensor:
        """Signs of `x`, or of `x` minus its mean per sample."""
        if not self.centre:
            return sign(x, self._surrogate)
        centred = x - self.threshold(x, x.ndim)
        axes = tuple(range(1, x.ndim))
        # a constant map has a zero spread, whose gradient is infinite: shift its variance before the root
        variance = centred.pow(2).sum(axes, keepdim=True) / max(x[0].numel() - 1, 1)
        return sign(centred / torch.where(variance > 0, variance, 1.0).sqrt(), self._surrogate, decision=centred)

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        """0, or the mean of each sample, `[N, 1, ...]`."""
        if not self.centre:
            return super().threshold(x, rank)
        return x.mean(dim=tuple(range(1, rank)), keepdim=True)

    def on_epoch(self, progress: float) -> None:
        """Set t of the surrogate."""
        self.t.fill_(max(annealing(progress)[0], 1.0))

    def _surrogate(self, x: Tensor) -> Tensor:
        return training_aware(x, self.t, 1.0)

    def extra_repr(self) -> str:
        """Whether it centres."""
        return f"centre={self.centre}"


def _weight(layer: nn.Module, options: Options) -> WeightBinarizer:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return RotatedSign(weight, options["initial_share"], options["weight_gradient"])


def _refuses(layer: nn.Module) -> str | None:
    weight = layer.weight
    if isinstance(weight, Tensor) and weight[0].numel() == 1:
        return "its filters have a single weight, which centring would turn to zero"
    return None


RBNN = register_scheme(
    Scheme(
        name="rbnn",
        title="RBNN: rotated weights, training-aware surrogate",
        source="Lin et al. 2020, arXiv 2009.13055",
        activation=lambda options: TrainingAwareSign(options["centre"]),
        weight=_weight,
        options={"centre": False, "initial_share": 0.7, "weight_gradient": "code"},
        nonlinearity=nn.Hardtanh,
        network_options={"shortcut_per_convolution": True},
        refuses=_refuses,
    )
)
