"""The kernels give the bits of the numpy reference, on every instruction set of this machine; bad nodes are errors.

The models hold no function bodies, so a node runs in its kernel or not at all.
"""

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import bnnfx
from bnnfx.numerics.bits import pack_bits, row_bytes
from bnnfx.ops import PACKED_OPS

OPS = {op.onnx_name: op for op in PACKED_OPS}
INT32 = np.iinfo(np.int32)
Array = NDArray[Any]


def isas() -> list[str]:
    function = ctypes.CDLL(str(bnnfx.library_path())).bnnfx_isas
    function.restype = ctypes.c_char_p
    return str(function().decode()).split(",")


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sessions made in the test use this instruction set."""
    monkeypatch.setenv("BNNFX_ISA", request.param)
    return str(request.param)


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
        return np.asarray(op.target(*tensors, *(attributes[name] for name in op.attributes)).numpy())

    def model(self, *, as_inputs: tuple[str, ...] = ()) -> bytes:
        """The model; constants named in `as_inputs` become graph inputs instead."""
        node = helper.make_node(
            self.name, ["x", *self.constants], ["y"], name="the_node", domain="ai.bnnfx", **self.attributes
        )
        inputs = {"x": self.x, **{name: self.constants[name] for name in as_inputs}}
        kept = {name: value for name, value in self.constants.items() if name not in as_inputs}
        out = TensorProto.FLOAT if self.name == "BinaryConv2d" else TensorProto.UINT8
        graph = helper.make_graph(
            [node],
            "case",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(value.dtype), [f"{name}{i}" for i in range(value.ndim)]
                )
                for name, value in inputs.items()
            ],
            [helper.make_tensor_value_info("y", out, [f"y{i}" for i in range(4)])],
            [numpy_helper.from_array(value, name) for name, value in kept.items()],
        )
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.bnnfx", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9)
        return bytes(model.SerializeToString())

    def session(self, threads: int = 1, **options: Any) -> ort.InferenceSession:
        return open_session(self.model(**options), threads)

    def run(self, threads: int = 1) -> Array:
        return np.asarray(self.session(threads).run(None, {"x": self.x})[0])


def open_session(model: bytes, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # the errors that tests provoke are logged otherwise
    options.register_custom_ops_library(str(bnnfx.library_path()))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def assert_same(actual: Array, expected: Array, hint: object) -> None:
    """Equal in type, shape and every bit; so 0.0 and -0.0 differ."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), hint
    raw = np.dtype(f"u{expected.dtype.itemsize}")
    differing = np.argwhere(np.ascontiguousarray(actual).view(raw) != np.ascontiguousarray(expected).view(raw))
    assert len(differing) == 0, f"{len(differing)} of {expected.size} differ, first at {differing[:1]}; {hint}"


def check(case: Case, hint: object, threads: tuple[int, ...] = (1, 2)) -> None:
    expected = case.expected()
    for number in threads:
        assert_same(case.run(number), expected, f"{hint}, {number} threads, x {case.x.shape}, {case.attributes}")


def random_bits(rng: np.random.Generator, *shape: int) -> Array:
    return pack_bits(rng.random(shape) < 0.5)


def random_geometry(rng: np.random.Generator, largest_kernel: int) -> tuple[tuple[int, int], tuple[int, int], dict]:
    """Kernel, map size and attributes; the window fits."""
    kernel = tuple(int(k) for k in rng.integers(1, largest_kernel + 1, 2))
    stride, dilation = ([int(v) for v in rng.integers(1, 4, 2)] for _ in range(2))
    pads = [int(p) for p in rng.integers(0, 4, 2)]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = [max(1, r - 2 * p) for r, p in zip(reach, pads, strict=True)]
    size = tuple(int(n + rng.integers(0, 9)) for n in least)
    return kernel, size, {"strides": stride, "pads": pads * 2, "dilations": dilation}


def convolution(rng: np.random.Generator, name: str, x: Array, weight: Array, channels: int, attributes: dict) -> Case:
    """A convolution with hazardous per-channel constants: of both signs, zero, and never or always reached."""
    outputs = weight.shape[0]
    if name == "BinaryConv2d":
        scale, bias = (rng.standard_normal(outputs).astype(np.float32) for _ in range(2))
        scale[rng.random(outputs) < 0.1] = -0.0
        bias[rng.random(outputs) < 0.1] = 0.0
        constants = {"weight": weight, "scale": scale, "bias": bias}
    else:
        products = weight.shape[1] * weight.shape[2] * channels // attributes["groups"]
        spread = 2 * int(products**0.5) + 1
        threshold = rng.integers(-spread, spread + 1, outputs).astype(np.int32)
        extreme = rng.random(outputs) < 0.1
        threshold[extreme] = rng.choice([INT32.min, INT32.min + 1, INT32.max - 1, INT32.max], extreme.sum())
        constants = {"weight": weight, "threshold": threshold, "flip": random_bits(rng, outputs)}
    return Case(name, x, constants, {"channels": channels, **attributes})


def random_convolution(rng: np.random.Generator, name: str, *, grouped: bool) -> Case:
    groups = int(rng.integers(2, 9)) if grouped else 1
    inputs, outputs = (int(rng.integers(1, 300 // groups + 1)) for _ in range(2))
    kernel, size, attributes = random_geometry(rng, 7)
    x = random_bits(rng, int(rng.integers(0, 4)), *size, inputs * groups)
    weight = random_bits(rng, outputs * groups, *kernel, inputs)
    return convolution(rng, name, x, weight, inputs * groups, attributes | {"groups": groups})


CONVOLUTIONS = ("BinaryConv2d", "BinaryConv2dThreshold")
PLAIN = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1]}


# --- the same bits as the reference ---


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("grouped", [False, True])
def test_convolution(isa: str, name: str, grouped: bool, seed: int) -> None:
    case = random_convolution(np.random.default_rng([seed, grouped]), name, grouped=grouped)
    check(case, f"seed {seed}", threads=(1 + seed % 2,))


@pytest.mark.parametrize("channels", [16, 64, 96, 130])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_3x3_of_a_layer(isa: str, name: str, channels: int) -> None:
    """Enough pixels for several strips and tasks."""
    rng = np.random.default_rng(channels)
    x, weight = random_bits(rng, 2, 31, 29, channels), random_bits(rng, channels, 3, 3, channels)
    attributes = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "groups": 1}
    check(convolution(rng, name, x, weight, channels, attributes), channels)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_of_many_words(isa: str, name: str) -> None:
    """All bits differ, over more words than a byte can count."""
    rng = np.random.default_rng(0)
    x = np.zeros((1, 3, 3, row_bytes(2048)), np.uint8)
    weight = np.full((70, 3, 3, row_bytes(2048)), 255, np.uint8)
    case = convolution(rng, name, x, weight, 2048, PLAIN | {"groups": 1})
    if name == "BinaryConv2d":
        case.constants["scale"][:], case.constants["bias"][:] = 1, 0
        assert (case.run() == -9 * 2048).all()
    check(case, "many words")


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_linear_layer(isa: str, name: str) -> None:
    rng = np.random.default_rng(0)
    x, weight = random_bits(rng, 5, 1, 1, 300), random_bits(rng, 11, 1, 1, 300)
    check(convolution(rng, name, x, weight, 300, PLAIN | {"groups": 1}), "linear")


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_depthwise(isa: str, name: str) -> None:
    rng = np.random.default_rng(0)
    x, weight = random_bits(rng, 2, 7, 6, 70), random_bits(rng, 140, 3, 3, 1)
    attributes = {"strides": [2, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "groups": 70}
    check(convolution(rng, name, x, weight, 70, attributes), "depthwise")


def test_product_is_rounded_before_the_sum(isa: str) -> None:
    """With a fused multiply-add, the result would not be 0 for any of these scales."""
    rng = np.random.default_rng(0)
    x, weight = np.zeros((1, 1, 20, 8), np.uint8), np.zeros((64, 1, 1, 8), np.uint8)  # accumulator 3
    scale = (rng.random(64) + 1).astype(np.float32)
    scale = scale[(scale.astype(np.float64) * 3) != (scale * np.float32(3))]
    assert len(scale) > 16
    weight = weight[: len(scale)]
    constants = {"weight": weight, "scale": scale, "bias": -(scale * np.float32(3))}
    case = Case("BinaryConv2d", x, constants, PLAIN | {"channels": 3, "groups": 1})
    assert (case.run() == 0).all()
    check(case, "rounding")


@pytest.mark.filterwarnings("ignore:.* encountered in multiply:RuntimeWarning")
def test_special_floats(isa: str) -> None:
    rng = np.random.default_rng(0)
    x, weight = random_bits(rng, 1, 4, 5, 6), random_bits(rng, 20, 3, 3, 6)
    case = convolution(rng, "BinaryConv2d", x, weight, 6, PLAIN | {"groups": 1})
    case.constants["scale"][:6] = [np.inf, -np.inf, 1e-44, 3e38, 0, -0.0]
    case.constants["bias"][:6] = [1, 1, 1e-45, 3e38, -0.0, -0.0]
    check(case, "special floats")


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "MaxPool2d"])
@pytest.mark.parametrize("pads", [[0, 1, 2, 0], [2, 0, 1, 3], [0, 0, 0, 2]])
def test_uneven_pads(isa: str, name: str, pads: list[int]) -> None:
    """With stride 1, less padding takes rows and columns away from the result and changes nothing else."""
    rng = np.random.default_rng(pads)
    x = random_bits(rng, 2, 6, 7, 70)
    even = {"strides": [1, 1], "pads": [3, 3, 3, 3], "dilations": [1, 1]}
    if name == "MaxPool2d":
        mask = {"and_mask": random_bits(rng, 70)}
        case = Case(name, x, mask, {"kernel_shape": [4, 4], **even, "ceil_mode": 0})
    else:
        case = convolution(rng, name, x, random_bits(rng, 30, 4, 4, 70), 70, even | {"groups": 1})
    full = case.expected()
    case.attributes["pads"] = pads
    top, left, bottom, right = (3 - p for p in pads)
    axes = (slice(top, -bottom or None), slice(left, -right or None))
    part = full[:, :, *axes] if name == "BinaryConv2d" else full[:, *axes]
    assert part.size < full.size
    assert_same(case.run(), np.ascontiguousarray(part), pads)


def pack_thresholds(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Array]:
    for dims in ((), (1,), (shape[1], 1, 1), (1, shape[1], 1, 1), shape, shape[1:], (shape[2], 1), (shape[3],)):
        yield rng.integers(-2, 3, dims).astype(np.float32)
    for kept in range(16):
        dims = tuple(n if kept >> axis & 1 else 1 for axis, n in enumerate(shape))
        yield rng.integers(-2, 3, dims).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 64, 7, 9), (3, 130, 1, 1), (2, 33, 9, 16), (0, 5, 3, 3)])
def test_pack(isa: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(shape)
    x = rng.integers(-2, 3, shape).astype(np.float32)  # often equal to the threshold
    special = rng.random(shape) < 0.2
    x[special] = rng.choice(np.float32([np.nan, np.inf, -np.inf, -0.0, 0.0]), special.sum())
    thresholds = list(pack_thresholds(rng, shape))
    assert len(thresholds) == 24
    for threshold in thresholds:
        check(Case("Pack", x, {"threshold": threshold}), threshold.shape, threads=(1,))


def test_pack_in_many_tasks(isa: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 70, 61, 43)).astype(np.float32)
    check(Case("Pack", x, {"threshold": rng.standard_normal((70, 1, 1)).astype(np.float32)}), "many")


def test_pack_takes_a_computed_threshold(isa: str) -> None:
    rng = np.random.default_rng(0)
    case = Case("Pack", rng.standard_normal((2, 5, 4, 3)).astype(np.float32))
    case.constants["threshold"] = rng.standard_normal((5, 1, 1)).astype(np.float32)
    session = case.session(as_inputs=("threshold",))
    (y,) = session.run(None, {"x": case.x, **case.constants})
    assert_same(y, case.expected(), "threshold as graph input")


@pytest.mark.parametrize("seed", range(60))
def test_max_pool(isa: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels = int(rng.integers(1, 301))
    kernel, size, attributes = random_geometry(rng, 4)
    mask = random_bits(rng, channels)
    if seed % 3 == 0:
        mask[:] = 0
    x = random_bits(rng, int(rng.integers(0, 4)), *size, channels)
    attributes = {"kernel_shape": list(kernel), **attributes, "ceil_mode": seed % 2}
    check(Case("MaxPool2d", x, {"and_mask": mask}, attributes), f"seed {seed}")


@pytest.mark.parametrize("row", [0, 1, 13])
def test_max_pool_of_any_bytes(isa: str, row: int) -> None:
    rng = np.random.default_rng(row)
    x, mask = (rng.integers(0, 256, dims, dtype=np.uint8) for dims in ((2, 5, 6, row), (row,)))
    attributes = {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [1, 0, 1, 0], "dilations": [1, 1], "ceil_mode": 1}
    check(Case("MaxPool2d", x, {"and_mask": mask}, attributes), row)


def test_max_pool_window_larger_than_the_map_in_ceil_mode(isa: str) -> None:
    rng = np.random.default_rng(0)
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0] * 4, "dilations": [1, 1], "ceil_mode": 1}
    check(Case("MaxPool2d", random_bits(rng, 1, 2, 2, 9), {"and_mask": random_bits(rng, 9)}, attributes), "ceil")


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_one_session_runs_maps_of_all_sizes_on_many_threads(isa: str, name: str) -> None:
    rng = np.random.default_rng(0)
    weight = random_bits(rng, 40, 3, 3, 33)
    attributes = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "groups": 1}
    cases = [
        convolution(rng, name, random_bits(rng, n, h, w, 33), weight, 33, attributes)
        for n, h, w in ((1, 8, 9), (0, 8, 9), (3, 2, 2), (1, 1, 1), (2, 9, 8), (1, 20, 20))
    ]
    for case in cases:
        case.constants = cases[0].constants
    expected = [case.expected() for case in cases]
    session = cases[0].session(threads=2)

    def run(index: int) -> None:
        (y,) = session.run(None, {"x": cases[index].x})
        assert_same(y, expected[index], cases[index].x.shape)

    with ThreadPoolExecutor(max_workers=4) as pool:
        for result in [pool.submit(run, i % len(cases)) for i in range(120)]:
            result.result()


# --- errors ---


def sound(name: str) -> Case:
    rng = np.random.default_rng(0)
    if name == "Pack":
        return Case(name, rng.standard_normal((1, 6, 4, 4)).astype(np.float32), {"threshold": np.zeros(1, np.float32)})
    window = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
    x = random_bits(rng, 1, 4, 4, 6)
    if name == "MaxPool2d":
        return Case(name, x, {"and_mask": random_bits(rng, 6)}, {"kernel_shape": [2, 2], **window, "ceil_mode": 0})
    return convolution(rng, name, x, random_bits(rng, 10, 3, 3, 6), 6, window | {"groups": 1})


def constant(name: str, value: Array) -> Callable[[Case], None]:
    return lambda case: case.constants.update({name: value})


def attribute(name: str, value: Any) -> Callable[[Case], None]:
    return lambda case: case.attributes.update({name: value})


BYTES, FLOATS = (lambda *shape: np.zeros(shape, np.uint8)), (lambda *shape: np.zeros(shape, np.float32))
AT_CREATION = [
    ("BinaryConv2d", constant("weight", BYTES(10, 3, 3, 16)), r"uint8\[O, kh, kw, 8\].*uint8\[10, 3, 3, 16\]"),
    ("BinaryConv2d", constant("weight", BYTES(10, 3, 8)), r"uint8\[10, 3, 8\]"),
    ("BinaryConv2d", constant("weight", BYTES(10, 0, 3, 8)), r"uint8\[10, 0, 3, 8\]"),
    ("BinaryConv2d", constant("scale", FLOATS(9)), r"scale has one value .* 10 .*float\[9\]"),
    ("BinaryConv2d", constant("bias", FLOATS(10, 1)), r"bias has one value .* 10 .*float\[10, 1\]"),
    ("BinaryConv2dThreshold", constant("threshold", np.zeros(11, np.int32)), r"threshold .* 10 .*int32\[11\]"),
    ("BinaryConv2dThreshold", constant("flip", BYTES(10)), r"flip is uint8\[8\].*uint8\[10\]"),
    ("BinaryConv2d", attribute("groups", 4), "groups = 4"),
    ("BinaryConv2d", attribute("groups", 0), "groups = 0"),
    ("BinaryConv2d", attribute("groups", 3), "O a multiple of groups.*groups = 3"),
    ("BinaryConv2d", attribute("channels", 0), "channels = 0"),
    ("BinaryConv2d", attribute("channels", 65), "channels = 65"),
    ("BinaryConv2d", attribute("pads", [1, 1]), r"pads is a list of 4 .*\[1, 1\]"),
    ("BinaryConv2d", attribute("pads", [0, 0, 0, -1]), r"pads is a list of 4 .*\[0, 0, 0, -1\]"),
    ("BinaryConv2d", attribute("pads", [2**40, 0, 0, 0]), "pads is a list of 4"),
    ("BinaryConv2d", attribute("strides", [0, 1]), r"strides is a list of 2 .*\[0, 1\]"),
    ("BinaryConv2d", attribute("dilations", [1, 0]), r"dilations is a list of 2 .*\[1, 0\]"),
    ("BinaryConv2d", lambda case: case.attributes.pop("dilations"), "attribute dilations: "),
    ("MaxPool2d", constant("and_mask", BYTES(1, 8)), r"and_mask is uint8\[B\].*uint8\[1, 8\]"),
    ("MaxPool2d", attribute("kernel_shape", [2]), r"kernel_shape is a list of 2 .*\[2\]"),
    ("MaxPool2d", lambda case: case.attributes.pop("ceil_mode"), "attribute ceil_mode: "),
]
AT_RUN = [
    ("BinaryConv2d", BYTES(1, 4, 4, 16), r"x is uint8\[N, H, W, 8\] for 6 channels; got uint8\[1, 4, 4, 16\]"),
    ("BinaryConv2d", BYTES(1, 4, 8), r"got uint8\[1, 4, 8\]"),
    ("BinaryConv2dThreshold", BYTES(1, 4, 2, 8), r"window of \[3, 3\] does not fit into a map of \[4, 2\]"),
    ("BinaryConv2dThreshold", BYTES(1, 0, 4, 8), r"map of \[0, 4\]"),
    ("MaxPool2d", BYTES(1, 4, 4, 9), r"uint8\[N, H, W, 8\].*uint8\[1, 4, 4, 9\]"),
    ("MaxPool2d", BYTES(1, 1, 4, 8), r"window of \[2, 2\] does not fit into a map of \[1, 4\]"),
    ("Pack", FLOATS(1, 4, 4), r"float\[N, C, H, W\].*float\[1, 4, 4\]"),
]


@pytest.mark.parametrize("name", OPS)
def test_sound_cases_run(name: str) -> None:
    check(sound(name), name)


@pytest.mark.parametrize(("name", "spoil", "message"), AT_CREATION)
def test_malformed_node_is_refused_at_creation(name: str, spoil: Callable[[Case], None], message: str) -> None:
    case = sound(name)
    spoil(case)
    with pytest.raises(Exception, match=f"(?s)ai.bnnfx::{name}, node 'the_node': .*{message}"):
        case.session()


@pytest.mark.parametrize(("name", "x", "message"), AT_RUN)
def test_input_that_does_not_fit_is_refused(name: str, x: Array, message: str) -> None:
    case = sound(name)
    node = onnx.load_model_from_string(case.model())
    del node.graph.input[0].type.tensor_type.shape.dim[:]
    node.graph.input[0].type.tensor_type.ClearField("shape")
    session = open_session(node.SerializeToString())
    with pytest.raises(Exception, match=f"ai.bnnfx::{name}, node 'the_node': .*{message}"):
        session.run(None, {"x": x})
    (y,) = session.run(None, {"x": case.x})  # the session is still good
    assert_same(y, case.expected(), name)


def test_pack_threshold_that_does_not_broadcast() -> None:
    case = sound("Pack")
    for dims in ((6,), (2, 1, 1, 1), (1, 1, 1, 1, 1), (6, 4)):
        case.constants["threshold"] = FLOATS(*dims)
        with pytest.raises(Exception, match=r"threshold broadcasts to the shape of x; got x = float\[1, 6, 4, 4\]"):
            case.run()


@pytest.mark.parametrize(
    ("name", "computed"),
    [(name, key) for name in ("MaxPool2d", *CONVOLUTIONS) for key in sound(name).constants],
)
def test_constants_have_to_be_constant(name: str, computed: str) -> None:
    with pytest.raises(Exception, match=rf"{name}, node 'the_node': input \d \({computed}\) .*initializer"):
        sound(name).session(as_inputs=(computed,))


# --- choice of the instruction set ---


def test_portable_kernels_are_always_there() -> None:
    assert isas()[-1] == "portable"
    assert len(set(isas())) == len(isas())


@pytest.mark.parametrize("name", ["BinaryConv2d", "Pack", "MaxPool2d"])
def test_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("BNNFX_ISA", "sse9")
    with pytest.raises(Exception, match=f"BNNFX_ISA is 'sse9'; this machine has {','.join(isas())}"):
        sound(name).session()


def test_empty_variable_means_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNNFX_ISA", "")
    check(sound("BinaryConv2d"), "empty")


# --- the helper ---


def test_assert_same_can_fail() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert_same(zeros, zeros.copy(), "same")
    for other in (-zeros, zeros.T, zeros.astype(np.float64), zeros + np.float32(1e-45)):
        with pytest.raises(AssertionError):
            assert_same(other, zeros, "different")
