"""Inputs and outputs of every form: convert, lower and export keep them, and a file has their names."""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from helpers.models import Chain
from torch import Tensor, nn

import bnnfx
from bnnfx import ExampleInputError, ExportError
from bnnfx.graph.shapes import leaves_of

pytestmark = pytest.mark.filterwarnings("error::UserWarning:bnnfx")
X = torch.randn(4, 3, 8, 9, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A network inside of some forward."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.net = Chain()

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def net(forward: Callable[..., Any]) -> nn.Module:
    """A network whose forward is this function of itself and the inputs."""
    return type("Net", (Net,), {"forward": forward})()  # type: ignore[no-any-return]


class Pair(NamedTuple):
    """Two results."""

    logits: Tensor
    features: Any


@dataclasses.dataclass
class Output:
    """As transformers do it."""

    logits: Tensor
    hidden: Any = None
    loss: Any = None


def two(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x * 2.0


OUTPUTS: dict[str, tuple[Callable[..., Any], list[str] | None]] = {
    "input as output": (lambda s, x: (s.net(x), x), None),
    "input in a dictionary": (lambda s, x: {"logits": s.net(x), "image": x}, ["logits", "image"]),
    "None behind": (lambda s, x: (s.net(x), None), None),
    "None in front": (lambda s, x: (None, s.net(x)), None),
    "None in a dictionary": (lambda s, x: {"loss": None, "logits": s.net(x)}, ["logits"]),
    "one value twice": (lambda s, x: (lambda y: (y, y))(s.net(x)), None),
    "one value under two keys": (lambda s, x: (lambda y: {"a": y, "b": y})(s.net(x)), ["a", "b"]),
    "a list of one": (lambda s, x: [s.net(x)], None),
    "ordered dictionary": (lambda s, x: OrderedDict(z=s.net(x), a=x + 1.0), ["z", "a"]),
    "keys of other kinds": (lambda s, x: {"a b/c": s.net(x), 3: x * 2.0}, ["a b/c", "3"]),
    "nested": (lambda s, x: (lambda y: {"a": y, "b": [y * 2.0, {"c": y + 1.0}]})(s.net(x)), ["a", "b_0", "b_1_c"]),
    "tuple of dictionaries": (lambda s, x: ({"a": s.net(x)}, {"a": x * 2.0}), ["0_a", "1_a"]),
    "named tuple": (lambda s, x: Pair(*two(s.net(x))), ["logits", "features"]),
    "named tuple inside": (lambda s, x: (Pair(s.net(x), (x + 1.0, None)), x), ["0_logits", "0_features_0", ""]),
    "dataclass": (lambda s, x: Output(*two(s.net(x))), ["logits", "hidden"]),
    "dataclass by name": (lambda s, x: Output(hidden=x * 2.0, logits=s.net(x)), ["logits", "hidden"]),
    "name of the input": (lambda s, x: {"x": s.net(x)}, ["x_1"]),
    "names of layers": (
        lambda s, x: {"net_stem": s.net(x), "net_conv1_sign": x + 1.0},  # the second one names bits
        ["net_stem", "net_conv1_sign_1"],
    ),
}


def same_form(x: Any, y: Any) -> bool:
    """Whether two results are made alike, whatever the tensors in them hold."""
    if isinstance(x, dict):
        return list(x) == list(y) and all(same_form(x[key], y[key]) for key in x)
    if dataclasses.is_dataclass(x):
        return type(x) is type(y) and same_form(vars(x), vars(y))
    if isinstance(x, tuple | list):
        return type(x) is type(y) and len(x) == len(y) and all(map(same_form, x, y))
    return x is y is None or x.shape == y.shape


@pytest.mark.parametrize("dialect", ["bnnfx", "standard"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_keep_their_form_and_names(name: str, dialect: str, tmp_path: Path) -> None:
    forward, names = OUTPUTS[name]
    model = net(forward).eval()
    gm = bnnfx.convert(model, "xnor", example_inputs=(X,))
    packed = bnnfx.lower(gm, (X,))
    expected = model(X)
    assert same_form(expected, gm(X)) and same_form(expected, packed(X))
    path = bnnfx.export_onnx(packed, tmp_path / "model.onnx", dialect=dialect)
    session = bnnfx.load(path)
    given = session.run(X[:3])
    results = given if isinstance(given, tuple) else (given,)
    wanted = [y.numpy() for y in leaves_of(packed(X[:3]))]
    assert len(results) == len(wanted) > 0
    for result, want in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result, want, rtol=1e-5, atol=1e-5)
    found = [value.name for value in session.ort.get_outputs()]
    assert len(set(found)) == len(found)
    if names is not None:
        assert [have for have, want in zip(found, names, strict=True) if want] == [want for want in names if want]
    if dialect == "bnnfx":
        assert bnnfx.verify(gm, path, (X,)) and bnnfx.verify(packed, path, (X,))


# --- names that are asked for ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed() -> Any:
    """One input `x`, outputs `logits` and `features`."""
    return bnnfx.lower(bnnfx.convert(net(lambda s, x: Pair(*two(s.net(x)))), "xnor"), (X,))


@pytest.mark.parametrize("dialect", ["bnnfx", "standard"])
def test_names_that_are_asked_for(packed: Any, dialect: str, tmp_path: Path) -> None:
    names = {"input_names": ["image"], "output_names": ("classes", "net_stem")}  # one is that of a layer
    path = bnnfx.export_onnx(packed, tmp_path / "model.onnx", dialect=dialect, **names)
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["image"]
    assert [value.name for value in graph.output] == ["classes", "net_stem"]
    assert bnnfx.verify(packed, path, (X,))
    bnnfx.export(packed, path, dialect, **names)
    assert [value.name for value in onnx.load(path).graph.output] == ["classes", "net_stem"]


def test_inputs_and_outputs_may_change_names(packed: Any, tmp_path: Path) -> None:
    names = {"input_names": ["logits"], "output_names": ["x", "y"]}
    path = bnnfx.export_onnx(packed, tmp_path / "model.onnx", **names)
    assert [value.name for value in onnx.load(path).graph.output] == ["x", "y"]
    path = bnnfx.export_onnx(packed, tmp_path / "model.onnx", input_names=["logits"])  # the output gives way
    assert [value.name for value in onnx.load(path).graph.output] == ["logits_1", "features"]
    assert bnnfx.verify(packed, path, (X,))


# --- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (), (1, 4)], ids=str)
def test_input_without_the_batch(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Such as a temperature: its shape stays, and the batch of the others is free."""
    model = net(lambda s, x, t: s.net(x) * t)
    inputs = (X, torch.full(shape, 3.0))
    gm = bnnfx.convert(model, "xnor", example_inputs=inputs)
    packed = bnnfx.lower(gm, inputs)
    session = bnnfx.load(bnnfx.export_onnx(packed, tmp_path / "model.onnx"))
    assert [value.shape for value in session.ort.get_inputs()] == [["batch", 3, 8, 9], list(shape)]
    for samples in (1, 3):
        given = (X[:samples], torch.full(shape, 2.0))
        np.testing.assert_allclose(session.run(*given), packed(*given).numpy(), rtol=1e-5, atol=1e-5)
    for other in (packed, tmp_path / "model.onnx"):
        assert bnnfx.verify(gm.eval(), other, inputs)
    assert bnnfx.summary(packed).totals.binary_macs == bnnfx.summary(gm, inputs).totals.binary_macs > 0
    bnnfx.draw(gm, tmp_path / "model.svg", example_inputs=inputs)
    bnnfx.draw(packed, tmp_path / "model.svg")


def test_batch_that_the_model_makes(tmp_path: Path) -> None:
    """It runs; in a file, whose first axis is the batch, there is no room for it."""
    model = net(lambda s, x: s.net(x.unsqueeze(0)).squeeze(0))
    gm = bnnfx.convert(model, "xnor", example_inputs=(X[0],))
    packed = bnnfx.lower(gm, (X[0],))
    assert packed(X[0]).shape == (4,)
    with pytest.raises(ExportError, match="cannot be written as ONNX with a free batch size"):
        bnnfx.export_onnx(packed, tmp_path / "model.onnx")
    batched = bnnfx.convert(net(lambda s, x: s.net(x)), "xnor", example_inputs=(X[:1],))
    bnnfx.export_onnx(batched, tmp_path / "model.onnx", example_inputs=(X[:1],))


def masked(s: Any, x: Tensor, mask: Any = None, scale: float = 1.0) -> Tensor:
    y = s.net(x) * scale
    return y if mask is None else y * mask  # type: ignore[no-any-return]


def chosen(s: Any, x: Tensor, *, features: bool = False) -> Any:
    y = s.net(x)
    return (y, x) if features else y


LEFT_OUT: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "None": (masked, (X,)),
    "None at the end": (masked, (X, None)),
    "given": (masked, (X, torch.rand(4, 4))),
    "by keyword only": (chosen, (X,)),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_arguments_left_at_their_default(name: str, tmp_path: Path) -> None:
    forward, inputs = LEFT_OUT[name]
    model = net(forward).eval()
    given = tuple(x for x in inputs if x is not None)
    gm = bnnfx.convert(model, "xnor", example_inputs=inputs)
    assert gm(*given).shape == model(*inputs).shape == (4, 4)
    path = bnnfx.export_onnx(bnnfx.lower(gm, inputs), tmp_path / "model.onnx")
    assert len(bnnfx.load(path).ort.get_inputs()) == len(given)
    assert bnnfx.verify(gm, path, inputs)
    assert bnnfx.summary(model, inputs).totals.float_macs == bnnfx.summary(model.net, (X,)).totals.float_macs > 0
    bnnfx.draw(model, tmp_path / "model.svg", example_inputs=inputs)
    bnnfx.report([model, gm], tmp_path / "report.html", example_inputs=inputs)


def test_argument_that_was_left_out_is_no_input() -> None:
    """It would be ignored."""
    gm = bnnfx.convert(net(masked), "xnor", example_inputs=(X,))
    with pytest.raises(TypeError):
        gm(X, torch.rand(4, 4))
    with pytest.raises(ExampleInputError, match=r"takes 1 input\(s\) \(x\); example_inputs has 2"):
        bnnfx.lower(gm, (X, torch.rand(4, 4)))


def test_none_in_front_of_a_tensor() -> None:
    model = net(lambda s, x, mask=None, t=None: s.net(x) * t)
    with pytest.raises(ExampleInputError, match=r"None may only be last.*Let forward take what is given first"):
        bnnfx.convert(model, "xnor", example_inputs=(X, None, torch.ones(4, 1)))
    reordered = net(lambda s, x, t=None, mask=None: s.net(x) * t)
    bnnfx.convert(reordered, "xnor", example_inputs=(X, torch.ones(4, 1)))
