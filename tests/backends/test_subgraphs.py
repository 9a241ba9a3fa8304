"""Float parts with branches, which are graphs inside the graph of the file."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn

import bnnfx

FLOAT32_STEP = 2.0**-23


class Gate(nn.Module):
    """A branch with a weight and slices of its own, one that reads a value from outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.register_buffer("factor", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        def some(x: Tensor) -> Tensor:
            return self.conv(x)[:, :, 1:-1, 1:-1] * self.factor

        def others(x: Tensor) -> Tensor:
            return x[:, :, 2:, 2:] - 1.0

        return torch.cond(x.sum() > 0, some, others, (x,))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), Gate()
        self.b, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.gate(self.a(self.stem(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def packed() -> fx.GraphModule:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="'gate' is kept as a float leaf"):
        gm = bnnfx.convert(Net().eval(), "bireal", example_inputs=(torch.randn(2, 3, 12, 14),))
    return bnnfx.lower(gm, (torch.zeros(1, 3, 12, 14),))


@pytest.mark.parametrize("dialect", ["bnnfx", "standard"])
def test_leaf_with_branches(packed: fx.GraphModule, tmp_path: Path, dialect: str) -> None:
    path = bnnfx.export_onnx(packed, tmp_path / "net.onnx", dialect=dialect)
    model = onnx.load(path)
    (branches,) = [node for node in model.graph.node if node.op_type == "If"]
    slices = [[n.op_type for n in a.g.node].count("Slice") for a in branches.attribute]
    assert slices == [1, 1]  # rows and columns at once, as everywhere
    assert b"/site-packages/" not in path.read_bytes()
    stock = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator, taken = torch.Generator().manual_seed(1), set()
    for _ in range(8):
        x = torch.randn(3, 3, 12, 14, generator=generator)
        expected = packed(x)
        taken.add(bool(_gated(packed, x).sum() > 0))
        tolerance = 64 * FLOAT32_STEP * float(expected.abs().max())  # the stem's 27 taps, then a mean of 48 positions
        for given in (bnnfx.load(path).run(x), stock.run(None, {stock.get_inputs()[0].name: x.numpy()})[0]):
            assert np.abs(given - expected.numpy()).max() <= tolerance
        assert bnnfx.verify(packed, path, (x,))
    assert taken == {False, True}


def _gated(packed: fx.GraphModule, x: Tensor) -> Tensor:
    """What the gate reads."""
    seen: list[Tensor] = []
    handle = packed.get_submodule("gate").register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    packed(x)
    handle.remove()
    return seen[0]


def test_names_of_ours_are_free_in_branches(tmp_path: Path) -> None:
    """A value of the exporter's that is called as one of ours makes way, wherever it is."""

    class Named(Net):
        def __init__(self) -> None:
            super().__init__()
            self.getitem, self.mul = self.a, self.b  # the first norm's result; a product in a branch
            del self.a, self.b

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mul(self.gate(self.getitem(self.stem(x)))).mean((2, 3)))

    with pytest.warns(UserWarning, match="'gate' is kept as a float leaf"):
        config, x = bnnfx.Config(keep_float=("first",)), torch.randn(2, 3, 12, 14)
        gm = bnnfx.convert(Named().eval(), "xnor", config=config, example_inputs=(x,))
    packed = bnnfx.lower(gm, (torch.zeros(1, 3, 12, 14),))
    ours = {node.name for node in packed.graph.nodes if "binary_conv2d" in str(node.target)}
    assert {"getitem", "mul"} <= ours
    path = bnnfx.export_onnx(packed, tmp_path / "net.onnx")
    graph = onnx.load(path).graph
    branches = [a.g for node in graph.node if node.op_type == "If" for a in node.attribute]
    named = [(value, node.op_type) for g in (graph, *branches) for node in g.node for value in node.output]
    assert len(branches) == 2 and len(dict(named)) == len(named)
    assert all(dict(named)[name].startswith("BinaryConv2d") for name in ("getitem", "mul"))
    x = torch.randn(2, 3, 12, 14)
    assert bnnfx.verify(packed, path, (x,))
