"""The standard-operator bodies give the bits of the numpy reference, in every way that a runtime has to run them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnnfx.export.functions import OLDEST_OPSET, function_protos
from bnnfx.numerics.bits import pack_bits
from bnnfx.ops import OPSET_VERSION, PACKED_OPS
from bnnfx.ops.registry import ONNX_DOMAIN

OPS = {op.onnx_name: op for op in PACKED_OPS}
INT32 = np.iinfo(np.int32)
Array = NDArray[Any]


@dataclass
class Case:
    """One node: `x` is the graph input, `constants` are initializers, `attributes` are spelled as in ONNX."""

    name: str
    x: Array
    constants: dict[str, Array] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def expected(self) -> Array:
        op = OPS[self.name]
        attributes = dict(self.attributes)
        if "pads" in attributes:
            top, left, bottom, right = attributes["pads"]
            assert (top, left) == (bottom, right), "the torch operators take one number per axis"
            attributes["pads"] = [top, left]
        tensors = [torch.from_numpy(np.ascontiguousarray(t)) for t in (self.x, *self.constants.values())]
        result = op.target(*tensors, *(attributes[name] for name in op.attributes))
        return np.asarray(result.numpy())

    def model(self, *, opset: int = OLDEST_OPSET, open_map: bool = False) -> onnx.ModelProto:
        expected = self.expected()
        sizes: list[Any] = ["N", *self.x.shape[1:]]
        result: list[Any] = ["N", *expected.shape[1:]]
        if open_map:
            # rows and columns are known only when the model runs
            spatial = (2, 3) if self.name == "Pack" else (1, 2)
            sizes = [f"in{axis}" if axis in spatial else size for axis, size in enumerate(sizes)]
            result = ["N", "d1", "d2", "d3"]
        node = helper.make_node(self.name, ["x", *self.constants], ["y"], domain=ONNX_DOMAIN, **self.attributes)
        graph = helper.make_graph(
            [node],
            "case",
            [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(self.x.dtype), sizes)],
            [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(expected.dtype), result)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        imports = [helper.make_opsetid("", opset), helper.make_opsetid(ONNX_DOMAIN, OPSET_VERSION)]
        return helper.make_model(graph, opset_imports=imports, functions=function_protos(opset), ir_version=10)


def run_ort(model: onnx.ModelProto, x: Array) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def run_inlined(model: onnx.ModelProto, x: Array) -> Array:
    inlined = inliner.inline_local_functions(model)
    assert not inlined.functions
    assert {node.domain for node in inlined.graph.node} == {""}
    return run_ort(inlined, x)


def run_reference(model: onnx.ModelProto, x: Array) -> Array:
    outputs: Any = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(outputs[0])


def assert_same(actual: Array, expected: Array) -> None:
    """Equal in type, shape and every bit; so 0.0 and -0.0 differ."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    raw = np.dtype(f"u{expected.dtype.itemsize}")
    differing = np.argwhere(np.ascontiguousarray(actual).view(raw) != np.ascontiguousarray(expected).view(raw))
    assert len(differing) == 0, f"{len(differing)} of {expected.size} differ, first at {differing[0]}"


def check(case: Case, *runs: Callable[[onnx.ModelProto, Array], Array], **model_options: Any) -> None:
    model, expected = case.model(**model_options), case.expected()
    assert runs
    for run in runs:
        assert_same(run(model, case.x), expected)


def random_bits(rng: np.random.Generator, *shape: int) -> Array:
    return pack_bits(rng.random(shape) < 0.5)


def geometry(pad: Sequence[int], stride: Sequence[int] = (1, 1), dilation: Sequence[int] = (1, 1)) -> dict[str, Any]:
    return {"strides": list(stride), "pads": [*pad, *pad], "dilations": list(dilation)}


def thresholds(rng: np.random.Generator, count: int, taps: int) -> Array:
    """Mostly values that accumulators take, and values that none of them reaches."""
    values = rng.integers(-taps // 4 - 1, taps // 4 + 2, count)
    hazards = [INT32.min, INT32.max, taps, taps + 1, -taps, -taps - 1, 2**24 + 1, 0]
    chosen = rng.random(count) < 0.3
    values[chosen] = rng.choice(hazards, int(chosen.sum()))
    return values.astype(np.int32)


def conv_case(
    rng: np.random.Generator,
    name: str,
    channels: int,
    out: int,
    groups: int,
    kernel: Sequence[int],
    size: Sequence[int],
    window: dict[str, Any],
    batch: int = 2,
) -> Case:
    rows = channels // groups
    taps = rows * kernel[0] * kernel[1]
    constants = {"weight": random_bits(rng, out, *kernel, rows)}
    if name == "BinaryConv2d":
        # 0, negative, and magnitudes whose products and sums round
        constants["scale"] = (rng.standard_normal(out) * rng.choice([0, 1, 1e-3, 1e3], out)).astype(np.float32)
        constants["bias"] = rng.choice([0.0, -0.0, 0.1, -1e4, 3.3], out).astype(np.float32)
    else:
        constants["threshold"] = thresholds(rng, out, taps)
        constants["flip"] = pack_bits(rng.random(out) < 0.5)
    attributes = {"channels": channels, **window, "groups": groups}
    return Case(name, random_bits(rng, batch, *size, channels), constants, attributes)


def random_conv_case(seed: int, name: str) -> Case:
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    channels = groups * int(rng.choice([1, 3, 8, 21, 63, 64, 65, 130]))
    out = groups * int(rng.choice([1, 5, 22, 64, 65]))
    kernel = rng.integers(1, 8, 2)
    dilation = np.where(kernel < 5, rng.integers(1, 3, 2), 1)
    pad = rng.integers(0, kernel // 2 + 2)
    reach = dilation * (kernel - 1) + 1
    size = np.maximum(1, reach - 2 * pad) + rng.integers(0, 5, 2)
    window = geometry(pad.tolist(), rng.integers(1, 4, 2).tolist(), dilation.tolist())
    return conv_case(rng, name, channels, out, groups, kernel.tolist(), size.tolist(), window, int(rng.integers(1, 4)))


CONVOLUTIONS = ("BinaryConv2d", "BinaryConv2dThreshold")
# channels, output channels, groups, kernel, map, geometry
CORNERS = {
    "one channel": (1, 1, 1, (3, 3), (5, 4), geometry((1, 1))),
    "depthwise": (66, 66, 66, (3, 3), (5, 5), geometry((1, 1))),
    "linear layer": (130, 10, 1, (1, 1), (1, 1), geometry((0, 0))),
    "map of one pixel": (64, 65, 1, (3, 3), (1, 1), geometry((1, 1))),
    "windows in the padding only": (9, 8, 1, (1, 1), (2, 3), geometry((2, 1))),
    "downsampling": (64, 128, 1, (1, 1), (7, 6), geometry((0, 0), (2, 2))),
    "groups across words": (192, 6, 3, (3, 3), (6, 6), geometry((1, 1), (2, 2))),
    "groups inside a byte": (12, 8, 4, (2, 3), (6, 5), geometry((0, 1))),
    "stem": (3, 64, 1, (7, 7), (15, 14), geometry((3, 3), (2, 2))),
    "dilated": (65, 7, 1, (3, 3), (9, 8), geometry((2, 2), (1, 2), (2, 2))),
    "many taps": (520, 9, 1, (5, 5), (5, 5), geometry((2, 2))),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("corner", CORNERS)
def test_convolution_corners(name: str, corner: str) -> None:
    case = conv_case(np.random.default_rng(7), name, *CORNERS[corner])
    check(case, run_ort, run_inlined, run_reference)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("seed", range(30))
def test_convolution_random(name: str, seed: int) -> None:
    check(random_conv_case(seed, name), run_ort)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("seed", range(100, 106))
def test_convolution_random_inlined_and_reference(name: str, seed: int) -> None:
    check(random_conv_case(seed, name), run_inlined, run_reference)


def test_thresholds_at_every_accumulator() -> None:
    """One channel per threshold, from below the least accumulator to above the greatest, each with and without flip."""
    taps = 12
    values = np.repeat(np.arange(-taps - 1, taps + 2, dtype=np.int32), 2)
    rng = np.random.default_rng(0)
    weight = np.broadcast_to(random_bits(rng, 1, 2, 2, 3), (len(values), 2, 2, 8)).copy()
    x = pack_bits((np.arange(2**taps)[:, None] >> np.arange(taps) & 1).astype(np.bool_).reshape(-1, 2, 2, 3))
    constants = {"weight": weight, "threshold": values, "flip": pack_bits(np.arange(len(values)) % 2 == 1)}
    case = Case("BinaryConv2dThreshold", x, constants, {"channels": 3, **geometry((0, 0)), "groups": 1})
    check(case, run_ort, run_reference)


def test_epilogue_rounds_twice() -> None:
    """Scale and bias for which one rounding, or scaled filters, would give other bits; the reference must show it."""
    rng = np.random.default_rng(3)
    case = conv_case(rng, "BinaryConv2d", 64, 32, 1, (3, 3), (8, 8), geometry((1, 1)))
    case.constants["scale"] = rng.uniform(-1, 1, 32).astype(np.float32)
    case.constants["bias"] = rng.uniform(-30, 30, 32).astype(np.float32)
    bare = Case(case.name, case.x, dict(case.constants), case.attributes)
    bare.constants |= {"scale": np.ones(32, np.float32), "bias": np.zeros(32, np.float32)}
    scale, bias = (case.constants[k].astype(np.float64)[:, None, None] for k in ("scale", "bias"))
    once = (bare.expected().astype(np.float64) * scale + bias).astype(np.float32)
    assert (once != case.expected()).any(), "the case does not tell one rounding from two"
    check(case, run_ort, run_inlined, run_reference)


def pack_case(seed: int, channels: int, shape: Sequence[int], size: Sequence[int] = (4, 3), batch: int = 2) -> Case:
    """Every input is the threshold of its channel, next to it, or special."""
    rng = np.random.default_rng(seed)
    threshold = rng.choice([0.0, -0.0, 1.5, -0.1, np.inf, -np.inf, np.nan, 1e-45], shape).astype(np.float32)
    at = np.broadcast_to(threshold, (batch, channels, *size))
    near = [at, np.nextafter(at, np.float32(np.inf)), np.nextafter(at, np.float32(-np.inf))]
    special = [np.full_like(at, v) for v in (0.0, -0.0, np.nan, np.inf, -np.inf)]
    x = np.choose(rng.integers(0, 8, at.shape), [*near, *special]).astype(np.float32)
    return Case("Pack", x, {"threshold": threshold})


@pytest.mark.parametrize("channels", [1, 3, 8, 63, 64, 65, 130])
def test_pack(channels: int) -> None:
    check(pack_case(channels, channels, (channels, 1, 1)), run_ort, run_inlined, run_reference)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (1, 20, 1, 1)])
def test_pack_broadcasts_its_threshold(shape: tuple[int, ...]) -> None:
    check(pack_case(1, 20, shape), run_ort, run_reference)


def test_pack_of_one_pixel() -> None:
    check(pack_case(5, 70, (70, 1, 1), (1, 1), batch=5), run_ort, run_reference)


def pool_case(
    rng: np.random.Generator,
    channels: int,
    kernel: Sequence[int],
    size: Sequence[int],
    window: dict[str, Any],
    ceil_mode: int,
) -> Case:
    # few 1s, or the OR of a large window is 1 everywhere; where the AND is taken, few 0s
    mask = rng.random(channels) < 0.5
    bits = (rng.random((2, *size, channels)) < 2 / (kernel[0] * kernel[1] + 3)) ^ mask
    attributes = {"kernel_shape": list(kernel), **window, "ceil_mode": ceil_mode}
    return Case("MaxPool2d", pack_bits(bits), {"and_mask": pack_bits(mask)}, attributes)


def random_pool_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    kernel = rng.integers(1, 6, 2)
    dilation = np.where(kernel < 4, rng.integers(1, 3, 2), 1)
    pad = rng.integers(0, kernel // 2 + 1)
    size = np.maximum(1, dilation * (kernel - 1) + 1 - 2 * pad) + rng.integers(0, 6, 2)
    window = geometry(pad.tolist(), rng.integers(1, 5, 2).tolist(), dilation.tolist())
    channels = int(rng.choice([1, 9, 64, 65, 130]))
    return pool_case(rng, channels, kernel.tolist(), size.tolist(), window, int(rng.integers(0, 2)))


@pytest.mark.parametrize("seed", range(40))
def test_pool_random(seed: int) -> None:
    check(random_pool_case(seed), run_ort)


@pytest.mark.parametrize("seed", range(100, 110))
def test_pool_random_inlined_and_reference(seed: int) -> None:
    check(random_pool_case(seed), run_inlined, run_reference)


# kernel, stride, padding
CEIL_WINDOWS = [(2, 2, 0), (3, 2, 1), (3, 2, 0), (2, 3, 1), (1, 2, 0), (3, 3, 1), (2, 4, 1)]


@pytest.mark.parametrize(
    "size,kernel,stride,pad", [(s, *w) for s in range(1, 8) for w in CEIL_WINDOWS if s + 2 * w[2] >= w[0]]
)
def test_pool_ceil_mode(size: int, kernel: int, stride: int, pad: int) -> None:
    """Torch's rule, checked against torch's own pooling: no window starts past the map."""
    rng = np.random.default_rng(size)
    window = geometry((pad, pad), (stride, stride))
    case = pool_case(rng, 8, (kernel, kernel), (size, size + 1), window, 1)
    case.constants["and_mask"][:] = 0
    bits = np.unpackbits(case.x[..., :1], axis=-1, bitorder="little").transpose(0, 3, 1, 2)
    pooled = torch.nn.functional.max_pool2d(
        torch.from_numpy(np.ascontiguousarray(bits)).float(), kernel, stride, pad, ceil_mode=True
    )
    expected = pack_bits(pooled.numpy().transpose(0, 2, 3, 1) == 1)
    for run in (run_ort, run_reference):
        assert_same(run(case.model(), case.x), expected)


def with_pads(model: onnx.ModelProto, pads: Sequence[int]) -> onnx.ModelProto:
    """The model with pads that the torch operators cannot express; its result gets another size."""
    (attribute,) = [a for a in model.graph.node[0].attribute if a.name == "pads"]
    attribute.ints[:] = pads
    for dim in model.graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    return model


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "MaxPool2d"])
def test_uneven_pads(name: str) -> None:
    """With stride 1, less padding on a side only leaves out rows or columns of the result."""
    rng, even = np.random.default_rng(11), geometry((2, 2))
    if name == "MaxPool2d":
        case = pool_case(rng, 9, (3, 3), (4, 5), even, 0)
    else:
        case = conv_case(rng, name, 9, 5, 1, (3, 3), (4, 5), even)
    whole = case.expected()
    top, left, bottom, right = 1, 0, 2, 1
    rows, columns = slice(2 - top, 6 - (2 - bottom)), slice(2 - left, 7 - (2 - right))
    kept = whole[:, :, rows, columns] if name == "BinaryConv2d" else whole[:, rows, columns]
    model = with_pads(case.model(), [top, left, bottom, right])
    for run in (run_ort, run_reference):
        assert_same(run(model, case.x), kept)


def test_uneven_pads_with_ceil_mode() -> None:
    """Windows start at 0, 2 and 4; the lower padding is a row of zeros, as if the map had one."""
    case = pool_case(np.random.default_rng(12), 9, (3, 3), (5, 5), geometry((0, 0), (2, 2)), 1)
    case.constants["and_mask"][:] = 0
    larger = Case(case.name, np.pad(case.x, [(0, 0), (0, 1), (0, 1), (0, 0)]), case.constants, case.attributes)
    expected = larger.expected()
    assert expected.shape[1:3] == (3, 3)
    model = with_pads(case.model(), [0, 0, 1, 1])
    for run in (run_ort, run_reference):
        assert_same(run(model, case.x), expected)


def example(name: str) -> Case:
    if name == "Pack":
        return pack_case(2, 66, (66, 1, 1), (6, 5))
    rng = np.random.default_rng(2)
    if name == "MaxPool2d":
        return pool_case(rng, 66, (3, 2), (7, 6), geometry((1, 1), (2, 2)), 1)
    return conv_case(rng, name, 66, 69, 3, (3, 2), (7, 6), geometry((1, 1), (2, 2)))


def test_every_operator_has_a_body_with_its_signature() -> None:
    bodies = {function.name: function for function in function_protos()}
    assert set(bodies) == set(OPS)
    for name, op in OPS.items():
        body = bodies[name]
        names = [argument.name for argument in op.target._schema.arguments]  # type: ignore[attr-defined]
        assert [*body.input, *body.attribute] == names
        assert len(body.input) == op.inputs and list(body.attribute) == list(op.attributes)
        assert len(body.output) == 1 and body.domain == ONNX_DOMAIN
        assert {node.domain for node in body.node} == {""}, "a body calls standard operators only"


EXAMPLES = sorted(OPS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_model_passes_the_checker(name: str) -> None:
    model = example(name).model()
    onnx.checker.check_model(model, full_check=True)
    onnx.checker.check_model(inliner.inline_local_functions(model), full_check=True)


@pytest.mark.parametrize("name", EXAMPLES)
def test_type_inference_sees_through_the_body(name: str) -> None:
    model = example(name).model()
    wrong = TensorProto.UINT8 if name == "BinaryConv2d" else TensorProto.FLOAT
    model.graph.output[0].type.tensor_type.elem_type = wrong
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", EXAMPLES)
def test_rows_and_columns_known_only_at_run_time(name: str) -> None:
    case = example(name)
    check(case, run_ort, run_inlined, run_reference, open_map=True)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("run", [run_ort, run_inlined, run_reference])
def test_empty_batch(name: str, run: Callable[[onnx.ModelProto, Array], Array]) -> None:
    case = example(name)
    expected = case.expected()[:0]
    assert_same(run(case.model(), case.x[:0]), expected)


@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22])
@pytest.mark.parametrize("name", EXAMPLES)
def test_newer_opsets(name: str, opset: int) -> None:
    case = example(name)
    onnx.checker.check_model(case.model(opset=opset), full_check=True)
    check(case, run_ort, opset=opset)


def test_older_opset_is_refused() -> None:
    with pytest.raises(ValueError, match="opset 18 or newer, got opset 17"):
        function_protos(17)


def test_weights_are_unpacked_when_the_session_is_created(tmp_path: Any) -> None:
    """The path of the activations is all that is left: 1 `Gather` unpacks them, 2 convolutions compute and pack."""
    case = example("BinaryConv2dThreshold")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(case.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert (left.count("Gather"), left.count("Conv"), left.count("ConvInteger")) == (1, 1, 1)
    assert not set(left) & {"Shape", "Range", "Where", "Div", "Mod"}


@pytest.mark.parametrize(
    "actual",
    [
        np.zeros((2, 3), np.int32),
        np.zeros((3, 2), np.float32),
        np.full((2, 3), -0.0, np.float32),
        np.eye(2, 3, dtype=np.float32),
    ],
    ids=["type", "shape", "sign of zero", "value"],
)
def test_the_comparison_can_fail(actual: Array) -> None:
    expected = np.zeros((2, 3), np.float32)
    assert_same(expected.copy(), expected)
    with pytest.raises(AssertionError):
        assert_same(actual, expected)


def test_a_wrong_body_is_noticed() -> None:
    """Parity fails when the comparison of the body is the other one, at the threshold itself."""
    case = pack_case(3, 9, (9, 1, 1))
    model = case.model()
    comparisons = [n for f in model.functions if f.name == "Pack" for n in f.node if n.op_type == "GreaterOrEqual"]
    assert len(comparisons) == 1
    comparisons[0].op_type = "Greater"
    with pytest.raises(AssertionError, match="differ"):
        assert_same(run_ort(model, case.x), case.expected())
