"""What the file of a whole network looks like inside: nothing but fused nodes between the first layer and the last."""

import warnings
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import bnnfx
from bnnfx import Config
from bnnfx._torchvision import import_torchvision
from bnnfx.ops.packed_op import ONNX_DOMAIN

ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Sum", "Neg", "Abs", "Relu", "Clip", "PRelu", "LeakyRelu", "Where", "Min", "Max"),
    *("BatchNormalization", "Greater", "GreaterOrEqual", "Less", "Sign", "Cast"),
}


@pytest.fixture(scope="module")
def torchvision() -> object:
    try:
        return import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def resnet18(torchvision: object, scheme: str, x: Tensor, **options: object) -> fx.GraphModule:
    """Packed, with batch norms whose gamma has both signs, and calibrated."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prime fan-in
        gm = bnnfx.convert(model, scheme, config=Config(options=options))
    generator = torch.Generator().manual_seed(2)
    for module in gm.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.copy_(torch.randn(module.num_features, generator=generator))
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator))
    bnnfx.calibrate(gm.eval(), [torch.randn(2, 3, 64, 64, generator=generator)])
    packed = bnnfx.lower(gm, (x[:1],))
    against = bnnfx.verify(gm, packed, (x,))
    assert against and len(against.nodes) == 16, str(against)
    return packed


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def region(path: Path) -> list[str]:
    """Operators from the first binary convolution to the last."""
    names = kinds(path)
    places = [i for i, name in enumerate(names) if name.startswith("BinaryConv2d")]
    return names[places[0] : places[-1] + 1]


def assert_equal_everywhere(packed: fx.GraphModule, path: Path, x: Tensor) -> None:
    """With kernels, without, and as standard operators."""
    standard = bnnfx.export_onnx(packed, path.with_suffix(".standard.onnx"), dialect="standard")
    assert {node.domain for node in onnx.load(standard).graph.node} == {""}
    for file, kernels in ((path, True), (path, False), (standard, True)):
        result = bnnfx.verify(packed, file, (x,), kernels=kernels)
        assert result and len(result.nodes) == 16, str(result)


def test_bireal(torchvision: object, x: Tensor, tmp_path: Path) -> None:
    packed = resnet18(torchvision, "bireal", x)
    path = bnnfx.export_onnx(packed, tmp_path / "bireal.onnx")
    count = Counter(kinds(path))
    assert {name: n for name, n in count.items() if name.startswith("BinaryConv2d")} == {
        "BinaryConv2dAddFloatBits": 15,
        "BinaryConv2dAddFloat": 1,
    }
    assert (count["Transpose"], count["Pack"], count["PackNhwc"]) == (1, 0, 1)
    # the shortcuts: every other pixel, as rows, times a matrix, as a map
    inside = Counter(region(path))
    assert not set(inside) & ELEMENTWISE
    assert set(inside) <= {"BinaryConv2dAddFloatBits", "BinaryConv2dAddFloat", "Slice", "MatMul"}
    assert (inside["Slice"], inside["MatMul"]) == (3, 3)  # rows and columns in one slice
    for node in onnx.load(path).graph.node:
        if node.domain == ONNX_DOMAIN and "Add" in node.op_type:
            assert len(node.input) == 6 if node.op_type.endswith("Bits") else len(node.input) == 5
    assert_equal_everywhere(packed, path, x)


def test_xnor(torchvision: object, x: Tensor, tmp_path: Path) -> None:
    """Without the shortcut around every convolution, every other one gives bits alone, decided by integers."""
    packed = resnet18(torchvision, "xnor", x)
    path = bnnfx.export_onnx(packed, tmp_path / "xnor.onnx")
    count = Counter(kinds(path))
    assert {name: n for name, n in count.items() if name.startswith("BinaryConv2d")} == {
        "BinaryConv2dThreshold": 8,
        "BinaryConv2dAddFloatBits": 7,
        "BinaryConv2dAddFloat": 1,
    }
    assert count["Transpose"] == 1
    assert not set(region(path)) & ELEMENTWISE
    assert_equal_everywhere(packed, path, x)


@pytest.mark.parametrize("centre", [False, True])
def test_rbnn(torchvision: object, x: Tensor, tmp_path: Path, centre: bool) -> None:
    """Centring compares with the mean of the sample: one mean and one comparison per layer, on channels-last maps."""
    packed = resnet18(torchvision, "rbnn", x, centre=centre)
    path = bnnfx.export_onnx(packed, tmp_path / "rbnn.onnx")
    count, inside = Counter(kinds(path)), Counter(region(path))
    binary = [name for name in kinds(path) if name.startswith("BinaryConv2d")]
    assert len(binary) == 16 and not set(inside) & ELEMENTWISE
    assert (count["Transpose"], count["Pack"]) == (1, 0)
    if centre:
        assert (inside["PackNhwc"], inside["ReduceMean"]) == (15, 15)
        assert not [name for name in binary if name.endswith("Bits")]
    else:
        assert (inside["PackNhwc"], inside["ReduceMean"]) == (0, 0)
    assert_equal_everywhere(packed, path, x)
