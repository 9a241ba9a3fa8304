"""A traced graph follows train() and eval() as the model does, whatever mode it came in."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnnfx
from bnnfx import ConversionError
from bnnfx.frontend.trace import trace
from bnnfx.nn.mode import CallByMode

IMAGE = (4, 3, 8, 8)


class Net(nn.Module):
    """What is tried, between two convolutions."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner, self.bn = nn.Conv2d(3, 8, 3), inner, nn.BatchNorm2d(8)
        self.conv, self.last = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(self.bn(self.inner(self.stem(x)))))  # type: ignore[no-any-return]


class Calls(nn.Module):
    """A function of the map and of the mode."""

    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.training)


class Statistics(nn.Module):
    """A batch norm called as a function on buffers of its own names."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.register_buffer("mu", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mu, self.var, self.scale, None, self.training)


class NormAct(nn.BatchNorm2d):
    """A batch norm with an activation inside."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x)) * 0.5


class DropPath(nn.Module):
    """As timm has it: a Python if, and a random mask."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.5)


class Cached(nn.Module):
    """What is computed of a parameter is kept for the next call: for ever, or as timm's attention biases are."""

    def __init__(self, for_ever: bool) -> None:
        super().__init__()
        self.weight, self.cache, self.for_ever = nn.Parameter(torch.randn(8)), dict[str, Tensor](), for_ever

    def train(self, mode: bool = True) -> nn.Module:
        if not self.for_ever:
            self.cache = {}
        return super().train(mode)

    def bias(self, x: Tensor) -> Tensor:
        return self.weight.exp().reshape(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.for_ever:
            return x + self.bias(x)
        device = "any" if self.for_ever else str(x.device)
        if device not in self.cache:
            self.cache[device] = self.bias(x)
        return x + self.cache[device]


INNER = {
    "cache": lambda: Cached(for_ever=True),
    "cache in evaluation": lambda: Cached(for_ever=False),
    "dropout2d": lambda: Calls(lambda x, training: F.dropout2d(x, 0.5, training)),
    "dropout by keyword": lambda: Calls(lambda x, training: F.dropout(x, training=training, p=0.3)),
    "another probability": lambda: Calls(lambda x, training: F.dropout(x, 0.5 if training else 0.0)),
    "alpha dropout": lambda: Calls(lambda x, training: F.alpha_dropout(x, 0.5, training)),
    "rrelu": lambda: Calls(lambda x, training: F.rrelu(x, 0.1, 0.3, training)),
    "another scale": lambda: Calls(lambda x, training: x * (2.0 if training else 3.0)),
    "Python if": lambda: Calls(lambda x, training: x * 2 if training else x.abs()),
    "drop path": DropPath,
    "batch norm as a function": Statistics,
    "subclass of a batch norm": lambda: NormAct(8),
}


def results(module: nn.Module, x: Tensor, training: bool) -> list[Tensor]:
    module.train(training)
    torch.manual_seed(5)
    with torch.no_grad():
        return [module(x), *(buffer.clone() for _, buffer in sorted(module.named_buffers()))]


@pytest.mark.parametrize("came_in", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", INNER)
def test_both_modes(name: str, came_in: bool) -> None:
    torch.manual_seed(0)
    model = Net(INNER[name]()).train(came_in)
    state = copy.deepcopy(model.state_dict())
    gm, *_ = trace(model)
    assert gm.training is came_in
    x = torch.randn(IMAGE)
    for training in (came_in, not came_in, came_in):
        expected, given = results(copy.deepcopy(model), x, training), results(copy.deepcopy(gm), x, training)
        assert len(expected) == len(given)
        assert all(torch.equal(a, b) for a, b in zip(expected, given, strict=True))
    assert {*gm.state_dict()} == {*state}
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_subclass_of_a_batch_norm_is_a_batch_norm_and_what_follows() -> None:
    gm, remarks, _ = trace(Net(NormAct(8)))
    assert type(gm.get_submodule("inner")) is nn.BatchNorm2d and remarks == []
    assert {*gm.state_dict()} == {*Net(NormAct(8)).state_dict()}


@pytest.mark.parametrize("name", ["cache", "cache in evaluation"])
def test_cache_is_no_obstacle(name: str) -> None:
    model = Net(INNER[name]())
    gm, remarks, _ = trace(model)
    assert remarks == [] and any(node.target == "inner.weight" for node in gm.graph.nodes)
    assert model.inner.cache == {}


def test_leaf_keeps_nothing_of_the_trace_that_failed() -> None:
    class Branching(Cached):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    model = Net(Branching(for_ever=True)).eval()
    gm, remarks, _ = trace(model)
    assert [remark.subject for remark in remarks] == ["inner"]
    x = torch.randn(IMAGE)
    assert gm.get_submodule("inner").cache == {} and torch.equal(gm(x), model(x))


def test_drop_path_is_no_obstacle() -> None:
    gm = bnnfx.convert(Net(DropPath()), "xnor", example_inputs=(torch.randn(IMAGE),))
    packed = bnnfx.lower(gm.eval(), (torch.randn(IMAGE),))
    assert not any(isinstance(module, DropPath) for module in packed.modules())


def test_function_with_other_arguments_is_settled_when_lowered() -> None:
    model = Net(INNER["another scale"]())
    gm = bnnfx.convert(model, "xnor", example_inputs=(torch.randn(IMAGE),))
    assert sum(isinstance(module, CallByMode) for module in gm.modules()) == 1
    packed = bnnfx.lower(gm, (torch.randn(IMAGE),))
    assert not any(isinstance(module, CallByMode) for module in packed.modules())
    x = torch.randn(IMAGE)
    assert bnnfx.verify(gm, packed, (x,))


def test_model_that_takes_another_path_in_training_is_said_to() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.extra = Net(nn.Identity()), nn.Conv2d(3, 4, 5)

        def forward(self, x: Tensor) -> object:
            return (self.net(x), self.extra(x)) if self.training else self.net(x)

    for training in (True, False):
        with pytest.warns(UserWarning, match="converted for one mode only"):
            gm = bnnfx.convert(Auxiliary().train(training), "xnor")
        assert isinstance(gm(torch.randn(IMAGE)), tuple) is training


class Head(Net):
    """An auxiliary head, a submodule of several layers, which is called in training only."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = self.last(self.conv(self.bn(x)))
        return (y, self.head(x)) if self.training else y


def test_submodule_that_evaluation_does_not_call_is_none_that_gives_its_input() -> None:
    x = torch.randn(IMAGE)
    model = Head().train()
    with pytest.warns(UserWarning, match="converted for one mode only"):
        gm = bnnfx.convert(model, "xnor", example_inputs=(x,))
    found = {layer.name: layer.binarized for layer in bnnfx.explain(gm).layers}
    assert found["head.0"] and found["conv"]
    packed = bnnfx.lower(gm, (x,))
    assert [tuple(y.shape) for y in packed(x)] == [tuple(y.shape) for y in model(x)]


class FrozenNorm(Net):
    """Its own `train()` keeps the batch norm in evaluation, and returns nothing."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self.bn.eval()
        self.inner.eval()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_own_train_is_followed_in_both_modes(training: bool) -> None:
    """The values agree with those of the model, whose check would fail otherwise; and so after a copy."""
    inner = Calls(lambda x, training: F.dropout2d(x, 0.5, training))
    model = FrozenNorm(nn.Sequential(inner, nn.BatchNorm2d(8), nn.Dropout(0.5)))
    x = torch.randn(IMAGE)
    gm = copy.deepcopy(bnnfx.convert(model, "xnor", example_inputs=(x,)))
    gm.train(training)
    assert (gm.training, gm.bn.training, gm.conv.training) == (training, False, training)
    traced = copy.deepcopy(trace(model).gm)
    for module in (model, traced):
        module.train(training)
    torch.testing.assert_close(traced(x), model(x))


def test_tensors_that_forward_makes() -> None:
    """The same ones in both modes are one attribute; a tensor that has other values in training is not."""
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))
    model = Net(Calls(lambda y, training: y * torch.linspace(-1, 1, 8).view(8, 1, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm, leaves, modes = trace(model)
    assert leaves == [] and modes == (False, True)
    assert [torch.equal(gm.train(mode)(x), model.train(mode)(x)) for mode in (False, True)] == [True, True]
    other = Net(Calls(lambda y, training: y * (torch.zeros(1) if training else torch.ones(1))))
    gm, leaves, _ = trace(other)
    assert [leaf.subject for leaf in leaves] == ["inner"]
    assert [torch.equal(gm.train(mode)(x), other.train(mode)(x)) for mode in (False, True)] == [True, True]


def test_a_forward_without_inputs_has_nothing_to_binarize() -> None:
    class Alone(Net):
        def forward(self) -> Tensor:  # type: ignore[override]
            return self.conv(torch.ones(1, 8, 3, 3))  # type: ignore[no-any-return]

    with pytest.raises(ConversionError, match="Nothing in this model can be binarized"):
        bnnfx.convert(Alone(nn.ReLU()), "xnor", example_inputs=())
