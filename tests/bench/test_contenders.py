"""Who takes part, and that the int8 contender is what its name says."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnnfx.bench import contenders
from bnnfx.bench.engines import Engine, open_engine
from bnnfx.bench.inputs import feeds
from bnnfx.bench.model_forms import onnx_files
from bnnfx.bench.nodes import OnnxRuntimeProfile

OURS = ["bnnfx without kernels", "bnnfx with kernels"]


@pytest.fixture(scope="module")
def field(chain_files, tmp_path_factory) -> contenders.Field:
    files = onnx_files(chain_files / "chain.onnx", chain_files / "original.onnx", None)
    return contenders.gather(files, 0, tmp_path_factory.mktemp("int8"))


def products(path: str) -> Sequence[bool]:
    profile = OnnxRuntimeProfile(Engine("onnxruntime", path), 1, [np.ones((1, 3, 8, 8), np.float32)])
    profile()
    return [node.on_integers for node in profile.nodes() if node.is_product]


def test_int8_file_runs_on_integers_and_the_float_file_does_not(field):
    assert products(field.engines[contenders.INT8].path) == [True] * 5
    assert products(field.engines[contenders.FP32].path) == [False] * 5
    told = "ONNX Runtime int8: 5 of 5 convolutions and matrix products run on integers"
    assert told in field.notes


def test_activations_are_unsigned_and_weights_signed_per_channel(field):
    graph = onnx.load(field.engines[contenders.INT8].path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    activations = [constants[node.input[2]].dtype for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(activations) >= 5
    assert set(activations) == {np.dtype(np.uint8)}
    weights = [constants[name] for name in constants if name.endswith("weight_quantized")]
    assert [weight.dtype for weight in weights] == [np.dtype(np.int8)] * 5
    scales = {node.input[0]: constants[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert scales["conv2.weight_quantized"].shape == (16,)


def test_int8_results_are_those_of_the_float_file_nearly(field):
    given = feeds(onnx_files(Path(field.engines[contenders.FP32].path), None, None).inputs, 4, seed=5)
    exact, rounded = (open_engine(field.engines[name], 1, given)()[0] for name in (contenders.FP32, contenders.INT8))
    assert np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()
    assert not np.array_equal(exact, rounded)


def test_float_products_in_an_int8_file_are_told():
    assert contenders._share("int8", [True, False, False]).endswith(
        "1 of 3 convolutions and matrix products run on integers; 2 stay float"
    )


def test_reference_is_the_float_file(field, chain_files):
    assert list(field.engines)[:4] == [contenders.FP32, contenders.INT8, *OURS]
    assert field.reference == contenders.FP32
    assert field.engines[contenders.WITH_KERNELS].library is not None
    alone = contenders.gather(onnx_files(chain_files / "chain.onnx", None, None), 0, chain_files)
    assert list(alone.engines) == OURS
    assert alone.reference == contenders.WITHOUT_KERNELS


def test_float_file_alone(chain_files, tmp_path):
    field = contenders.gather(onnx_files(chain_files / "original.onnx", None, None), 0, tmp_path)
    assert list(field.engines)[:2] == [contenders.FP32, contenders.INT8]
    assert not set(OURS) & set(field.engines)


def test_missing_openvino_is_told(chain_files, tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    field = contenders.gather(onnx_files(chain_files / "original.onnx", None, None), 0, tmp_path)
    assert list(field.engines) == [contenders.FP32, contenders.INT8]
    assert contenders.NO_OPENVINO in field.notes
    assert "pip install" in contenders.NO_OPENVINO


def test_failed_quantization_is_told_without_our_folder(chain_files, tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise RuntimeError(f"cannot read {tmp_path}/prepared.onnx")

    monkeypatch.setattr(contenders, "quantize", fail)
    field = contenders.gather(onnx_files(chain_files / "original.onnx", None, None), 0, tmp_path)
    assert contenders.INT8 not in field.engines
    assert "ONNX Runtime int8 was skipped: cannot read .../prepared.onnx." in field.notes


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_takes_part_and_agrees(field):
    given = [np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)]
    ours, theirs = (open_engine(field.engines[name], 1, given) for name in (contenders.FP32, contenders.OPENVINO_FP32))
    expected, given_back = np.asarray(ours()[0]), np.asarray(next(iter(theirs().values())))
    # float32 sums of 128 terms at most, five layers deep
    assert np.abs(expected - given_back).max() <= 5 * 128 * 2.0**-23 * np.abs(expected).max()
    # matrix products that it fuses are not nodes any more
    (told,) = [note for note in field.notes if note.startswith("OpenVINO int8: ")]
    assert re.fullmatch(r"OpenVINO int8: ([345]) of \1 convolutions and matrix products run on integers", told)
