"""Functions that torch.fx is to call as a whole, given weights of modules: layers where they can be traced into."""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnnfx
from bnnfx._torchvision import import_torchvision
from bnnfx.frontend.trace import trace
from bnnfx.graph.dataflow import calls

WIDTH = 8


@fx.wrap
def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(torch.tanh(x), weight, bias)


@fx.wrap
def of_sizes(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.shape[-2] % 2:
        x = F.pad(x, (0, 0, 0, 1))
    return F.linear(x.reshape(x.shape[0], x.shape[1] // 2, 2, WIDTH), weight, bias).flatten(1, 2)


@fx.wrap
def several(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return F.linear(x, weight, bias), x


@fx.wrap
def nested(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return plain(x, weight, bias) + several(x, weight, bias)[0]


@fx.wrap
def given_back(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x if weight is None else torch.relu(plain(x, weight, bias) - 0.1)


@fx.wrap
def without_a_part_of_the_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    bias = bias.clone()
    third = bias.numel() // 4
    bias[third : 2 * third].zero_()
    return F.linear(x, weight, bias)


@fx.wrap
def of_values(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias) if weight.abs().max() > 0 else x


@fx.wrap
def of_training(x: Tensor, weight: Tensor, bias: Tensor | None, training: bool) -> Tensor:
    return F.linear(x, weight, bias) * 2 if training else F.linear(x, weight, bias)


@fx.wrap
def unlike_its_trace(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x if isinstance(x, Tensor) else x * x, weight, bias)


@fx.wrap
def as_a_dictionary(x: Tensor, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    return {"y": F.linear(x, weight, bias)}


class Calls(nn.Module):
    """A module that gives the weights of `inner` to a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.function = nn.Linear(WIDTH, WIDTH), function.__name__

    def forward(self, x: Tensor) -> Any:
        more = (self.training,) if self.function == "of_training" else ()
        # by its name in the module, which is where torch.fx takes its place
        result = globals()[self.function](x, self.inner.weight, self.inner.bias, *more)
        if self.function == "several":
            return result[0] + result[1]
        return result["y"] if self.function == "as_a_dictionary" else result


def network(function: Callable[..., Any]) -> nn.Sequential:
    torch.manual_seed(0)
    calls = Calls(function)
    return nn.Sequential(nn.Linear(4, WIDTH), calls, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3))


X = torch.randn(2, 5, 4)
TRACED = (plain, of_sizes, several, nested, given_back, without_a_part_of_the_bias)
WHOLE = (of_values, of_training, unlike_its_trace, as_a_dictionary)


def whole_calls(gm: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in gm.graph.nodes if any(calls(node, function) for function in TRACED + WHOLE)]


@pytest.mark.parametrize("function", TRACED)
def test_traced_into(function: Callable[..., Any], tmp_path: Path) -> None:
    """Through the whole chain, without a warning, and for another batch than that of the examples."""
    model = network(function)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = bnnfx.convert(model, "xnor", example_inputs=(X,)).eval()
    assert bnnfx.explain(gm)["1.inner"].binarized and not whole_calls(gm)
    assert not gm.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    bnnfx.export_onnx(gm, tmp_path / "m.onnx", example_inputs=(X,))
    assert bnnfx.verify(gm, tmp_path / "m.onnx", (torch.randn(3, 5, 4),))


@pytest.mark.parametrize("function", WHOLE)
def test_called_as_a_whole(function: Callable[..., Any]) -> None:
    """A function that cannot be traced into stays one call, and is no reason to keep the module around it."""
    gm = bnnfx.convert(network(function), "xnor", example_inputs=(X,))
    called = [*whole_calls(gm), *(str(m.function) for m in gm.modules() if type(m).__name__ == "CallByMode")]
    assert len(called) == 1 and function.__name__ in called[0]
    assert not bnnfx.explain(gm)["1.inner"].binarized and bnnfx.explain(gm)["3"].binarized


def test_one_that_fails_leaves_the_others() -> None:
    model = nn.Sequential(network(plain), nn.Linear(3, 4), network(of_values))
    gm = bnnfx.convert(model, "xnor", example_inputs=(X,))
    assert bnnfx.explain(gm)["0.1.inner"].binarized and not bnnfx.explain(gm)["2.1.inner"].binarized


def test_without_weights_it_is_called_as_a_whole() -> None:
    class Computed(Calls):
        def forward(self, x: Tensor) -> Any:
            return plain(x, self.inner.weight.abs(), None)

    assert len(whole_calls(trace(Computed(plain)).gm)) == 1


def test_pickled_and_copied() -> None:
    """What is traced into stays so, and what is called as a whole, too, where a graph is traced again."""
    for function in (given_back, several, of_values):
        gm = trace(network(function), example_inputs=(X,)).gm.eval()
        for again in (copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
            assert whole_calls(again) == whole_calls(gm)
            assert torch.equal(again(X), gm(X))


@pytest.mark.parametrize("second", [False, True])
def test_windows_of_torchvision(second: bool, tmp_path: Path) -> None:
    models = import_torchvision().models.swin_transformer
    kinds = {"block": models.SwinTransformerBlockV2, "downsample_layer": models.PatchMergingV2} if second else {}
    torch.manual_seed(0)
    model = models.SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=5, **kinds)
    x = torch.randn(2, 3, 40, 40)
    gm = bnnfx.convert(model, "xnor", example_inputs=(x,)).eval()
    rows = bnnfx.explain(gm).layers
    assert {row.name for row in rows if not row.binarized} == {"features.0.0", "head"}
    bnnfx.export_onnx(gm, tmp_path / "m.onnx", example_inputs=(x,))
    assert bnnfx.verify(gm, tmp_path / "m.onnx", (torch.randn(3, 3, 40, 40),))
