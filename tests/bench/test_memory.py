"""Memory is measured in a process of its own."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bnnfx
from bnnfx.bench.engines import Engine
from bnnfx.bench.memory import peak_memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def add_model(path, floats: int) -> Engine:
    weight = onnx.numpy_helper.from_array(np.ones(floats, np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [floats]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return Engine("onnxruntime", str(path))


def test_a_large_model_takes_what_it_holds(tmp_path):
    floats = 8 << 20  # 32 MiB
    small = peak_memory(add_model(tmp_path / "small.onnx", 16), 1, [np.zeros(16, np.float32)])
    large = peak_memory(add_model(tmp_path / "large.onnx", floats), 1, [np.zeros(floats, np.float32)])
    assert 0 < small < 32
    assert 64 <= large - small < 256  # weight and result, and not the input, which was there before


def test_failure_is_told(tmp_path):
    with pytest.raises(bnnfx.BenchmarkError, match=r"onnxruntime ended with status 1 and said: .*File doesn't exist"):
        peak_memory(Engine("onnxruntime", str(tmp_path / "missing.onnx")), 1, [])
