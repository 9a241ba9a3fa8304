"""Small models built to trigger each refusal of a pass, and the edit that its remedy names."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import bnnfx
from bnnfx import Config, Explanation, LayerConfig
from bnnfx.graph import edit as edit_graph
from bnnfx.inspect.explain import Finding
from bnnfx.nn import ActivationBinarizer, LastAxisBatchNorm, ScaledSign, SignActivation, TernaryActivation
from bnnfx.numerics.surrogates import clipped_identity
from bnnfx.schemes import get_scheme
from helpers.models import (
    Bottleneck,
    Chain,
    Gate,
    Grouped,
    Model,
    Residual,
    SigmoidBeforeConv,
    UntraceableSubmodule,
    conv3x3,
)

ALL = Config(keep_float=())
AS_IT_IS = Config(keep_float=(), adapt=())


@dataclass(frozen=True)
class Case:
    """A model and what is said of it.

    Attributes:
        layer: whose row gives the reason; "" where the reason concerns no layer and stands in the log only.
        reason: part of the text.
        model: makes it.
        edited: what the remedy says, done: other values for some of these attributes; None where there is no remedy.
        split: whether the graph is split.
        lower: whether the reason comes from lowering.
        shaped: whether convert is given example inputs.
        spoil: a change of the trainable graph.
    """

    layer: str
    reason: str
    model: Callable[[], nn.Module]
    edited: dict[str, Any] | None = None
    scheme: str = "bireal"
    config: Config = ALL
    split: bool = False
    lower: bool = False
    shaped: bool = False
    spoil: Callable[[fx.GraphModule], None] | None = None
    inputs: tuple[tuple[int, ...], ...] = field(default=((2, 4, 5, 7),))

    def explain(self) -> Explanation:
        """Convert, split and lower where asked."""
        torch.manual_seed(0)
        model = self.model()
        inputs = model.inputs() if isinstance(model, Model) else tuple(map(torch.randn, self.inputs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # leaves, and prime fan-ins
            given = inputs if self.shaped else None
            gm = bnnfx.convert(model, self.scheme, example_inputs=given, config=self.config)
        if self.spoil is not None:
            self.spoil(gm)
        gm = bnnfx.split(gm) if self.split else gm
        return bnnfx.explain(bnnfx.lower(gm, inputs) if self.lower else gm)

    def findings(self, explanation: Explanation) -> list[Finding]:
        """What is said of the layer, or in the log, with this reason."""
        if self.layer:
            said = explanation[self.layer].findings
        else:
            said = tuple(f for log in explanation.passes for f in (*log.refused, *log.notes))
        return [finding for finding in said if self.reason in finding.reason]


class One(Model):
    """A stem, a layer of interest, and another one so that something can be binarized."""

    def __init__(self, layer: nn.Module, change: Callable[[nn.Module], object] = lambda layer: None) -> None:
        super().__init__()
        self.stem, self.layer, self.plain = conv3x3(3, 8), layer, nn.Conv2d(8, 8, 1)
        change(layer)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.plain(x), self.layer(x)


class Around(nn.Module):
    """A layer of interest that reads its input in another shape."""

    def __init__(self, layer: nn.Module, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.before = layer, before

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.before(x))


class Wired(nn.Module):
    """Blocks `a` to `c` of four channels, and a tensor, wired by a function."""

    def __init__(self, wiring: Callable[["Wired", Tensor], Tensor]) -> None:
        super().__init__()
        for name in "abc":
            self.add_module(name, nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)))
        self.weight, self.position = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.Parameter(torch.randn(1, 4, 5, 7))
        self.prelu, self.gelu = nn.PReLU(), nn.GELU()
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


def wired(wiring: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Wired(wiring)


gated = wired(lambda m, x: m.b(torch.sigmoid(m.position) * m.a(x)))


def chain(*between: nn.Module) -> Callable[[], nn.Module]:
    """Two convolutions with layers between."""
    return lambda: nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), *between, nn.Conv2d(4, 2, 1))


class Projected(nn.Module):
    """A projection by the weight of a layer, or by the layer itself."""

    def __init__(self, call: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
        self.extra, self.call = nn.Linear(4, 2, bias=False), call

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x).mean((2, 3))
        return self.extra(y) if self.call else y @ self.extra.weight.t()


class Copies(nn.Module):
    """What becomes of a convolution's map in front of two copies of it, and the layers that read those."""

    def __init__(self, wiring: Callable[["Copies", Tensor], Any]) -> None:
        super().__init__()
        self.a, self.bn, self.last = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.own = nn.BatchNorm2d(4)
        self.bn4, self.last4 = nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1)
        self.wiring = wiring

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)

    def twice(self, x: Tensor) -> Tensor:
        return self.last(self.bn(torch.cat([x, x], 1)))

    def four_times(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x], 1)
        return self.last4(self.bn4(torch.cat([x, x], 1)))


class TensorGate(Gate):
    """`Gate` without a Python branch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.sum() > 0, self.conv(x), x)


def traceable() -> nn.Module:
    model = UntraceableSubmodule()
    model.inner = nn.Sequential(TensorGate(8))
    return model


class Calls(nn.Module):
    """A function of a map."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class TwoPaths(Chain):
    """A chain that gives another value in training, from an operation of its own."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y.neg() if self.training else y


class ToItself(nn.Module):
    """A layer of a decoder, which attends to its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x, x)


class Feedforward(nn.Module):
    """The two layers of a transformer's feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


class TrainingOnly(Model):
    """A second head that evaluation does not call."""

    def __init__(self, training: bool) -> None:
        super().__init__()
        self.stem, self.conv, self.aux, self.last = (conv3x3(*size) for size in ((3, 8), (8, 8), (8, 8), (8, 4)))
        self.train(training)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return (self.last(self.conv(x)), self.aux(x)) if self.training else self.last(self.conv(x))


class Scaled(nn.Module):
    """A weight beside something that is no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))


class Functional(Model):
    """A convolution or a product with a parameter of the model, as a function or as a module."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.layer, self.linear = conv3x3(3, 8), nn.Conv2d(8, 8, 1), nn.Linear(8, 8)
        self.weight, self.matrix = nn.Parameter(torch.randn(8, 8, 1, 1)), nn.Parameter(torch.randn(8, 8))
        self.scaled = Scaled()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, self.conv(x))


class OwnConvolution(nn.Conv2d):
    """It could compute anything."""


class Doubled(nn.Conv2d):
    """Its result times a number."""

    def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
        return factor * super().forward(x)


class Factor(Around):
    """Gives a layer more than an input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner, lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, 3.0)


class Counting(nn.Conv2d):
    """Has a tensor that nothing reads."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("count", torch.zeros(1))


class Standardized(nn.Conv2d):
    """Weight standardization."""

    def standardized(self) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return centred / centred.std((1, 2, 3), keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardized(), self.bias)

    def plain(self) -> nn.Conv2d:
        """What the remedy says."""
        layer = nn.Conv2d(self.in_channels, self.out_channels, self.kernel_size)
        layer.weight = nn.Parameter(self.standardized().detach())
        return layer


class Borrowing(nn.Module):
    """Calls a layer, and torch's function with its weight."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.inner, self.settings = nn.Conv2d(8, 8, 3), settings

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(F.conv2d(x, self.inner.weight, self.inner.bias, **self.settings))


class SamePadded(nn.Conv2d):
    """As TensorFlow pads: that the result is the input by the stride, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        totals = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in (x.shape[-1], x.shape[-2])]
        return super().forward(F.pad(x, [side for n in totals for side in (n // 2, n - n // 2)]))


class Twice(nn.Module):
    """Two layers, or one twice, on maps of an even and of an odd size."""

    def __init__(self, inner: nn.Module, other: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.other = inner, inner if other is None else other

    def forward(self, x: Tensor) -> Any:
        return self.inner(x), self.other(x[:, :, 1:, 1:])


def lazy(run: bool) -> nn.Module:
    model = One(nn.LazyConv2d(8, 1))
    if run:
        model(*model.inputs())
    return model


class Normalized(SigmoidBeforeConv):
    """With a batch norm behind the sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(self.pool, nn.BatchNorm2d(8))


class EqualWidths(Bottleneck):
    """The bottleneck without its neck."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv3x3(8, 8), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)


class Resize(Model):
    """A block whose second convolution may change the size of the map."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stem, self.bn0 = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = conv3x3(8, 8), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv3x3(8, 8, stride=stride), nn.BatchNorm2d(8)
        self.pool, self.last = nn.AvgPool2d(stride), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x))
        return self.last(self.bn2(self.conv2(self.bn1(self.conv1(x)))) + self.pool(x))


def dip(gm: fx.GraphModule) -> None:
    """Statistics with which GELU's dip lies between two positive sides, at values that accumulators take."""
    norm: Any = gm.get_submodule("2")
    norm.running_mean.fill_(-0.05)
    gm.get_parameter("0.weight").data.fill_(0.5)


class Compares(ActivationBinarizer):
    """With a threshold of any shape."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def binarize(self, x: Tensor) -> Tensor:
        return torch.where(x >= self.value, 1.0, -1.0)

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        return self.value


def binarizer_of_b(module: nn.Module) -> Callable[[fx.GraphModule], None]:
    return lambda gm: setattr(gm.get_submodule("b"), "0_sign", module)


def zeros(gm: fx.GraphModule) -> None:
    gm.get_parameter("a.0.weight").data[0, 0] = 0.0


FIRST = {"config": "remedy"}
NEVER = "its input is never negative"
LAST_IS_FLOAT = Config(keep_float=("last",))

DUO: dict[str, Any] = {
    "scheme": "binaryduo",
    "config": Config(keep_float=(), options={"width_factor": 1.0}),
    "split": True,
}


def separable() -> nn.Module:
    """A stem, depthwise and pointwise convolutions in turn, and a last layer."""
    pairs = [layer for _ in range(2) for layer in (conv3x3(16, 16, groups=16), nn.Conv2d(16, 16, 1))]
    return nn.Sequential(conv3x3(4, 16), *pairs, nn.Conv2d(16, 4, 1))


CASES: dict[str, Case] = {
    # SelectLayers, and what it never meets
    "untraceable": Case(
        "inner.0.conv", "torch.fx cannot trace it", UntraceableSubmodule, {"model": traceable}, config=Config()
    ),
    "inside a module of torch": Case(
        "1.decoder.linear1",
        "a TransformerDecoderLayer, which is called as a whole",
        lambda: nn.Sequential(nn.Linear(8, 8), ToItself(), nn.Linear(8, 8)),
        {"model": lambda: nn.Sequential(nn.Linear(8, 8), Feedforward(), nn.Linear(8, 8)), "layer": "1.linear1"},
    ),
    "never called": Case(
        "aux", "forward does not call it", lambda: TrainingOnly(False), {"model": lambda: TrainingOnly(True)}
    ),
    "weight of a module that has more": Case(
        "",
        "which has more than a weight and a bias",
        lambda: Functional(lambda m, x: F.linear(x, m.scaled.weight) * m.scaled.scale),
        {"model": lambda: Functional(lambda m, x: F.linear(x, m.linear.weight) * m.scaled.scale)},
    ),
    "function": Case(
        "conv2d",
        "conv2d is called as a function",
        lambda: Functional(lambda m, x: F.conv2d(x, m.weight)),
        {"model": lambda: Functional(lambda m, x: m.layer(x)), "layer": "layer"},
    ),
    "product": Case(
        "matmul",
        "matmul is called as a function",
        lambda: Functional(lambda m, x: x.flatten(2).mean(2) @ m.matrix.t()),
        {"model": lambda: Functional(lambda m, x: m.linear(x.flatten(2).mean(2))), "layer": "linear"},
    ),
    "excluded": Case(
        "conv1", "binarize=False", Chain, FIRST, config=Config(layers={"conv1": LayerConfig(binarize=False)})
    ),
    "first": Case("stem", "the first layer stays float", Chain, FIRST, config=Config()),
    "last": Case("fc2", "the last layer stays float", Chain, FIRST, config=Config()),
    "downsample": Case(
        "block.downsample.0", "the downsample layer", lambda: Residual(downsample=True), FIRST, config=Config()
    ),
    "parametrized": Case(
        "layer",
        "parametrized",
        lambda: One(parametrizations.weight_norm(nn.Conv2d(8, 8, 1))),
        {
            "model": lambda: One(
                parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
                lambda layer: parametrize.remove_parametrizations(layer, "weight"),
            )
        },
    ),
    "computed weight": Case(
        "layer",
        "computed by spectral_norm",
        lambda: One(nn.Conv2d(8, 8, 1), nn.utils.spectral_norm),
        {"model": lambda: One(nn.utils.remove_spectral_norm(nn.utils.spectral_norm(nn.Conv2d(8, 8, 1))))},
    ),
    "hooks": Case(
        "layer",
        "forward hooks",
        lambda: One(nn.Conv2d(8, 8, 1), lambda layer: layer.register_forward_hook(lambda *_: None)),
        {"model": lambda: One(nn.Conv2d(8, 8, 1), lambda layer: layer.register_forward_hook(print).remove())},
    ),
    "lazy": Case("layer", "its weight is not made yet", lambda: lazy(False), {"model": lambda: lazy(True)}),
    "settings of a call": Case(
        "conv2d",
        "not with its settings",
        lambda: One(Borrowing(padding=1)),
        {"model": lambda: One(Borrowing(padding=0)), "layer": "layer.inner"},
    ),
    "subclass without inputs": Case(
        "layer",
        "what it computes is not known",
        lambda: One(OwnConvolution(8, 8, 1)),
        {"shaped": True},
    ),
    "subclass": Case(
        "layer",
        "Doubled computes something else than nn.Conv2d",
        lambda: One(Doubled(8, 8, 1)),
        {"model": lambda: One(Around(nn.Conv2d(8, 8, 1), lambda x: 2 * x)), "layer": "layer.inner"},
        shaped=True,
    ),
    "subclass that is not supported": Case(
        "layer",
        "Doubled is not supported",
        lambda: One(Doubled(8, 8, 1)),
        {"model": lambda: One(nn.Conv2d(8, 8, 1))},
        shaped=True,
    ),
    "subclass that computes its weight": Case(
        "layer",
        "Standardized computes another weight at each call",
        lambda: One(Standardized(8, 8, 3)),
        {"model": lambda: One(Standardized(8, 8, 3).plain())},
        shaped=True,
    ),
    "subclass with more": Case(
        "layer",
        "Counting has 'count' beside weight and bias",
        lambda: One(Counting(8, 8, 1)),
        {"model": lambda: One(nn.Conv2d(8, 8, 1))},
        shaped=True,
    ),
    "subclass that takes more": Case(
        "layer.inner",
        "Doubled takes more than its input",
        lambda: One(Factor(Doubled(8, 8, 1))),
        {"model": lambda: One(Around(nn.Conv2d(8, 8, 1), lambda x: 3 * x))},
        shaped=True,
    ),
    "subclass of two paddings": Case(
        "layer.inner",
        "pads its calls differently",
        lambda: One(Twice(SamePadded(8, 8, 3, stride=2))),
        {"model": lambda: One(Twice(SamePadded(8, 8, 3, stride=2), SamePadded(8, 8, 3, stride=2)))},
        shaped=True,
    ),
    "another type": Case("layer", "ConvTranspose2d is not supported", lambda: One(nn.ConvTranspose2d(8, 8, 2))),
    "zeros in front": Case(
        "layer",
        "its zeros are in front of the binarizer of 'layer'",
        lambda: One(nn.Conv2d(8, 8, 2, padding="same")),
        {"model": lambda: One(nn.Conv2d(8, 8, 2, padding=1))},
    ),
    "complex": Case(
        "layer",
        "its weight is torch.complex64",
        lambda: One(nn.Conv2d(8, 8, 1, dtype=torch.complex64)),
        {"model": lambda: One(nn.Conv2d(8, 8, 1))},
    ),
    "axes": Case(
        "layer.inner",
        "its input has shape [1024]",
        lambda: One(Around(nn.Linear(1024, 8), lambda x: x.flatten())),
        {"model": lambda: One(Around(nn.Linear(512, 8), lambda x: x.flatten(1)))},
        shaped=True,
    ),
    "axes that the graph tells": Case(
        "layer.inner",
        "its input has 1 axis",
        lambda: One(Around(nn.Linear(1024, 8), lambda x: x.flatten())),
        {"model": lambda: One(Around(nn.Linear(512, 8), lambda x: x.flatten(1)))},
    ),
    "sign that is not known": Case(
        "2",
        "may give its input one sign only",
        chain(Calls(lambda x: torch.fft.fft2(x).real)),
        {"model": chain(Calls(lambda x: torch.fft.fft2(x).real), nn.BatchNorm2d(4)), "layer": "3"},
    ),
    "sign on the example inputs": Case(
        "2",
        "has one sign only on the example inputs",
        chain(Calls(lambda x: torch.hypot(x, x))),
        {"model": chain(Calls(lambda x: torch.hypot(x, x)), nn.BatchNorm2d(4)), "layer": "3"},
        shaped=True,
    ),
    "level on the example inputs": Case(
        "2",
        "of which TernaryActivation makes one value",
        chain(Calls(lambda x: -torch.hypot(x, x))),
        {"model": chain(Calls(lambda x: -torch.hypot(x, x)), nn.BatchNorm2d(4)), "layer": "3"},
        scheme="binaryduo",
        shaped=True,
    ),
    "weight that is given to a function": Case(
        "extra",
        "forward does not call it, but gives its weight to 't'",
        lambda: Projected(False),
        {"model": lambda: Projected(True)},
    ),
    "path of one mode": Case("", "converted for one mode only", TwoPaths, {"model": Chain}),
    "constant sign": Case("gated", NEVER, SigmoidBeforeConv, {"model": Normalized}, config=Config()),
    "xnor": Case("depthwise", "each filter reads one input channel", Grouped, {"scheme": "remedy"}, scheme="xnor"),
    "rbnn": Case(
        "layer", "a single weight", lambda: One(nn.Conv2d(8, 8, 1, groups=8)), {"scheme": "remedy"}, scheme="rbnn"
    ),
    # what is adapted to signs
    "activation that is left out": Case(
        "3", "in front of it is left out", chain(nn.BatchNorm2d(4), nn.GELU()), {"config": AS_IT_IS}
    ),
    "activation that stays": Case(
        "3",
        "in front of it stays, though",
        chain(nn.BatchNorm2d(4), nn.GELU()),
        {"config": ALL},
        config=AS_IT_IS,
    ),
    "norm behind a gate": Case("b.0", "without which a sign would not show the gate", gated, {"config": AS_IT_IS}),
    "gate in front of a sign": Case("b.0", "does not show the gate in 'mul'", gated, {"config": ALL}, config=AS_IT_IS),
    # structure
    "block that is partly float": Case(
        "block.conv2",
        "'block.conv1' in this block stays float",
        Residual,
        {"config": Config()},
        config=Config(layers={"block.conv1": LayerConfig(binarize=False)}),
    ),
    "block of several widths": Case(
        "conv3", "'conv3' changes the width from 4 to 8", Bottleneck, {"model": EqualWidths}, config=Config()
    ),
    "block of several sizes": Case(
        "conv2",
        "'conv2' changes the size of its map",
        lambda: Resize(2),
        {"model": lambda: Resize(1)},
        config=Config(),
    ),
    "relu": Case(
        "", "it feeds float layers only", chain(nn.ReLU()), {"scheme": "remedy"}, config=Config(keep_float=("last",))
    ),
    "batch statistics": Case(
        "",
        "keeps no running statistics",
        chain(nn.BatchNorm2d(4, track_running_stats=False)),
        {"model": chain(nn.BatchNorm2d(4, track_running_stats=True))},
        lower=True,
    ),
    "batch norm as a function": Case(
        "",
        "called as a function that normalizes each batch by itself",
        chain(Calls(lambda x: F.batch_norm(x, None, None, training=True))),
        {"model": chain(nn.BatchNorm2d(4))},
        lower=True,
    ),
    # bits
    "zero weights": Case(
        "a.0",
        "9 weights are exactly zero",
        wired(lambda m, x: m.b(m.a(x))),
        {"spoil": None},
        lower=True,
        spoil=zeros,
    ),
    "pool of floats": Case(
        "", "fewer to pack once they are pooled", lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)), lower=True
    ),
    "pool that is also read": Case(
        "a.0",
        "so pooling stays on floats",
        wired(lambda m, x: (lambda y: m.b(y) + y)(F.max_pool2d(m.a(x), 2))),
        {"model": wired(lambda m, x: m.b(F.max_pool2d(m.a(x), 2)))},
        lower=True,
    ),
    "pool before a dip": Case(
        "0",
        "between pool and sign may rise and fall",
        chain(nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.GELU()),
        {"model": chain(nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Hardtanh())},
        config=AS_IT_IS,
        lower=True,
    ),
    "pool of padding": Case(
        "0",
        "nothing but padding",
        chain(nn.MaxPool2d(2, padding=1, dilation=3), nn.BatchNorm2d(4)),
        {"model": chain(nn.MaxPool2d(2, padding=1), nn.BatchNorm2d(4))},
        lower=True,
        inputs=((2, 4, 2, 2),),
    ),
    "bits of an input": Case("", "its values come from 'x'", wired(lambda m, x: m.a(x)), lower=True),
    "bits by centring": Case(
        "a.0",
        "computed from the activations at run time (centring)",
        wired(lambda m, x: m.b(m.a(x))),
        {"config": Config(keep_float=(), options={"centre": False})},
        scheme="rbnn",
        config=Config(keep_float=(), options={"centre": True}),
        lower=True,
    ),
    "bits and floats": Case(
        "a.0",
        "also read as float, so the float stream stays",
        wired(lambda m, x: (lambda y: m.b(y) + y)(m.a(x))),
        {"model": wired(lambda m, x: m.b(m.a(x)))},
        lower=True,
    ),
    "bits of mixed values": Case(
        "0",
        "mixes values",
        chain(nn.BatchNorm2d(4), nn.AvgPool2d(2)),
        {"model": chain(nn.BatchNorm2d(4))},
        lower=True,
    ),
    "bits behind a dip": Case(
        "0",
        "rises and falls with the accumulator",
        chain(nn.GELU(), nn.BatchNorm2d(4)),
        {"model": chain(nn.Hardtanh(), nn.BatchNorm2d(4))},
        lower=True,
        spoil=dip,
    ),
    # one node per layer
    "read without its batch norm": Case(
        "a.0",
        "is read without its batch norm too",
        wired(lambda m, x: (lambda y: y + m.a[1](y))(m.a[0](x))),
        {"model": wired(lambda m, x: m.a[1](m.a[0](x)))},
        lower=True,
    ),
    "second activation": Case(
        "a.0",
        "a second activation in a row",
        wired(lambda m, x: m.b(m.prelu(F.hardtanh(m.a(x))) + x)),
        {"model": wired(lambda m, x: m.b(m.prelu(m.a(x)) + x))},
        lower=True,
    ),
    "map of another shape": Case(
        "a.0",
        "adds a map of another shape",
        wired(lambda m, x: m.b(m.a(x) + x.mean((2, 3), keepdim=True))),
        {"model": wired(lambda m, x: m.b(m.a(x) + x))},
        lower=True,
    ),
    "one map for all": Case(
        "a.0",
        "adds one map to every sample",
        wired(lambda m, x: m.b(m.a(x) + m.position)),
        {"model": wired(lambda m, x: m.b(m.a(x)))},
        lower=True,
        inputs=((1, 4, 5, 7),),
    ),
    "no step": Case(
        "a.0",
        "'gelu' behind it is no step of an epilogue",
        wired(lambda m, x: m.b(m.gelu(m.a(x) + x))),
        {"model": wired(lambda m, x: m.b(m.prelu(m.a(x) + x)))},
        config=AS_IT_IS,
        lower=True,
    ),
    "stream compared by centring": Case(
        "a.0",
        "its stream is compared with a threshold that the activations give",
        wired(lambda m, x: m.b(m.a(x) + x) + x),
        {"config": Config(keep_float=(), options={"centre": False})},
        scheme="rbnn",
        config=Config(keep_float=(), options={"centre": True}),
        lower=True,
    ),
    "stream compared per position": Case(
        "a.0",
        "is compared with a threshold that is not one number per channel",
        wired(lambda m, x: m.b(m.a(x) + x)),
        {"spoil": binarizer_of_b(SignActivation(clipped_identity))},
        lower=True,
        spoil=binarizer_of_b(Compares(torch.linspace(-1, 1, 140).reshape(1, 4, 5, 7))),
    ),
    "stream compared twice": Case(
        "a.0",
        "is compared with a second threshold",
        wired(lambda m, x: (lambda y: m.b(y) + m.c(y))(m.a(x) + x)),
        {"spoil": None},
        lower=True,
        spoil=binarizer_of_b(Compares(torch.full((1, 1, 1, 1), 0.5))),
    ),
    "layout": Case(
        "a.0",
        "works on [N, C, H, W], so the map is transposed",
        wired(lambda m, x: torch.flatten(m.a(x) + x, 1)),
        {"model": wired(lambda m, x: m.prelu(m.a(x) + x))},
        lower=True,
    ),
    # ternary activations
    "float weights": Case(
        "b.0",
        "its weight stays float",
        wired(lambda m, x: m.b(m.a(x))),
        {"config": Config(keep_float=(), options={"weight_bits": 1})},
        scheme="binaryduo",
        config=Config(keep_float=(), options={"weight_bits": 32}),
    ),
    "narrower": Case(
        "a.0",
        "has 2 instead of 4 output channels",
        wired(lambda m, x: m.b(m.a(x))),
        scheme="binaryduo",
    ),
    "weights without their function": Case(
        "", "have lost their function", wired(lambda m, x: m.b(m.a(x))), scheme="binaryduo"
    ),
    "weights of the split network": Case(
        "", "the split network will have", wired(lambda m, x: m.b(m.a(x))), scheme="binaryduo"
    ),
    "factor that is too large": Case(
        "",
        "depthwise convolutions have more at any width",
        separable,
        scheme="binaryduo",
        config=Config(keep_float=("first", "last", "downsample")),
    ),
    "shift of a sum of unknown maps": Case(
        "",
        "may add maps of different sizes",
        wired(lambda m, x: m.c(m.b(m.a(x)) + m.position)),
        {"model": wired(lambda m, x: m.c(m.b(m.a(x))))},
        **DUO,
    ),
    "shift of a sum without batch norm": Case(
        "",
        "no batch norm adds to 'add'",
        wired(lambda m, x: (lambda y: m.b(F.hardtanh(y) + m.prelu(y)))(m.a(x))),
        {"model": wired(lambda m, x: (lambda y: m.b(m.c[1](F.hardtanh(y)) + m.prelu(y)))(m.a(x)))},
        **DUO,
    ),
    "shift of no batch norm": Case(
        "",
        "'mul' is no batch norm",
        gated,
        {"model": wired(lambda m, x: m.b(m.a(x)))},
        **DUO | {"config": replace(DUO["config"], adapt=())},
    ),
    "shift without beta": Case(
        "",
        "it has no beta to shift",
        chain(nn.BatchNorm2d(4, affine=False)),
        {"model": chain(nn.BatchNorm2d(4, affine=True))},
        **DUO,
    ),
    "shift of a batch norm over axis 1": Case(
        "",
        "may normalize another axis than that of the channels",
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        {"model": lambda: nn.Sequential(nn.Linear(4, 4), LastAxisBatchNorm(4), nn.Linear(4, 2))},
        **DUO,
    ),
    "shift of a batch norm that is called twice": Case(
        "",
        "it is called several times, so the shift",
        wired(lambda m, x: m.b(m.c[1](m.c[0](m.c[1](m.a[0](x)))))),
        {"model": wired(lambda m, x: m.b(m.c(m.a(x))))},
        **DUO,
    ),
    "batch norm of a branch that is called twice": Case(
        "",
        "stays one for both halves: it is called several times",
        wired(lambda m, x: (lambda y: (lambda z: m.c(m.a[1](m.b[0](z)) + z))(m.a[1](m.a[0](y)) + y))(m.b[1](x))),
        {"model": wired(lambda m, x: (lambda y: m.c(m.b(y) + y))(m.a(x) + x))},
        **DUO,
    ),
    "branch that is also read": Case(
        "",
        "it is also read as one map",
        wired(lambda m, x: (lambda s: (lambda y: (m.b(y + s), y))(m.a(s)))(m.c(x))),
        {"model": wired(lambda m, x: (lambda s: m.b(m.a(s) + s))(m.c(x)))},
        **DUO,
    ),
    "branch without bits": Case(
        "",
        "no layer on bits is in front of it",
        wired(lambda m, x: m.b(m.c(x) + m.a[1](m.gelu(x)))),
        **DUO,
    ),
    # two copies of a map
    "copies of a float map": Case(
        "",
        "not a packed convolution",
        lambda: Copies(lambda m, x: m.twice(F.avg_pool2d(m.a(x), 1))),
        {"model": lambda: Copies(lambda m, x: m.twice(F.max_pool2d(m.a(x), 1)))},
        lower=True,
    ),
    "copies and the map itself": Case(
        "",
        "is also read without its copy",
        lambda: Copies(lambda m, x: (lambda y: (m.twice(y), m.own(y)))(m.a(x))),
        {"model": lambda: Copies(lambda m, x: m.twice(m.a(x)))},
        lower=True,
    ),
    "copies of copies": Case(
        "",
        "the map is replicated already",
        lambda: Copies(lambda m, x: m.four_times(m.a(x))),
        {"model": lambda: Copies(lambda m, x: m.twice(m.a(x)))},
        lower=True,
    ),
    "width given from outside": Case(
        "",
        "its width stays",
        wired(lambda m, x: (lambda y: (y, m.b(y)))(m.a(x))),
        scheme="binaryduo",
    ),
    "beginning of a region": Case(
        "", "a binary region begins here", lambda: Residual(downsample=True), config=Config(), lower=True
    ),
}


def hook(gm: fx.GraphModule) -> None:
    gm.get_submodule("b.0").register_forward_pre_hook(lambda *_: None)


def centred(gm: fx.GraphModule) -> None:
    """A binarizer that subtracts the mean of a filter."""
    layer, xnor = gm.get_submodule("b.0"), get_scheme("xnor")
    layer.binarizer = xnor.weight(nn.Conv2d(4, 4, 3), xnor.options)  # type: ignore[assignment]


def share(gm: fx.GraphModule) -> None:
    gm.get_submodule("b.0").weight = gm.get_parameter("a.0.weight")


class TernaryWeight(ScaledSign):
    """A weight binarizer of which small weights are 0."""

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        signs, scale = super().forward(weight)
        return torch.where(weight.abs() < 0.05, 0.0, signs), scale


def ternary_weight(gm: fx.GraphModule) -> None:
    gm.get_submodule("b.0").binarizer = TernaryWeight()  # type: ignore[assignment]


class Above(SignActivation):
    """Its forward compares with 0.1, its threshold is 0."""

    def __init__(self) -> None:
        super().__init__(clipped_identity)

    def binarize(self, x: Tensor) -> Tensor:
        return super().binarize(x - 0.1)


class PerChannel(Above):
    """Its threshold needs x, and it says that it does not."""

    def threshold(self, x: Tensor, rank: int) -> Tensor:
        return x.new_zeros(1, x.shape[1], *(1,) * (rank - 2))


class Pooled(Above):
    """Gives a smaller map."""

    def binarize(self, x: Tensor) -> Tensor:
        return SignActivation(clipped_identity)(F.avg_pool2d(x, 2))


def activation(binarizer: ActivationBinarizer) -> Callable[[fx.GraphModule], None]:
    """Put another binarizer in front of the second layer."""
    return lambda gm: edit_graph.replace_module(gm, "b.0_sign", binarizer)


class Behind(Wired):
    """With a ternary activation `t` of its own, and a grouped convolution `grouped`."""

    def __init__(self, wiring: Callable[["Wired", Tensor], Any]) -> None:
        super().__init__(wiring)
        self.t, self.grouped = TernaryActivation(), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.u, self.rows = TernaryActivation(), nn.Linear(7, 7)


def behind(wiring: Callable[[Any, Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Behind(wiring)


def float_behind(*names: str) -> dict[str, Any]:
    """These layers stay float."""
    return {**DUO, "config": replace(DUO["config"], layers=dict.fromkeys(names, LayerConfig(binarize=False)))}


STOPPING: dict[str, Case] = {
    # SplitActivations
    "weight by a hook": Case(
        "b.0", "computed by a hook", wired(lambda m, x: m.b(m.a(x))), {"spoil": None}, spoil=hook, **DUO
    ),
    "binarizer that loses a factor": Case(
        "b.0",
        "has a CentredScaledSign, which does not make [W_b/2, W_b/2]",
        wired(lambda m, x: m.b(m.a(x))),
        {"spoil": None},
        spoil=centred,
        **DUO,
    ),
    "layer that reads something else": Case(
        "b.0",
        "is also called on",
        behind(lambda m, x: m.b(m.t(m.a(x))) + m.b(x)),
        {"model": behind(lambda m, x: m.b(m.t(m.a(x))) + m.c(x))},
        **float_behind("b.0"),
    ),
    "shared weight": Case(
        "b.0",
        "shares its weight (a.0.weight, b.0.weight)",
        wired(lambda m, x: m.b(m.a(x))),
        {"spoil": None},
        spoil=share,
        **DUO,
    ),
    "two groupings": Case(
        "grouped",
        "in different groups of channels",
        behind(lambda m, x: (lambda y: m.grouped(y) + m.b(y))(m.t(m.a(x)))),
        {"model": behind(lambda m, x: (lambda y: m.grouped(m.t(y)) + m.b(m.u(y)))(m.a(x)))},
        **float_behind("grouped", "b.0"),
    ),
    "channels on two axes": Case(
        "rows",
        "'rows', 'b.0' read channels on different axes of it",
        behind(lambda m, x: (lambda y: m.rows(y) + m.b(y))(m.t(m.a(x)))),
        {"model": behind(lambda m, x: (lambda y: m.rows(m.t(y)) + m.b(m.u(y)))(m.a(x)))},
        **float_behind("rows", "b.0"),
    ),
    "grouping and another reader": Case(
        "grouped",
        "both read it, in different orders of channels",
        behind(lambda m, x: (lambda y: m.grouped(y) + y)(m.t(m.a(x)))),
        {"model": behind(lambda m, x: (lambda y: m.grouped(m.t(y)) + m.u(y))(m.a(x)))},
        **float_behind("grouped"),
    ),
    # PackLayers
    "weights of zero": Case(
        "b.0",
        "its weight binarizer, TernaryWeight, gives 0 for",
        wired(lambda m, x: m.b(m.a(x))),
        {"spoil": None},
        lower=True,
        spoil=ternary_weight,
    ),
    "activation that is not its threshold's": Case(
        "b.0",
        "its activation binarizer, Above, gives -1 for",
        wired(lambda m, x: m.b(m.a(x))),
        {"spoil": None},
        lower=True,
        spoil=activation(Above()),
    ),
    "threshold that needs activations": Case(
        "b.0",
        "the threshold of its activation binarizer, PerChannel, cannot be had",
        wired(lambda m, x: m.b(m.a(x))),
        {"spoil": None},
        lower=True,
        spoil=activation(PerChannel()),
    ),
    "activation that changes the map": Case(
        "b.0",
        "its activation binarizer, Pooled, gives [64, 4, 2, 2] for values [64, 4, 4, 4]",
        wired(lambda m, x: m.b(m.a(x))),
        {"spoil": None},
        lower=True,
        spoil=activation(Pooled()),
    ),
    # CompareForFloatLayers
    "float layer behind centring": Case(
        "b.0",
        "its threshold is computed from the activations, and 'b_0' would compare",
        lambda: Centred(True),
        {"model": lambda: Centred(False)},
        lower=True,
    ),
}
"""What `split` and `lower` refuse altogether: the error carries reason and remedy."""


class Centred(Wired):
    """A float layer behind an activation of RBNN that compares with the mean of a map, or with 0."""

    def __init__(self, centre: bool) -> None:
        super().__init__(lambda m, x: m.b(m.t(m.a(x))))
        self.t = get_scheme("rbnn").activation(get_scheme("rbnn").resolve({"centre": centre}))
        self.b[0] = OwnConvolution(4, 4, 3)
