"""Float pools that round the number of their windows up: what torch computes, in ONNX Runtime, at every size."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

import bnnfx
from bnnfx import Config, ExportError
from bnnfx.backends.onnx.pool_windows import spell_out_windows

AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
FLOAT32_STEP = 2.0**-23


def model_of(kind: str, shape: tuple[int, ...], result: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    """One pool as torch's exporter writes it, with the result's shape that torch has."""
    node = helper.make_node(kind, ["x"], ["y"], name="pool", ceil_mode=1, **attributes)
    values = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", result)))
    graph = helper.make_graph([node], "pool", *([value] for value in values))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def spelled_out(model: onnx.ModelProto) -> onnx.ModelProto:
    spelled = ir.from_proto(model)
    spell_out_windows(spelled)
    proto = ir.to_proto(spelled)
    onnx.checker.check_model(proto, full_check=True)
    assert not any(attribute.name == "ceil_mode" for node in proto.graph.node for attribute in node.attribute)
    return proto


def run(model: onnx.ModelProto, x: Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": x.numpy()})
    assert isinstance(result, np.ndarray)
    return result


@st.composite
def windows(draw: st.DrawFn) -> dict[str, tuple[int, ...]]:
    rank = draw(st.integers(1, 3))
    axes = [(draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 9))) for _ in range(rank)]
    kernel, stride, size = zip(*axes, strict=True)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    dilation = tuple(draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in kernel)
    return {"size": size, "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}


@settings(max_examples=300, deadline=None)
@given(windows(), st.sampled_from(["MaxPool", "AveragePool"]), st.booleans(), st.integers(0, 2**31))
def test_windows_of_every_size(window: dict[str, tuple[int, ...]], kind: str, counts_padding: bool, seed: int) -> None:
    size, kernel, stride, padding, dilation = window.values()
    rank = len(size)
    # whole numbers, so that sums are exact
    x = torch.randint(-9, 10, (2, 3, *size), generator=torch.Generator().manual_seed(seed)).float()
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}
    try:
        if kind == "MaxPool":
            attributes["dilations"] = dilation
            expected = MAXIMA[rank](x, kernel, stride, padding, dilation, ceil_mode=True)
        else:
            attributes["count_include_pad"] = int(counts_padding)
            expected = AVERAGES[rank](x, kernel, stride, padding, True, counts_padding)
    except RuntimeError:  # no window fits
        assume(False)
    assume(expected.isfinite().all())  # a dilated window that steps over all of the map holds nothing
    given_ = run(spelled_out(model_of(kind, tuple(x.shape), tuple(expected.shape), **attributes)), x)
    event("rounded up" if expected.shape != rounded_down(x, window, kind).shape else "not rounded")
    assert given_.shape == expected.shape
    # a quotient, or a product with the rounded inverse
    tolerance = 0 if kind == "MaxPool" else 2 * FLOAT32_STEP * 9
    assert np.abs(given_ - expected.numpy()).max() <= tolerance


def rounded_down(x: Tensor, window: dict[str, tuple[int, ...]], kind: str) -> Tensor:
    _, kernel, stride, padding, dilation = window.values()
    try:
        if kind == "MaxPool":
            return MAXIMA[len(kernel)](x, kernel, stride, padding, dilation)
        return AVERAGES[len(kernel)](x, kernel, stride, padding)
    except RuntimeError:
        return x[:0]


POOLS = [
    nn.MaxPool2d(2, 3, ceil_mode=True),  # on 3x3, torch has one window and the formula of ONNX two
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.MaxPool2d((2, 3), (2, 4), (0, 1), (2, 1), ceil_mode=True),
    nn.AvgPool2d(2, 3, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    nn.LPPool2d(2, 2, 3, ceil_mode=True),
]


@pytest.mark.parametrize("pool", POOLS, ids=repr)
def test_whole_networks(pool: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1), pool).eval()
    size = (3, 3) if pool.stride == 3 else (6, 5)
    gm = bnnfx.convert(model, "xnor", config=Config(keep_float=("first", "last")))
    path = bnnfx.export_onnx(bnnfx.lower(gm, (torch.zeros(1, 3, *size),)), tmp_path / "m.onnx")
    for batch in (1, 5):
        assert bnnfx.verify(gm, path, (torch.randn(batch, 3, *size),))


def test_axis_whose_size_is_open() -> None:
    model = model_of("MaxPool", (1, 1, 5), (1, 1, 3), kernel_shape=[2], strides=[2])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "batch"
    with pytest.raises(ExportError, match="The pool 'pool' with ceil_mode works on an axis whose size is open"):
        spelled_out(model)


def test_indices_of_a_padded_map() -> None:
    """Where the padding is more than a pool can have itself, which shifts them."""
    model = model_of("MaxPool", (1, 1, 5), (1, 1, 2), kernel_shape=[2], strides=[4], dilations=[3])
    x = torch.randn(1, 1, 5)
    assert np.array_equal(run(spelled_out(model), x), F.max_pool1d(x, 2, 4, 0, 3, ceil_mode=True).numpy())
    model.graph.node[0].output.append("indices")
    model.graph.node.append(helper.make_node("Identity", ["indices"], ["z"]))
    with pytest.raises(ExportError, match="The pool 'pool' returns indices"):
        spelled_out(model)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_divisor_of_an_average(tmp_path: Path, ceil_mode: bool) -> None:
    pool = nn.AvgPool2d(2, ceil_mode=ceil_mode, divisor_override=3)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1), pool).eval()
    x = torch.zeros(1, 3, 5, 5)
    packed = bnnfx.lower(bnnfx.convert(model, "xnor"), (x,))
    with pytest.raises(ExportError, match="has divisor_override=3, and ONNX divides by the size of a window"):
        bnnfx.export_onnx(packed, tmp_path / "m.onnx")
