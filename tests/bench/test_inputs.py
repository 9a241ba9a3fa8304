"""Reading the inputs of a file, and making values for them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bnnfx
from bnnfx.bench.inputs import Input, feeds, read_inputs


def model(*values: onnx.ValueInfoProto) -> onnx.ModelProto:
    constant = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "constant")
    listed = [*values, helper.make_tensor_value_info("constant", TensorProto.FLOAT, [1])]
    return helper.make_model(helper.make_graph([], "g", listed, [], [constant]))


def value(name: str, shape: list[int | str | None], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def test_inputs_without_constants_in_order():
    given = model(value("b", ["n", 3, 8, 9]), value("a", [4, 5], TensorProto.INT64))
    assert read_inputs(given, "m", None) == (Input("b", (None, 3, 8, 9), "float32"), Input("a", (4, 5), "int64"))


def test_open_rows_and_columns_take_the_size():
    given = model(value("x", ["n", 3, "rows", 7]))
    assert read_inputs(given, "m", 5)[0].shape == (None, 3, 5, 7)
    with pytest.raises(bnnfx.BenchmarkError, match=r"'x' of m is \[n, 3, rows, 7\].*--size"):
        read_inputs(given, "m", None)


def test_other_open_sizes_are_refused_whatever_the_size():
    for shape in (["n", "c", 8, 8], ["n", "length"], ["n", None, 4]):
        with pytest.raises(bnnfx.BenchmarkError, match="fix them in the file"):
            read_inputs(model(value("x", shape)), "m", 5)


def test_strings_are_refused():
    with pytest.raises(bnnfx.BenchmarkError, match="'x' of m is of type object"):
        read_inputs(model(value("x", [1], TensorProto.STRING)), "m", None)


def test_feeds_repeat_with_the_seed():
    inputs = (Input("x", (None, 2), "float32"), Input("i", (None, 50), "int64"), Input("b", (None,), "bool"))
    first, again, other = (feeds(inputs, 3, seed) for seed in (0, 0, 1))
    assert [(x.shape, x.dtype.name) for x in first] == [((3, 2), "float32"), ((3, 50), "int64"), ((3,), "bool")]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert set(np.unique(first[1])) == {0, 1}


def test_another_batch_than_the_file_has_is_refused():
    inputs = (Input("x", (2, 3), "float32"),)
    assert feeds(inputs, 2, 0)[0].shape == (2, 3)
    with pytest.raises(bnnfx.BenchmarkError, match=r"batch size of 2 in the file; --batch asks for 8.*--batch 2"):
        feeds(inputs, 8, 0)
