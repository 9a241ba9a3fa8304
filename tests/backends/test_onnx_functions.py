"""The standard-operator bodies give the bits of the numpy reference, in every way that a runtime has to run them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from helpers import cases
from helpers.cases import FUSED, REPRESENTATIVES, THRESHOLDS, Array, Case, assert_same, example, window
from onnx import TensorProto, helper, inliner
from onnx.reference import ReferenceEvaluator

from bnnfx.backends.onnx.functions import OLDEST_OPSET, function_protos
from bnnfx.numerics.bits import pack_bits
from bnnfx.ops import BY_ONNX_NAME
from bnnfx.ops.epilogue import Epilogue
from bnnfx.ops.packed_op import ONNX_DOMAIN

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # infinities are among the cases

PACKS = ("Pack", "PackNhwc")
SOME = (*PACKS, *REPRESENTATIVES, "MaxPool2d")
"""One operator of every kind, for what does not depend on the steps of an epilogue."""

Run = Callable[[onnx.ModelProto, dict[str, Array]], list[Array]]


def run_ort(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, inputs)]


def run_inlined(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    inlined = inliner.inline_local_functions(model)
    assert not inlined.functions
    assert {node.domain for node in inlined.graph.node} == {""}
    return run_ort(inlined, inputs)


def run_reference(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    outputs: Any = ReferenceEvaluator(model).run(None, dict(inputs))
    return [np.asarray(y) for y in outputs]


EVERY_WAY = (run_ort, run_inlined, run_reference)


def check(case: Case, *runs: Run, hint: object = "", **model_options: Any) -> None:
    model, expected = case.model(**model_options), case.expected()
    assert runs
    for run in runs:
        assert_same(run(model, case.inputs), expected, f"{run.__name__}, {hint}")


# --- convolutions ---


@pytest.mark.parametrize("name", sorted(FUSED))
def test_every_epilogue(name: str) -> None:
    case = cases.small_convolution(np.random.default_rng(len(name)), name)
    assert case.expected()[0].size > 0
    check(case, *EVERY_WAY)


# channels, output channels, groups, kernel, map, geometry
CORNERS = {
    "one channel": (1, 1, 1, (3, 3), (5, 4), window((1, 1))),
    "depthwise": (66, 66, 66, (3, 3), (5, 5), window((1, 1))),
    "linear layer": (130, 10, 1, (1, 1), (1, 1), window((0, 0))),
    "map of one pixel": (64, 65, 1, (3, 3), (1, 1), window((1, 1))),
    "windows in the padding only": (9, 8, 1, (1, 1), (2, 3), window((2, 1))),
    "downsampling": (64, 128, 1, (1, 1), (7, 6), window((0, 0), (2, 2))),
    "groups across words": (192, 6, 3, (3, 3), (6, 6), window((1, 1), (2, 2))),
    "groups inside a byte": (12, 8, 4, (2, 3), (6, 5), window((0, 1))),
    "stem": (3, 64, 1, (7, 7), (15, 14), window((3, 3), (2, 2))),
    "dilated": (65, 7, 1, (3, 3), (9, 8), window((2, 2), (1, 2), (2, 2))),
    "many taps": (520, 9, 1, (5, 5), (5, 5), window((2, 2))),
}
CONVOLUTIONS = (*THRESHOLDS, "BinaryConv2dShiftedPreluAddClampFloatBits", "BinaryConv2dTwicePreluAddClampFloatBits")


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("corner", CORNERS)
def test_convolution_corners(name: str, corner: str) -> None:
    for low in (-1, 0):
        check(cases.made_convolution(np.random.default_rng(7), name, *CORNERS[corner], low=low), *EVERY_WAY)


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("grouped", [False, True])
def test_convolution_random(name: str, grouped: bool) -> None:
    shapes = set()
    for seed in range(6):
        rng = np.random.default_rng([seed, grouped])
        case = cases.random_convolution(rng, name, grouped=grouped, most=140)
        shapes.add(case.x.shape)
        check(case, EVERY_WAY[seed % 3], hint=f"seed {seed}")
    assert len(shapes) == 6


def test_thresholds_at_every_accumulator() -> None:
    """One channel per threshold, from below the least accumulator to above the greatest, each with and without flip."""
    taps = 12
    values = np.repeat(np.arange(-taps - 1, taps + 2, dtype=np.int32), 2)
    rng = np.random.default_rng(0)
    weight = np.broadcast_to(cases.random_bits(rng, 1, 2, 2, 3), (len(values), 2, 2, 8)).copy()
    x = pack_bits((np.arange(2**taps)[:, None] >> np.arange(taps) & 1).astype(np.bool_).reshape(-1, 2, 2, 3))
    constants = {"weight": weight, "threshold": values, "flip": pack_bits(np.arange(len(values)) % 2 == 1)}
    case = Case("BinaryConv2dThreshold", {"x": x}, constants, {"channels": 3, **window((0, 0)), "groups": 1})
    for low in (-1, 0):
        case.attributes["low"] = low
        check(case, run_ort, run_reference)


def test_scale_and_bias_round_twice() -> None:
    """Scale and bias for which one rounding, or scaled filters, would give other bits; the reference must show it."""
    rng = np.random.default_rng(3)
    case = cases.made_convolution(rng, "BinaryConv2dFloat", 64, 32, 1, (3, 3), (8, 8), window((1, 1)))
    case.constants["scale"] = rng.uniform(-1, 1, 32).astype(np.float32)
    case.constants["bias"] = rng.uniform(-30, 30, 32).astype(np.float32)
    bare = replace(case, constants=dict(case.constants))
    bare.constants |= {"scale": np.ones(32, np.float32), "bias": np.zeros(32, np.float32)}
    scale, bias = (case.constants[k].astype(np.float64) for k in ("scale", "bias"))
    (integers,), (stream,) = bare.expected(), case.expected()
    once = (integers.astype(np.float64) * scale + bias).astype(np.float32)
    assert (once != stream).any(), "the case does not tell one rounding from two"
    check(case, *EVERY_WAY)


@pytest.mark.parametrize(
    ("name", "constants", "values"),
    [
        ("BinaryConv2dClampFloat", {"low": 0.0, "high": 6.0}, (np.nan, -0.0, 0.0, -1.0, 7.0, np.inf, -np.inf)),
        ("BinaryConv2dClampFloat", {"low": 0.0, "high": 0.0}, (np.nan, -0.0, 0.0, -1.0, 7.0)),
        ("BinaryConv2dPreluFloat", {"slope": 0.0}, (np.nan, -0.0, 0.0, -1.0, 7.0, np.inf, -np.inf)),
        ("BinaryConv2dPreluFloat", {"slope": -1.0}, (np.nan, -0.0, 0.0, -1.0, 7.0)),
        ("BinaryConv2dHardswishFloat", {}, (np.nan, -0.0, 0.0, -3.0, -4.0, 3.0, 1e38, 1e-45, np.inf, -np.inf)),
    ],
    ids=["clamp", "clamp to zeros", "prelu 0", "prelu -1", "hardswish"],
)
def test_activation_of_special_values(name: str, constants: dict[str, float], values: Sequence[float]) -> None:
    """`0 * accumulator + value` where scale is 0: the value itself reaches the activation, with the sign of a zero."""
    count = len(values)
    x, weight = np.zeros((1, 1, 1, 8), np.uint8), np.full((count, 1, 1, 8), 255, np.uint8)  # accumulators -3
    weight[..., 0], weight[..., 1:] = 7, 0
    operands = {"weight": weight, "scale": np.zeros(1, np.float32), "bias": np.float32(values)}
    operands |= {name: np.float32([value]) for name, value in constants.items()}
    case = Case(name, {"x": x}, operands, {"channels": 3, **window((0, 0)), "groups": 1, "low": -1})
    bare = Case(
        "BinaryConv2dFloat", case.inputs, {k: operands[k] for k in ("weight", "scale", "bias")}, case.attributes
    )
    assert_same(bare.expected(), [np.float32(values).reshape(1, 1, 1, -1)])
    check(case, *EVERY_WAY)


def test_shift_by_nothing() -> None:
    """A single -0.0, which `lower` writes in the place of a single 0.0: the sign of a zero stays."""
    case = cases.made_convolution(
        np.random.default_rng(1), "BinaryConv2dShiftedPreluFloat", 3, 1, 1, (1, 1), (8, 8), window((0, 0))
    )
    values = {"scale": -1.0, "bias": -0.0, "shift_before": -0.0, "slope": 0.0, "shift_after": -0.0}
    case.constants |= {name: np.float32([value]) for name, value in values.items()}
    (stream,) = case.expected()
    assert (np.signbit(stream) & (stream == 0)).any()
    check(case, *EVERY_WAY)


# --- pack ---


@pytest.mark.parametrize("channels", [1, 3, 8, 63, 64, 65, 130])
@pytest.mark.parametrize("name", PACKS)
def test_pack(name: str, channels: int) -> None:
    check(cases.pack_case(np.random.default_rng(channels), name, channels), *EVERY_WAY)


@pytest.mark.parametrize("axes", [0, 1, 2, 4])
@pytest.mark.parametrize("name", PACKS)
def test_pack_broadcasts_its_threshold(name: str, axes: int) -> None:
    check(cases.pack_case(np.random.default_rng(axes), name, 20, axes=axes), run_ort, run_reference)


@pytest.mark.parametrize("name", PACKS)
def test_pack_with_a_threshold_per_sample(name: str) -> None:
    case = cases.pack_case(np.random.default_rng(6), name, 20, axes=0)
    case.constants["threshold"] = np.float32([0.0, np.inf]).reshape(2, 1, 1, 1)
    check(case, run_ort, run_reference)


@pytest.mark.parametrize("name", PACKS)
def test_pack_of_one_pixel(name: str) -> None:
    check(cases.pack_case(np.random.default_rng(5), name, 70, (1, 1), batch=5), run_ort, run_reference)


# --- pooling ---


def random_pool_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    kernel = rng.integers(1, 6, 2)
    dilation = np.where(kernel < 4, rng.integers(1, 3, 2), 1)
    pad = rng.integers(0, kernel // 2 + 1)
    size = np.maximum(1, dilation * (kernel - 1) + 1 - 2 * pad) + rng.integers(0, 6, 2)
    geometry = window(pad.tolist(), rng.integers(1, 5, 2).tolist(), dilation.tolist())
    channels = int(rng.choice([1, 9, 64, 65, 130]))
    return cases.pool_case(rng, channels, kernel.tolist(), size.tolist(), geometry, int(rng.integers(0, 2)))


@pytest.mark.parametrize("block", range(4))
def test_pool_random(block: int) -> None:
    for seed in range(10 * block, 10 * block + 10):
        check(random_pool_case(seed), run_ort, hint=f"seed {seed}")
    for seed in range(100 + 3 * block, 103 + 3 * block):
        check(random_pool_case(seed), run_inlined, run_reference, hint=f"seed {seed}")


# kernel, stride, padding
CEIL_WINDOWS = [(2, 2, 0), (3, 2, 1), (3, 2, 0), (2, 3, 1), (1, 2, 0), (3, 3, 1), (2, 4, 1)]


@pytest.mark.parametrize(
    "size,kernel,stride,pad", [(s, *w) for s in range(1, 8) for w in CEIL_WINDOWS if s + 2 * w[2] >= w[0]]
)
def test_pool_ceil_mode(size: int, kernel: int, stride: int, pad: int) -> None:
    """Torch's rule, checked against torch's own pooling: no window starts past the map."""
    rng = np.random.default_rng(size)
    geometry = window((pad, pad), (stride, stride))
    case = cases.pool_case(rng, 8, (kernel, kernel), (size, size + 1), geometry, 1)
    case.constants["and_mask"][:] = 0
    bits = np.unpackbits(case.x[..., :1], axis=-1, bitorder="little").transpose(0, 3, 1, 2)
    pooled = torch.nn.functional.max_pool2d(
        torch.from_numpy(np.ascontiguousarray(bits)).float(), kernel, stride, pad, ceil_mode=True
    )
    expected = pack_bits(pooled.numpy().transpose(0, 2, 3, 1) == 1)
    for run in (run_ort, run_reference):
        assert_same(run(case.model(), case.inputs), [expected])


# --- padding that the torch operators cannot express ---


def with_pads(model: onnx.ModelProto, pads: Sequence[int]) -> onnx.ModelProto:
    """The model with other pads; its results get another size."""
    (attribute,) = [a for a in model.graph.node[0].attribute if a.name == "pads"]
    attribute.ints[:] = pads
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
        for _ in range(4):
            value.type.tensor_type.shape.dim.add()
    return model


@pytest.mark.parametrize("name", [*REPRESENTATIVES, "MaxPool2d"])
def test_uneven_pads(name: str) -> None:
    """With stride 1, less padding on a side only leaves out rows or columns of the result."""
    rng, even = np.random.default_rng(11), window((2, 2))
    if name == "MaxPool2d":
        case = cases.pool_case(rng, 9, (3, 3), (4, 5), even, 0)
    else:
        case = cases.made_convolution(rng, name, 9, 5, 1, (3, 3), (4, 5), even)
    top, left, bottom, right = 1, 0, 2, 1
    rows, columns = slice(2 - top, 6 - (2 - bottom)), slice(2 - left, 7 - (2 - right))
    kept = [whole[:, rows, columns] for whole in case.expected()]
    model = with_pads(case.model(), [top, left, bottom, right])
    inputs = {key: value if key == "x" else value[:, rows, columns] for key, value in case.inputs.items()}
    for run in (run_ort, run_reference):
        assert_same(run(model, {k: np.ascontiguousarray(v) for k, v in inputs.items()}), kept)


def test_uneven_pads_with_ceil_mode() -> None:
    """Windows start at 0, 2 and 4; the lower padding is a row of zeros, as if the map had one."""
    case = cases.pool_case(np.random.default_rng(12), 9, (3, 3), (5, 5), window((0, 0), (2, 2)), 1)
    case.constants["and_mask"][:] = 0
    larger = replace(case, inputs={"x": np.pad(case.x, [(0, 0), (0, 1), (0, 1), (0, 0)])})
    expected = larger.expected()
    assert expected[0].shape[1:3] == (3, 3)
    model = with_pads(case.model(), [0, 0, 1, 1])
    for run in (run_ort, run_reference):
        assert_same(run(model, case.inputs), expected)


# --- the functions as such ---


@pytest.mark.parametrize("name", sorted(BY_ONNX_NAME))
def test_body_has_the_signature_of_the_operator(name: str) -> None:
    op = BY_ONNX_NAME[name]
    (body,) = function_protos({name})
    arguments = [argument.name for argument in op.target._schema.arguments]  # type: ignore[attr-defined]
    assert [*body.input, *body.attribute] == arguments
    assert len(body.input) == op.inputs and list(body.attribute) == list(op.attributes)
    assert len(body.output) == len(op.outputs) and (body.name, body.domain) == (name, ONNX_DOMAIN)
    assert {node.domain for node in body.node} == {""}, "a body calls standard operators only"


def test_only_the_functions_that_are_asked_for() -> None:
    names = {"Pack", "MaxPool2d", "BinaryConv2dAddFloatBits"}
    assert {function.name for function in function_protos(names)} == names
    assert function_protos(set()) == []


@pytest.mark.parametrize("name", SOME)
def test_the_model_passes_the_checker(name: str) -> None:
    model = example(name).model()
    onnx.checker.check_model(model, full_check=True)
    onnx.checker.check_model(inliner.inline_local_functions(model), full_check=True)


@pytest.mark.parametrize("name", SOME)
def test_type_inference_sees_through_the_body(name: str) -> None:
    """Each output has its own type: with that of the other kind the checker refuses."""
    outputs = BY_ONNX_NAME[name].outputs
    for number, output in enumerate(outputs):
        model = example(name).model()
        wrong = TensorProto.UINT8 if output == "float" else TensorProto.FLOAT
        model.graph.output[number].type.tensor_type.elem_type = wrong
        with pytest.raises(onnx.shape_inference.InferenceError):
            onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", SOME)
def test_rows_and_columns_known_only_at_run_time(name: str) -> None:
    check(example(name), *EVERY_WAY, open_map=True)


@pytest.mark.parametrize("name", SOME)
def test_empty_batch(name: str) -> None:
    case = example(name)
    expected = [y[:0] for y in case.expected()]
    for run in EVERY_WAY:
        assert_same(run(case.model(), {k: v[:0] for k, v in case.inputs.items()}), expected, run.__name__)


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 19, 20, 21, 22])
@pytest.mark.parametrize("name", [*PACKS, "MaxPool2d", *CONVOLUTIONS])
def test_newer_opsets(name: str, opset: int) -> None:
    case = example(name)
    onnx.checker.check_model(case.model(opset=opset), full_check=True)
    check(case, run_ort, opset=opset)


def test_older_opset_is_refused() -> None:
    with pytest.raises(ValueError, match="opset 18 or newer, got opset 17"):
        function_protos({"Pack"}, 17)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_weights_are_unpacked_when_the_session_is_created(name: str, tmp_path: Any) -> None:
    """The path of the activations is all that is left: 1 `Gather` unpacks them, 2 convolutions compute and pack."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(example(name).model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert (left.count("Gather"), left.count("Conv"), left.count("ConvInteger")) == (1, 1, 1)
    assert not set(left) & {"Shape", "Range", "Div", "Mod"}
    assert left.count("Where") == (0 if name in THRESHOLDS else 3)  # those of clamp and PReLU


# --- the helpers ---


@pytest.mark.parametrize(
    "actual",
    [
        np.zeros((2, 3), np.int32),
        np.zeros((3, 2), np.float32),
        np.full((2, 3), -0.0, np.float32),
        np.eye(2, 3, dtype=np.float32),
        np.full((2, 3), np.nan, np.float32),
    ],
    ids=["type", "shape", "sign of zero", "value", "NaN"],
)
def test_the_comparison_can_fail(actual: Array) -> None:
    expected = np.zeros((2, 3), np.float32)
    assert_same([expected.copy()], [expected])
    with pytest.raises(AssertionError):
        assert_same([actual], [expected])
    with pytest.raises(AssertionError):
        assert_same([expected, actual], [expected, expected])
    with pytest.raises(AssertionError):
        assert_same([expected], [expected, expected])


def test_one_nan_is_as_good_as_another() -> None:
    quiet, negative = np.uint32([0x7FC00000, 0]).view(np.float32), np.uint32([0xFFC00001, 0]).view(np.float32)
    assert_same([quiet], [negative])


def test_the_cases_are_hazardous() -> None:
    """What the cases of one operator should hold between them, or equal results prove little."""
    met = dict.fromkeys(("NaN", "-0.0", "inf", "at threshold", "one for all", "bits", "no bits", "cancelled"), 0)
    name = "BinaryConv2dPreluAddClampFloatBits"
    for seed in range(40):
        case = cases.small_convolution(np.random.default_rng(seed), name)
        stream, packed = case.expected()
        sums = cases.stream_of(case, Epilogue(FUSED[name].before, adds=True))
        threshold = case.constants["threshold"]
        met["NaN"] += int(np.isnan(stream).sum())
        met["-0.0"] += int((np.signbit(stream) & (stream == 0)).sum())
        met["inf"] += int(np.isinf(stream).sum())
        met["at threshold"] += int((stream == threshold).sum())
        met["one for all"] += int(threshold.shape == (1,) < stream.shape[-1:])
        bits = np.unpackbits(packed, axis=-1, bitorder="little", count=stream.shape[-1])
        met["bits"], met["no bits"] = met["bits"] + int(bits.sum()), met["no bits"] + int((bits == 0).sum())
        met["cancelled"] += int((sums == 0).sum())
    assert min(met.values()) > 0, met


WRONG = {
    "the comparison at the threshold": ("PackNhwc", "GreaterOrEqual", "Greater"),
    "the comparison of a stream": ("BinaryConv2dAddClampFloatBits", "GreaterOrEqual", "Greater"),
    "the bounds of a clamp": ("BinaryConv2dAddClampFloatBits", "Less", "Greater"),
    "the positive side of a PReLU": ("BinaryConv2dPreluFloat", "Greater", "Less"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_body_is_noticed(what: str) -> None:
    name, kind, other = WRONG[what]
    case = example(name)
    model = case.model()
    nodes = [node for function in model.functions for node in function.node if node.op_type == kind]
    assert nodes
    for node in nodes:
        node.op_type = other
    with pytest.raises(AssertionError, match="differ"):
        assert_same(run_ort(model, case.inputs), case.expected())


def test_a_body_without_the_way_through_integers_is_noticed() -> None:
    """Then ONNX Runtime moves the scale into the filters, which rounds differently."""
    rng = np.random.default_rng(3)
    case = cases.made_convolution(rng, "BinaryConv2dFloat", 64, 32, 1, (3, 3), (8, 8), window((1, 1)))
    case.constants |= {"scale": rng.uniform(-1, 1, 32).astype(np.float32), "bias": rng.uniform(-9, 9, 32).astype("f4")}
    model = case.model()
    (body,) = model.functions
    casts = [node for node in body.node if node.op_type == "Cast" and node.attribute[0].i == TensorProto.INT32]
    (accumulators,) = [
        n for n in casts if any(n.input[0] in conv.output for conv in body.node if conv.op_type == "Conv")
    ]
    (back,) = [node for node in body.node if node.op_type == "Cast" and accumulators.output[0] in node.input]
    for node in (accumulators, back):
        node.CopyFrom(helper.make_node("Identity", list(node.input), list(node.output)))
    with pytest.raises(AssertionError, match="differ"):
        assert_same(run_ort(model, case.inputs), case.expected())
