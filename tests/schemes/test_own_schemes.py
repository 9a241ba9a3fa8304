"""Schemes that another package could bring: lowered exactly, or refused for a reason that is true."""

import re
from collections.abc import Callable

import pytest
import torch
from helpers.models import Chain, Residual
from torch import Tensor, nn

import bnnfx
from bnnfx import Config, ConversionError, StageError
from bnnfx.nn import ActivationBinarizer, ScaledSign, SignActivation, WeightBinarizer
from bnnfx.nn.comparison_probe import comparison_fault
from bnnfx.nn.sign import sign, steps
from bnnfx.numerics.surrogates import approx_sign, clipped_identity
from bnnfx.schemes import Scheme
from bnnfx.schemes.scheme import SCHEMES

ALL = Config(keep_float=())


@pytest.fixture
def use(monkeypatch) -> Callable[..., str]:
    """Register a scheme of these binarizers, for the test; returns its name."""
    monkeypatch.setattr(SCHEMES, "_things", dict(SCHEMES.known()))

    def register(
        weight: Callable[[], WeightBinarizer] = ScaledSign,
        activation: Callable[[], ActivationBinarizer] = lambda: SignActivation(approx_sign),
    ) -> str:
        bnnfx.register_scheme(
            Scheme("own", "One of mine", "here", lambda options: activation(), lambda layer, options: weight())
        )
        return "own"

    return register


def trained(scheme: str, model: nn.Module, config: Config = ALL) -> tuple[torch.fx.GraphModule, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    bnn, x = bnnfx.convert(model, scheme, config=config), model.inputs()
    optimizer = torch.optim.SGD(bnn.parameters(), 0.05)
    for _ in bnnfx.Schedule(bnn, 2):
        optimizer.zero_grad()
        bnn(*x).square().sum().backward()
        optimizer.step()
    return bnn.eval(), x


class Weights(ScaledSign):
    """The signs times what `factor` says of the weight."""

    def __init__(self, factor: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        signs, scale = super().forward(weight)
        return signs * self.factor(weight), scale


OTHER_VALUES = {
    "zeros": (lambda w: (w.abs() > 0.7 * w.abs().mean()).to(w), "gives 0 for"),
    "halves": (lambda w: torch.full_like(w, 0.5), "gives -0.5, 0.5 for 576 of 576"),
    "one of them": (lambda w: 1 + (torch.arange(w.numel()).view_as(w) == 5).to(w), "2 for 1 of 576"),
    "a rounded one": (lambda w: (w + (1 - w)).detach(), "(0.99999994|1.00000012)"),
    "a scale inside": (lambda w: w.detach().abs(), "for 576 of 576 weights"),
    "not a number": (lambda w: torch.where(w > 0, torch.nan, 1.0), "gives nan"),
}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_weights_that_no_bit_stands_for(use, name):
    factor, said = OTHER_VALUES[name]
    bnn = bnnfx.convert(Chain(), use(weight=lambda: Weights(factor)), config=ALL).eval()
    with pytest.raises(
        ConversionError, match=f"'conv1': its weight binarizer, Weights, .*{said}.*-1 or 1; let its forward"
    ):
        bnnfx.lower(bnn, Chain().inputs())


def test_remedy_of_weights(use, tmp_path):
    """The factor as the scale: lowered, and equal."""

    class Halves(ScaledSign):
        def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
            signs, scale = super().forward(weight)
            return signs, scale * 0.5

    bnn, x = trained(use(weight=Halves), Residual(downsample=True))
    packed = bnnfx.lower(bnn, x)
    assert bnnfx.verify(bnn, packed, x)
    assert bnnfx.verify(packed, bnnfx.export_onnx(packed, tmp_path / "model.onnx"), x)


class Activation(ActivationBinarizer):
    """Its values are those of a function of x, whatever its threshold says."""

    def __init__(self, values: Callable[[Tensor], Tensor], levels=(-1.0, 1.0), pointwise=True, threshold=0.0) -> None:
        super().__init__()
        self.values, self.levels, self.pointwise, self.at = values, levels, pointwise, threshold

    def binarize(self, x: Tensor) -> Tensor:
        return self.values(x)

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        return torch.full((1,) * rank, self.at)


def signs(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


OTHER_BITS = {
    "0 at 0": (Activation(torch.sign), "gives -?(0|nan) for -?(0|nan), where"),
    "-1 at 0": (Activation(lambda x: torch.where(x > 0, 1.0, -1.0)), "gives -1 for -?0, where .* gives 1"),
    "+1 at not a number": (Activation(lambda x: torch.where(x < 0, -1.0, 1.0)), "gives 1 for nan, where .* gives -1"),
    "another threshold": (Activation(signs, threshold=0.3), ".* its threshold, 0.300000012, gives -1"),
    "hardly another one": (Activation(signs, threshold=1e-30), ".* its threshold, 1e-30, gives -1"),
    "halves": (Activation(lambda x: signs(x) / 2), "gives -?0.5 for"),
    "levels the other way": (Activation(lambda x: -signs(x)), "gives -?1 for"),
    "levels that it has not": (Activation(signs, levels=(0.0, 1.0)), "gives -1 for .* gives 0"),
    "rounded": (Activation(lambda x: x + (signs(x) - x)), "gives"),
    "clipped, not binarized": (Activation(lambda x: x.clamp(-1, 1)), "gives"),
    "pointwise, it says": (Activation(lambda x: signs(x - x.mean(0, keepdim=True))), "gives"),
    "another mean": (Activation(lambda x: signs(x - x.mean()), pointwise=False), "gives"),
    "another shape": (Activation(lambda x: signs(x).mean(1, keepdim=True)), r"gives \[86, 1, 4, 4\] for values"),
}


@pytest.mark.parametrize("name", OTHER_BITS)
def test_bits_that_no_threshold_gives(use, name):
    activation, said = OTHER_BITS[name]
    fault = comparison_fault(activation, torch.Size((1, 3, 8, 8)))
    assert fault is not None and re.search(said, fault.reason)
    if "shape" in name:
        return  # nothing but an operator that broadcasts can follow it
    bnn = bnnfx.convert(Chain(), use(activation=lambda: activation), config=ALL).eval()
    with pytest.raises(
        ConversionError, match=f"'conv1': its activation binarizer, Activation, {said}.*; let binarize give exactly"
    ):
        bnnfx.lower(bnn, Chain().inputs())


@pytest.mark.parametrize("name", ["-1 at 0", "halves"])
def test_bits_in_front_of_float_layers(use, name):
    """They are compared as well, so the same is refused."""
    activation, said = OTHER_BITS[name]
    scheme = use(weight=lambda: None, activation=lambda: activation)
    bnn = bnnfx.convert(Chain(), scheme, config=ALL).eval()
    with pytest.raises(ConversionError, match=f"its activation binarizer, Activation, {said}"):
        bnnfx.lower(bnn, Chain().inputs())


class Learned(ActivationBinarizer):
    """0 or 1, compared with a number of its own in each of 8 channels."""

    levels = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.linspace(-0.3, 0.3, 8))

    def binarize(self, x: Tensor) -> Tensor:
        level = self.threshold(x, x.ndim)
        return steps(x - level, self.levels, (0.5,), clipped_identity, decision=torch.where(x >= level, 1.0, 0.0))

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        return self.at.view(1, -1, *(1,) * (rank - 2))


def test_a_threshold_per_channel(use, tmp_path):
    """The same in front of a map and of a linear layer."""
    torch.manual_seed(0)
    maps = (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    model = nn.Sequential(*maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 3))
    bnn = bnnfx.convert(model, use(activation=Learned), config=ALL)
    x = torch.randn(6, 8, 5, 5)
    bnn(x).square().sum().backward()
    torch.optim.SGD(bnn.parameters(), 0.1).step()
    packed = bnnfx.lower(bnn.eval(), (x[:1],))
    assert bnnfx.verify(bnn, packed, (x,))
    assert bnnfx.verify(packed, bnnfx.export_onnx(packed, tmp_path / "model.onnx"), (x,))


class Centred(SignActivation):
    """Compares with the mean of each sample, which the threshold gives as well."""

    pointwise = False

    def __init__(self) -> None:
        super().__init__(approx_sign)

    def binarize(self, x: Tensor) -> Tensor:
        return sign(x, approx_sign, decision=x - self.threshold(x, x.ndim))

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        return x.mean(dim=tuple(range(1, rank)), keepdim=True)


class SaysPointwise(SignActivation):
    """Its threshold is no constant: without x it is not a number."""

    def __init__(self) -> None:
        super().__init__(approx_sign)

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        return x.mean().expand((1,) * rank)


class NeedsChannels(SignActivation):
    """Its threshold has the channels of x, and there are none without x."""

    def __init__(self) -> None:
        super().__init__(approx_sign)

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        return torch.zeros(1, x.shape[1], *(1,) * (rank - 2))


@pytest.mark.parametrize(
    ("activation", "said"),
    [
        (SaysPointwise, "the threshold of its activation binarizer, SaysPointwise, is not a number"),
        (NeedsChannels, "the threshold of its activation binarizer, NeedsChannels, cannot be had: tuple index out of"),
    ],
)
def test_thresholds_that_are_no_constants(use, activation, said):
    bnn = bnnfx.convert(Chain(), use(activation=activation))
    with pytest.raises(ConversionError, match=f"{said}.*; let threshold"):
        bnnfx.lower(bnn.eval(), Chain().inputs())


@pytest.mark.parametrize("make", [Chain, lambda: Residual(downsample=True)])
def test_honest_activations_are_lowered(use, make, tmp_path):
    bnn, x = trained(use(activation=Centred), make())
    packed = bnnfx.lower(bnn, x)
    assert bnnfx.verify(bnn, packed, x)
    assert bnnfx.verify(packed, bnnfx.export_onnx(packed, tmp_path / "model.onnx"), x)


def test_levels_that_split_does_not_know(use):
    class Four(ActivationBinarizer):
        levels = (0.0, 1.0, 2.0, 3.0)

        def binarize(self, x: Tensor) -> Tensor:
            return steps(x, self.levels, (0.5, 1.5, 2.5), clipped_identity)

    bnn = bnnfx.convert(Chain(), use(activation=Four), config=ALL).eval()
    with pytest.raises(StageError, match=r"has 4 levels \(0, 1, 2, 3\). Use a binarizer with two."):
        bnnfx.lower(bnn, Chain().inputs())
    with pytest.raises(ConversionError, match="this graph has none"):
        bnnfx.split(bnn)


# --- entry points ---
