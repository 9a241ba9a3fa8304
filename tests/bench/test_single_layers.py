"""Single convolutions."""

from importlib.util import find_spec

import numpy as np
import onnx
import pytest

import bnnfx
from bnnfx.bench import single_layers
from bnnfx.bench.contenders import FP32, INT8, NO_OPENVINO, WITH_KERNELS
from bnnfx.bench.layer_files import USUAL, LayerShape, layer_files, openvino_layer
from bnnfx.bench.nodes import NodeTimes, OpenVinoProfile, binary_macs
from bnnfx.bench.timing import Effort

SMALL = LayerShape(64, 32, 3, 8)


@pytest.mark.parametrize(
    "text", ["", "64", "64,64,3", "64,64,3,56,1", "64,0,3,56", "-1,64,3,56", "a,b,c,d", "8,8,3,8:"]
)
def test_misspelled_layers(text):
    with pytest.raises(bnnfx.BenchmarkError, match="INPUTS,OUTPUTS,KERNEL,SIZE"):
        LayerShape.parse(text)


def test_stride_and_padding():
    assert LayerShape.parse(" 64,128,3,56:2 ") == LayerShape(64, 128, 3, 56, 2)
    assert [LayerShape(8, 8, kernel, 8).padding for kernel in (1, 3, 5)] == [0, 1, 2]


def test_macs_by_hand():
    assert [shape.macs for shape in USUAL] == [56 * 56 * 64 * 64 * 9] * 4
    assert LayerShape(3, 5, 1, 7, 2).macs == 4 * 4 * 5 * 3


def test_macs_are_those_of_the_node(tmp_path):
    shape = LayerShape(6, 10, 3, 9, 2)
    files = layer_files(shape, 0, tmp_path)
    model = onnx.load(files.ours)
    (node,) = [n for n in model.graph.node if n.op_type.startswith("BinaryConv2d")]
    assert binary_macs(model)(NodeTimes(node.name, node.op_type, "", (1, 9, 9, 8))) == shape.macs


def measure(folder, **changes):
    settings = {"threads": 1, "batch": 2, "effort": Effort(1.0, 3), "seed": 0, "folder": folder}
    return single_layers.measure_layer(SMALL, **settings | changes, notify=lambda text, part: None)


def test_every_engine_runs_the_layer_as_one_convolution(tmp_path):
    table = measure(tmp_path)
    rows = {row.name: row for row in table.rows}
    assert {FP32, INT8, WITH_KERNELS} <= set(rows)
    assert (rows[FP32].operator, rows[INT8].operator) == ("Conv", "QLinearConv")
    assert rows[WITH_KERNELS].operator.startswith("BinaryConv2d")
    for row in table.rows:
        assert len(row.samples) == 3
        assert row.milliseconds.median == pytest.approx(np.median(row.samples) / 2)
    ours = rows[WITH_KERNELS]
    assert ours.of_ceiling == pytest.approx(2 * SMALL.macs / (1e-3 * np.median(ours.samples)) / table.ceiling)
    assert rows[INT8].of_ceiling is None
    assert ours.around > 0
    assert rows[FP32].ratio.median == 1.0


def test_missing_openvino_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(single_layers, "find_spec", lambda name: None)
    table = measure(tmp_path)
    assert table.notes == [NO_OPENVINO]
    assert [row.name for row in table.rows] == [FP32, INT8, WITH_KERNELS]


def test_layer_that_is_no_single_node_is_refused():
    with pytest.raises(bnnfx.BenchmarkError, match="someone did not run the layer as one convolution; it ran Add, Mul"):
        single_layers._convolution("someone", [NodeTimes("a", "Add"), NodeTimes("b", "Mul")])


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_runs_a_binary_convolution():
    given = [np.ones((1, 64, 8, 8), np.float32)]
    profile = OpenVinoProfile(openvino_layer(SMALL, 1, 0), 1, "f32", given)
    profile()
    profile()
    (node,) = [node for node in profile.nodes() if node.is_convolution]
    assert node.op_type == "BinaryConvolution"
    assert node.implementation
    assert len(node.seconds) == 2


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_is_held_to_the_ceiling_of_the_whole_processor_only(tmp_path, monkeypatch):
    monkeypatch.delenv("BNNFX_ISA", raising=False)
    assert {row.name: row.of_ceiling for row in measure(tmp_path).rows}[single_layers.OPENVINO_BINARY] > 0
    monkeypatch.setattr(single_layers, "isas", lambda: ["a better one", "portable"])
    assert {row.name: row.of_ceiling for row in measure(tmp_path).rows}[single_layers.OPENVINO_BINARY] is None
