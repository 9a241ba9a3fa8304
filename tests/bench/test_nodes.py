"""Profiles of nodes, and the work of a binary convolution."""

import numpy as np
import onnx
import pytest
from onnx import helper

import bnnfx
from bnnfx.bench.engines import Engine
from bnnfx.bench.nodes import NodeTimes, OnnxRuntimeProfile, binary_macs, convolution_macs, tabulate

PLAIN = {"channels": 3, "groups": 1, "strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1]}


def node(**attributes: object) -> onnx.NodeProto:
    return helper.make_node("BinaryConv2d", ["x", "w"], ["y"], name="c", domain="ai.bnnfx", **attributes)


def test_macs_by_hand():
    # 2 images of 4x4 outputs, 5 channels; each output sums 3x3 taps of 3 channels
    assert convolution_macs(node(**PLAIN), (5, 3, 3, 8), (2, 4, 4, 8)) == 2 * 4 * 4 * 5 * 3 * 3 * 3
    # rows: (7 + 1 + 0 - 3) // 2 + 1 = 3; columns: (9 + 2 + 1 - (3 * (2 - 1) + 1)) // 1 + 1 = 9; 12 / 4 channels
    odd = {"channels": 12, "groups": 4, "strides": [2, 1], "pads": [1, 2, 0, 1], "dilations": [1, 3]}
    assert convolution_macs(node(**odd), (8, 3, 2, 8), (1, 7, 9, 8)) == 3 * 9 * 8 * 3 * 2 * 3


def test_macs_of_other_nodes_are_unknown():
    weight = onnx.numpy_helper.from_array(np.zeros((5, 3, 3, 8), np.uint8), "w")
    graph = helper.make_graph([node(**PLAIN)], "g", [], [], [weight])
    macs = binary_macs(helper.make_model(graph))
    assert macs(NodeTimes("c", "BinaryConv2d", input_shape=(1, 4, 4, 8))) == 4 * 4 * 5 * 3 * 3 * 3
    assert macs(NodeTimes("another", "Conv", input_shape=(1, 4, 4, 8))) is None


@pytest.fixture(scope="module")
def profiled(chain_files) -> list[NodeTimes]:
    engine = Engine("onnxruntime", str(chain_files / "chain.onnx"), library=str(bnnfx.library_path()))
    profile = OnnxRuntimeProfile(engine, 1, [np.zeros((2, 3, 8, 8), np.float32)])
    for _ in range(3):
        profile()
    return profile.nodes()


def test_profile_has_every_node_once_with_a_time_per_run(profiled):
    assert len({node.name for node in profiled}) == len(profiled) > 5
    assert all(len(node.seconds) == 3 for node in profiled)
    assert sum(sum(node.seconds) for node in profiled) > 0
    convolutions = [node for node in profiled if node.op_type.startswith("BinaryConv2d")]
    assert [node.input_shape for node in convolutions] == [(2, 8, 8, 8), (2, 8, 8, 8), (2, 2, 2, 8)]


def test_tabulate_separates_ours_from_the_others(profiled, chain_files):
    model = onnx.load(chain_files / "chain.onnx")
    timed = [NodeTimes(n.name, n.op_type, "", n.input_shape, [2e-6, 4e-6, 90e-6]) for n in profiled]
    rows, others = tabulate(timed, model, ceiling=1e9)
    assert [row.name for row in rows] == [n.name for n in model.graph.node if n.domain == "ai.bnnfx"]
    assert sum(other.count for other in others) == len(profiled) - len(rows) > 0
    assert sum(row.share for row in rows) + sum(other.share for other in others) == pytest.approx(1.0)
    assert [other.milliseconds for other in others] == sorted((o.milliseconds for o in others), reverse=True)
    binary = [row for row in rows if row.op_type.startswith("BinaryConv2d")]
    # two images; 8 channels to 8 and, with stride 2, to 16, by 3x3; then a linear layer of 64 by 16
    assert [row.macs for row in binary] == [2 * 8 * 8 * 8 * 8 * 9, 2 * 4 * 4 * 16 * 8 * 9, 2 * 64 * 16]
    for row in binary:
        assert row.milliseconds.median == pytest.approx(0.004)
        assert row.of_ceiling == pytest.approx(row.macs / 4e-6 / 1e9)
    assert all(row.macs is None and row.of_ceiling is None for row in rows if row not in binary)


def test_nothing_is_said_of_an_unknown_ceiling(profiled, chain_files):
    rows, _ = tabulate(profiled, onnx.load(chain_files / "chain.onnx"), ceiling=None)
    assert [row.of_ceiling for row in rows] == [None] * len(rows)
