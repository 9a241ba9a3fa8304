"""What ONNX Runtime fuses of what is exported."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import bnnfx


def optimized(path: Path) -> Counter[str]:
    """The operators that are left when ONNX Runtime has fused what it fuses."""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(bnnfx.library_path()))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize("opset", [18, 20])
def test_gelu_is_one_node(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3)]
    x = torch.randn(4, 5, 8)
    gm = bnnfx.convert(nn.Sequential(*layers), "xnor", example_inputs=(x,), config=bnnfx.Config(adapt=())).eval()
    path = bnnfx.export_onnx(gm, tmp_path / "m.onnx", example_inputs=(x,), opset=opset)
    operators = optimized(path)
    assert "Erf" not in operators and operators["Gelu"] + operators["BiasGelu"] == 2  # one folds into a threshold
    assert bnnfx.verify(gm, path, (x,))


class Products(nn.Module):
    """Products with constants: powers of two and others, read once and twice, and as an output."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(3)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.convs(x)
        twice, out = y.sin() * 4.0, y.cos() * 0.25
        return y * (y.tanh() * 0.5), y * (y.exp() * 0.3), (y * twice) + twice, y * out, out, (y * 2.0) * (y.abs() * 8.0)


def test_values_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 3)
    gm = bnnfx.convert(Products(), "xnor", example_inputs=(x,)).eval()
    packed = bnnfx.lower(gm, (x,))
    path = bnnfx.export_onnx(packed, tmp_path / "m.onnx")
    session = bnnfx.load(path)
    for found, expected in zip(session.run(x), packed(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=8 * torch.finfo().eps, atol=0)
