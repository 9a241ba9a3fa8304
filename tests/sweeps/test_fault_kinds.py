"""Kinds of fault in which an operator, a subclass or a spelling was taken for another: several spellings of each."""

from collections.abc import Callable

import pytest
import torch
from helpers.operators import C, H, Operator, W, accepted, example, generator
from helpers.outcomes import (
    canonical_graphs,
    check_bits_vary,
    check_canonical,
    check_lowered,
    outcome_of,
    refusals,
    train_one_step,
)
from helpers.sweep import PLACES, BehindNorm, Network, ResultUnused, judge
from torch import Tensor, nn
from torch.nn import functional as F

import bnnfx
from bnnfx._torchvision import import_torchvision


class Calls(nn.Module):
    """A module of a user around one function; torch.fx traces through it."""

    def __init__(self, function: Callable[["Calls", Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.bn, self.gate = nn.BatchNorm2d(C), nn.Conv2d(C, C, 1, groups=C)  # one input channel: it stays float
        self.relu = nn.ReLU(inplace=True)
        self.register_buffer("scale", torch.tensor([1.5, -0.5, 2.0, 1.0]).view(1, C, 1, 1))
        self.register_buffer("shift", torch.tensor([0.1, 0.2, -0.3, 0.0]).view(1, C, 1, 1))
        self.gamma = nn.Parameter(torch.tensor([1.5, -0.5, 2.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def operator_of(kind: Callable[..., nn.Module], *arguments: object) -> Operator:
    """A module of a user as an operator of the sweep."""
    op = accepted(Operator(kind.__name__, "module", kind, arguments))
    assert op is not None
    return op


def ends_well(op: Operator, place: type[Network]) -> None:
    outcome = judge(op, place)
    assert outcome is not None, "the float network does not run"
    assert outcome.kind in ("right", "refused"), f"{outcome.kind}: {outcome.detail}"


def called(function: Callable[[Tensor], object]) -> Callable[[Calls, Tensor], Tensor]:
    """Writes into a map, drops what the call gives, and goes on with the map."""

    def forward(m: Calls, x: Tensor) -> Tensor:
        function(x)
        return x

    return forward


def item(x: Tensor, index: object, value: object) -> None:
    x[index] = value


def augmented(x: Tensor) -> None:
    x += 0.5


def noted(m: Calls, x: Tensor) -> Tensor:
    m.scale.mul_(0.5)
    return x * m.scale


def read_before_and_after(m: Calls, x: Tensor) -> Tensor:
    before = x + 0
    x.neg_()
    return before * 2 + x


def alias(m: Calls, x: Tensor) -> Tensor:
    y = x
    y += 0.5
    return x


def residual(m: Calls, x: Tensor) -> Tensor:
    identity = x
    x = m.relu(x)
    return m.bn(x) + identity


def without_grad(m: Calls, x: Tensor) -> Tensor:
    with torch.no_grad():
        x.mul_(-2.0)
    return x


INPLACE: dict[str, Callable[[Calls, Tensor], Tensor]] = {
    "mul_": called(lambda x: x.mul_(-3.0)),
    "div_ and sub_": called(lambda x: x.div_(-3.0).sub_(0.25)),
    "F.elu_": called(F.elu_),
    "F.elu(inplace)": called(lambda x: F.elu(x, inplace=True)),
    "F.hardtanh(inplace)": called(lambda x: F.hardtanh(x, -1.0, 0.5, True)),
    "torch.neg_": called(torch.neg_),
    "out=": called(lambda x: torch.mul(x, -0.5, out=x)),
    "+=": called(augmented),
    "alias": alias,
    "x[:, 0] = 0": called(lambda x: item(x, (slice(None), 0), 0)),
    "x[..., 1:] = -1": called(lambda x: item(x, (..., slice(1, None)), -1.0)),
    "x[x < 0] = 0.5": called(lambda x: item(x, x < 0, 0.5)),
    "view by slice": called(lambda x: x[:, :2].mul_(-2.0)),
    "view by chunk": called(lambda x: x.chunk(2, 1)[0].zero_()),
    "view by transpose": called(lambda x: x.transpose(2, 3).add_(0.5)),
    "view by view": called(lambda x: x.view(x.size(0), -1).neg_()),
    "view by detach": called(lambda x: x.detach().mul_(-2.0)),
    "data": called(lambda x: x.data.mul_(-2.0)),
    "no_grad": without_grad,
    "buffer": noted,
    "before and after": read_before_and_after,
    "residual": residual,
    "clone": lambda m, x: called(lambda y: y.mul_(-3.0))(m, x.clone()),
    "copy_": called(lambda x: x.copy_(x.flip(1))),
    "masked_fill_": called(lambda x: x.masked_fill_(x > 0.5, -1.0)),
    "nn.ReLU(inplace)": lambda m, x: (m.relu(x), x)[1],
}


@pytest.mark.parametrize("place", (BehindNorm, ResultUnused), ids=lambda place: place.__name__)
@pytest.mark.parametrize("name", INPLACE)
def test_writing_in_place_is_not_forgotten(name, place):
    ends_well(operator_of(Calls, INPLACE[name]), place)


def gated(m: Calls, x: Tensor) -> Tensor:
    return x * m.gate(x.mean((2, 3), keepdim=True)).sigmoid()


def response_norm(m: Calls, x: Tensor) -> Tensor:
    norm = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x * (norm / (norm.mean(1, keepdim=True) + 1e-6)) + x


NEVER_NEGATIVE: dict[str, Callable[[Calls, Tensor], Tensor]] = {
    "interpolate": lambda m, x: F.interpolate(F.relu(x), scale_factor=2),
    "pad": lambda m, x: F.pad(F.relu(x), (1, 1, 1, 1)),
    "pixel shuffle": lambda m, x: F.pixel_shuffle(x.relu(), 2),
    "clone": lambda m, x: x.relu().clone(),
    "float": lambda m, x: x.clamp(min=0).float(),
    "* 2": lambda m, x: x.relu() * 2,
    "+ 1": lambda m, x: F.relu(x) + 1,
    "1 + ": lambda m, x: 1 + F.threshold(x, 0, 0),
    "maximum": lambda m, x: torch.maximum(x.relu(), x),
    "where": lambda m, x: torch.where(x > 0, x, torch.zeros_like(x)),
    "where, written out": lambda m, x: x * (x > 0),
    "gate": lambda m, x: gated(m, x.relu()),
    "response norm": lambda m, x: response_norm(m, x.relu()),
    "square": lambda m, x: x.square(),
    "** 2": lambda m, x: x**2,
    "x * x": lambda m, x: x * x,
    "squared relu": lambda m, x: x.relu().square(),
    "abs": lambda m, x: x.abs() + 0.5,
    "softplus": lambda m, x: F.softplus(x),
    "softmax": lambda m, x: x.flatten(2).softmax(-1).reshape(x.shape),
    "log_softmax": lambda m, x: F.log_softmax(x, 1),
    "minus relu": lambda m, x: -(x.relu() + 0.5),
    "exp": lambda m, x: x.exp(),
    "both signs": lambda m, x: torch.cat([x.relu(), (-x).relu()], 1),
    "stack": lambda m, x: torch.stack([x.relu(), x.abs()], 2).flatten(1, 2),
    "sum of two": lambda m, x: x.relu() + x.sigmoid(),
    "clip": lambda m, x: torch.clip(x, 0, 1) + x.clip(min=0.0),
    "hardtanh": lambda m, x: F.hardtanh(x, 0.0, 1.0).roll(1, 2),
    "max over channels": lambda m, x: x.relu().max(1, keepdim=True)[0].expand(-1, C, -1, -1),
    "unfold": lambda m, x: F.unfold(x.relu(), 3, padding=1).view(x.size(0), -1, H, W),
    "einsum": lambda m, x: torch.einsum("nchw,nchw->nchw", x.relu(), x.relu()),
    "std": lambda m, x: x - x + x.std((2, 3), keepdim=True) + x.abs(),
    "normalize": lambda m, x: F.normalize(x.relu(), dim=1),
}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("name", NEVER_NEGATIVE)
def test_bits_behind_what_is_never_negative_vary(name, place):
    ends_well(operator_of(Calls, NEVER_NEGATIVE[name]), place)


class BNReLU(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class NegatedBN(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class LeakingReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 0.5


class ScaledTanh(nn.Hardtanh):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 - super().forward(x)


class MinPool(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(-x)


class MeanFree(nn.AdaptiveAvgPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return x - super().forward(x)


class Doubling(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 0.5


class AlwaysDropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, True)


class SignedSigmoid(nn.Sigmoid):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x) - 1


class FlatKeepsMap(nn.Flatten):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(x.shape) * -1


class Unchanged(nn.BatchNorm2d):
    pass


class StandardizedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


SUBCLASSES = [
    *(BNReLU, NegatedBN, LeakingReLU, ScaledTanh, MinPool, MeanFree, Doubling, AlwaysDropout, SignedSigmoid),
    *(FlatKeepsMap, Unchanged, StandardizedConv),
]
ARGUMENTS = {
    nn.BatchNorm2d: (C,),
    nn.MaxPool2d: (3, 1, 1),
    nn.AdaptiveAvgPool2d: (1,),
    nn.Conv2d: (C, C, 3, 1, 1),
}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("kind", SUBCLASSES)
def test_a_subclass_is_not_taken_for_its_base(kind, place):
    arguments = next((given for base, given in ARGUMENTS.items() if issubclass(kind, base)), ())
    ends_well(operator_of(kind, *arguments), place)


OWN_NORMS: dict[str, Callable[[Calls, Tensor], Tensor]] = {
    "positions": lambda m, x: F.batch_norm(x, m.bn.running_mean, m.bn.running_var, m.gamma),
    "keywords": lambda m, x: F.batch_norm(
        x, running_mean=m.bn.running_mean, running_var=m.bn.running_var, weight=m.gamma, bias=m.bn.bias, eps=1e-3
    ),
    "following the mode": lambda m, x: F.batch_norm(
        x, m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias, m.training, 0.1
    ),
    "of the batch": lambda m, x: F.batch_norm(x, None, None, m.gamma, None, True),
    "torch's": lambda m, x: torch.batch_norm(
        x, m.gamma, None, m.bn.running_mean, m.bn.running_var, False, 0.1, 1e-5, False
    ),
    "computed statistics": lambda m, x: F.batch_norm(x, x.mean((0, 2, 3)), x.var((0, 2, 3)), m.gamma),
    "instance": lambda m, x: F.instance_norm(x, weight=m.gamma),
    "groups": lambda m, x: F.group_norm(x, 2, m.gamma, m.bn.bias),
}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("name", OWN_NORMS)
def test_norms_called_as_functions(name, place):
    ends_well(operator_of(Calls, OWN_NORMS[name]), place)


class Twice(nn.Module):
    """Layers `a` to `d` of one width, wired by a function; `a` and `d` are the first and the last."""

    def __init__(self, wiring: Callable[["Twice", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(C, C, 3, padding=1) for _ in range(4))
        self.bn, self.relu, self.pool = nn.BatchNorm2d(C), nn.ReLU(), nn.MaxPool2d(3, 1, 1)
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


CALLED_TWICE: dict[str, Callable[[Twice, Tensor], Tensor]] = {
    "the second time behind a sigmoid": lambda m, x: m.d(m.c(m.b(torch.sigmoid(m.b(m.a(x)))))),
    "the first time behind a sigmoid": lambda m, x: m.d(m.b(m.c(m.b(torch.sigmoid(m.a(x)))))),
    "the second time behind a gate": lambda m, x: m.d(m.b(m.bn(m.b(m.c(m.a(x)))).exp())),
    "the second time as the last": lambda m, x: m.b(m.relu(m.c(m.b(m.a(x))))),
    "the second time as the first": lambda m, x: m.d(m.c(m.b(m.a(x)) + m.b(x))),
    "both behind a relu": lambda m, x: m.d(m.relu(m.b(m.relu(m.b(m.relu(m.a(x))))))),
    "the norm, too": lambda m, x: m.d(m.relu(m.bn(m.b(m.relu(m.bn(m.b(m.a(x)))))))),
    "the norm alone": lambda m, x: m.d(m.bn(m.c(m.bn(m.b(m.a(x))).abs()))),
    "with a residual": lambda m, x: m.d(m.b(m.b(m.a(x))) + m.b(m.c(m.a(x)))),
    "with another map": lambda m, x: m.d(m.b(m.pool(m.b(m.a(x)))[:, :, ::2, 1:])),
    "the first layer": lambda m, x: m.d(m.c(m.a(m.b(m.a(x))))),
    "in a loop": lambda m, x: m.d(_three_times(m.b, m.c(m.a(x)))),
}


def _three_times(layer: nn.Module, x: Tensor) -> Tensor:
    for _ in range(3):
        x = F.softplus(layer(x)) - 1
    return x


@pytest.mark.parametrize("training", (False, True))
@pytest.mark.parametrize("wiring", CALLED_TWICE)
def test_each_call_of_a_layer_counts(wiring, training):
    torch.manual_seed(0)
    model = Twice(CALLED_TWICE[wiring]).train(training)

    def chain() -> str:
        with canonical_graphs() as canonical:
            gm = bnnfx.convert(model, "xnor", example_inputs=None if training else (example(),))
        check_canonical(canonical[0], model, example())
        check_bits_vary(gm, example())
        assert train_one_step(gm, example())
        check_lowered(gm, example())
        return refusals(gm, "b")

    outcome = outcome_of(chain, "'a'", "'b'", "'c'")
    assert outcome.kind in ("right", "refused"), f"{outcome.kind}: {outcome.detail}"


def _frozen(module: nn.Module) -> nn.Module:
    """Statistics and factors of a trained norm."""
    with torch.no_grad():
        for name, scale in (("running_mean", 1.0), ("weight", 1.0), ("bias", 0.5)):
            if getattr(module, name, None) is not None:
                getattr(module, name).copy_(scale * torch.randn(C, generator=generator()))
        module.running_var.copy_(torch.rand(C, generator=generator()) + 0.5)  # type: ignore[operator, union-attr]
    return module


def _affine(x: Tensor, form: str, s: Tensor, b: Tensor) -> Tensor:
    return {
        "x * s + b": lambda: x * s + b,
        "s * x + b": lambda: s * x + b,
        "b + x * s": lambda: b + x * s,
        "x.mul(s).add(b)": lambda: x.mul(s).add(b),
    }[form]()


class Affine(nn.Module):
    """A product and a sum per channel, with parameters of its own."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.s = nn.Parameter(torch.tensor([1.5, -0.5, 2.0, 1.0]).view(1, C, 1, 1))
        self.b = nn.Parameter(torch.tensor([0.1, 0.2, -0.3, 0.0]).view(C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return _affine(x, self.form, self.s, self.b)


def _frozen_batch_norm() -> nn.Module:
    import_torchvision()
    from torchvision.ops import FrozenBatchNorm2d

    return _frozen(FrozenBatchNorm2d(C))


AFFINE_MAPS: dict[str, Callable[[], nn.Module]] = {
    "SyncBatchNorm": lambda: _frozen(nn.SyncBatchNorm(C)),
    "FrozenBatchNorm2d": _frozen_batch_norm,
    "without gamma and beta": lambda: _frozen(nn.BatchNorm2d(C, affine=False)),
    **{form: (lambda form=form: Affine(form)) for form in ("x * s + b", "s * x + b", "b + x * s", "x.mul(s).add(b)")},
}


def _packed(norm: nn.Module) -> list[str]:
    """What the packed graph calls, with this norm between two binary layers."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(C, C, 3, padding=1) for _ in range(4)]
    model = nn.Sequential(*convolutions[:2], norm, *convolutions[2:]).eval()
    gm = bnnfx.convert(model, "xnor", example_inputs=(example(),))
    packed = bnnfx.lower(gm, (example(),))
    assert bnnfx.verify(gm, packed, (example(),))
    return [
        str(node.target) for node in packed.graph.nodes if node.op in ("call_function", "call_method", "call_module")
    ]


@pytest.mark.parametrize("name", AFFINE_MAPS)
def test_affine_maps_per_channel_fold_as_a_batch_norm_does(name):
    try:
        norm = AFFINE_MAPS[name]()
    except ImportError as missing:
        pytest.skip(str(missing))
    reference = _packed(_frozen(nn.BatchNorm2d(C)))
    assert any("threshold" in call for call in reference)
    assert _packed(norm) == reference
