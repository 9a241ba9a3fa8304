"""The kernels give the bits of the numpy reference, on every instruction set of this machine; bad nodes are errors.

The models hold no function bodies, so a node runs in its kernel or not at all.
"""

import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from helpers import cases
from helpers.cases import FUSED, REPRESENTATIVES, THRESHOLDS, Array, Case, assert_same, window

import bnnfx
from bnnfx.numerics.bits import row_bytes
from bnnfx.ops import BY_ONNX_NAME
from bnnfx.runtime.library import isas

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # infinities are among the cases

PACKS = ("Pack", "PackNhwc")
CONVOLUTIONS = (*THRESHOLDS, "BinaryConv2dShiftedPreluAddClampFloatBits", "BinaryConv2dTwiceAddFloatBits")
LOWS = pytest.mark.parametrize("low", [-1, 0])
PLAIN = window((0, 0))
STATM = Path("/proc/self/statm")


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sessions made in the test use this instruction set."""
    monkeypatch.setenv("BNNFX_ISA", request.param)
    return str(request.param)


def open_session(case: Case, threads: int = 1, **model_options: Any) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # the errors that tests provoke are logged otherwise
    options.register_custom_ops_library(str(bnnfx.library_path()))
    model = case.model(functions=False, open_all=True, **model_options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(case: Case, threads: int = 1) -> list[Array]:
    return [np.asarray(y) for y in open_session(case, threads).run(None, case.inputs)]


def check(case: Case, hint: object, threads: tuple[int, ...] = (1, 2)) -> None:
    expected = case.expected()
    for number in threads:
        shapes = {name: value.shape for name, value in (case.inputs | case.constants).items()}
        assert_same(run(case, number), expected, f"{hint}, {number} threads, {shapes}, {case.attributes}")


# --- memory ---


@contextmanager
def at_most(further: int) -> Iterator[None]:
    """No allocation goes beyond what the process has by that many bytes."""
    used = int(STATM.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + further, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not STATM.exists(), reason="only Linux says how much memory a process has")
@pytest.mark.parametrize("name", [*PACKS, *CONVOLUTIONS, "MaxPool2d"])
def test_empty_batch_takes_no_memory(isa: str, name: str) -> None:
    """However large its maps are: one bit per pixel would be more than the limit."""
    height, width, limit = 3, 2**28, 2**25
    case = sound(name)
    channels = case.x.shape[1 if name == "Pack" else -1]
    shape = (0, channels, height, width) if name == "Pack" else (0, height, width, channels)
    case.inputs["x"] = np.zeros(shape, case.x.dtype)
    if "residual" in case.inputs:
        case.inputs["residual"] = np.zeros((0, 1, width - 2, case.inputs["residual"].shape[-1]), np.float32)
    session = open_session(case)
    with at_most(limit):
        results = session.run(None, case.inputs)
    sizes = {"MaxPool2d": (2, width - 1), "Pack": (height, width), "PackNhwc": (height, width)}.get(
        name, (1, width - 2)
    )
    assert results and all(y.shape[:3] == (0, *sizes) for y in results)


# --- the same bits as the reference: convolutions ---


@pytest.mark.parametrize("name", sorted(FUSED))
def test_every_epilogue(isa: str, name: str) -> None:
    for seed in range(3):
        check(cases.small_convolution(np.random.default_rng([len(name), seed]), name), f"seed {seed}", threads=(1,))


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("grouped", [False, True])
def test_convolution(isa: str, name: str, grouped: bool) -> None:
    batches = set()
    for seed in range(20):
        case = cases.random_convolution(np.random.default_rng([seed, grouped]), name, grouped=grouped)
        batches.add(len(case.x))
        check(case, f"seed {seed}", threads=(1 + seed % 2,))
    assert batches == {0, 1, 2, 3}


@LOWS
@pytest.mark.parametrize("channels", [16, 64, 96, 130])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_3x3_of_a_layer(isa: str, name: str, channels: int, low: int) -> None:
    """Enough pixels for several strips and tasks."""
    rng, geometry = np.random.default_rng(channels), window((1, 1))
    case = cases.made_convolution(rng, name, channels, channels, 1, (3, 3), (31, 29), geometry, low=low)
    check(case, channels)


@LOWS
@pytest.mark.parametrize("bit", [0, 1])
@pytest.mark.parametrize("name", ["BinaryConv2dFloat", "BinaryConv2dTwiceFloat", "BinaryConv2dThreshold"])
def test_convolution_of_many_words(isa: str, name: str, bit: int, low: int) -> None:
    """All bits differ, or all agree, over more words than a byte can count."""
    rng = np.random.default_rng(0)
    x = np.full((1, 3, 3, row_bytes(2048)), 255 * bit, np.uint8)
    weight = np.full((70, 3, 3, row_bytes(2048)), 255, np.uint8)
    case = cases.convolution(rng, name, x, weight, 2048, PLAIN | {"groups": 1, "low": low})
    if name != "BinaryConv2dThreshold":
        case.constants |= {"scale": np.ones(1, np.float32), "bias": np.zeros(1, np.float32)}
        assert (run(case)[0] == 9 * 2048 * (1 if bit else low)).all()
    check(case, "many words")


@LOWS
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_linear_layer(isa: str, name: str, low: int) -> None:
    rng = np.random.default_rng(0)
    check(cases.made_convolution(rng, name, 300, 11, 1, (1, 1), (1, 1), PLAIN, batch=5, low=low), "linear")


@LOWS
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_depthwise(isa: str, name: str, low: int) -> None:
    rng, geometry = np.random.default_rng(0), window((1, 1), (2, 1))
    check(cases.made_convolution(rng, name, 70, 140, 70, (3, 3), (7, 6), geometry, low=low), "depthwise")


def rounded_case(name: str, **constants: Array) -> Case:
    """Accumulators 3 in 64 channels."""
    x, weight = np.zeros((1, 1, 20, 8), np.uint8), np.zeros((64, 1, 1, 8), np.uint8)
    return Case(name, {"x": x}, {"weight": weight, **constants}, PLAIN | {"channels": 3, "groups": 1, "low": -1})


def scales_that_round() -> Array:
    """Of which three times is no float32."""
    scale = (np.random.default_rng(0).random(256) + 1).astype(np.float32)
    scale = scale[(scale.astype(np.float64) * 3) != (scale * np.float32(3))]
    assert len(scale) >= 64
    return scale[:64]


def test_product_is_rounded_before_the_sum_with_the_bias(isa: str) -> None:
    """With a fused multiply-add, the result would not be 0 for any of these scales."""
    scale = scales_that_round()
    case = rounded_case("BinaryConv2dFloat", scale=scale, bias=-(scale * np.float32(3)))
    assert (run(case)[0] == 0).all()
    check(case, "rounding")


@pytest.mark.parametrize("name", ["BinaryConv2dShiftedPreluFloat", "BinaryConv2dPreluAddFloat"])
def test_slope_is_rounded_before_what_is_added_to_it(isa: str, name: str) -> None:
    """`-3 * slope` is rounded, then its negative is added: 0, unless both are one operation."""
    slope = scales_that_round()
    opposite = slope * np.float32(3)
    constants = {"scale": np.float32([-1]), "bias": np.float32([0]), "slope": slope}
    if "Shifted" in name:
        constants |= {"shift_before": np.float32([0]), "shift_after": opposite}
    case = rounded_case(name, **constants)
    if "Add" in name:
        case.inputs["residual"] = np.broadcast_to(opposite, (1, 1, 20, 64)).copy()
    assert (run(case)[0] == 0).all()
    check(case, "rounding")


@pytest.mark.parametrize("name", ["BinaryConv2dFloat", "BinaryConv2dClampFloatBits", "BinaryConv2dPreluFloatBits"])
def test_special_floats(isa: str, name: str) -> None:
    rng = np.random.default_rng(0)
    case = cases.made_convolution(rng, name, 6, 20, 1, (3, 3), (4, 5), PLAIN)
    case.constants |= {k: np.resize(case.constants[k], 20) for k in ("scale", "bias")}
    case.constants["scale"][:8] = [np.inf, -np.inf, 1e-44, 3e38, 0, -0.0, 0, 0]
    case.constants["bias"][:8] = [1, 1, 1e-45, 3e38, -0.0, -0.0, np.nan, -np.inf]
    assert np.isnan(case.expected()[0]).any() and np.isinf(case.expected()[0]).any()
    check(case, "special floats")


@pytest.mark.parametrize("name", [*REPRESENTATIVES, "MaxPool2d"])
@pytest.mark.parametrize("pads", [[0, 1, 2, 0], [2, 0, 1, 3], [0, 0, 0, 2]])
def test_uneven_pads(isa: str, name: str, pads: list[int]) -> None:
    """With stride 1, less padding takes rows and columns away from the result and changes nothing else."""
    rng = np.random.default_rng(pads)
    even = window((3, 3))
    if name == "MaxPool2d":
        case = cases.pool_case(rng, 70, (4, 4), (6, 7), even, 0)
    else:
        case = cases.made_convolution(rng, name, 70, 30, 1, (4, 4), (6, 7), even)
    full = case.expected()
    top, left, bottom, right = (3 - p for p in pads)
    part = (slice(None), slice(top, -bottom or None), slice(left, -right or None))
    case.attributes["pads"] = pads
    if "residual" in case.inputs:
        case.inputs["residual"] = np.ascontiguousarray(case.inputs["residual"][part])
    assert full[0][part].size < full[0].size
    assert_same(run(case), [np.ascontiguousarray(y[part]) for y in full], pads)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_one_session_runs_maps_of_all_sizes_on_many_threads(isa: str, name: str) -> None:
    rng = np.random.default_rng(0)
    sizes = ((1, 8, 9), (0, 8, 9), (3, 2, 2), (1, 1, 1), (2, 9, 8), (1, 20, 20))
    made = [cases.made_convolution(rng, name, 33, 40, 1, (3, 3), size, window((1, 1)), n) for n, *size in sizes]
    made = [replace(case, constants=made[0].constants, attributes=made[0].attributes) for case in made]
    expected = [case.expected() for case in made]
    session = open_session(made[0], threads=2)

    def run_one(index: int) -> None:
        assert_same(session.run(None, made[index].inputs), expected[index], made[index].x.shape)

    with ThreadPoolExecutor(max_workers=4) as pool:
        for result in [pool.submit(run_one, i % len(made)) for i in range(120)]:
            result.result()


# --- pack, in its layouts ---


def pack_thresholds(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Array]:
    """Of every rank, and with every choice of axes along which there is one value."""
    for axes in range(5):
        yield rng.integers(-2, 3, shape[4 - axes :]).astype(np.float32)
    for kept in range(16):
        dims = tuple(n if kept >> axis & 1 else 1 for axis, n in enumerate(shape))
        yield rng.integers(-2, 3, dims).astype(np.float32)


def packs_of_whole_numbers(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Iterator[Case]:
    """One case per threshold; values are often equal to it."""
    x = rng.integers(-2, 3, shape).astype(np.float32)
    special = rng.random(shape) < 0.2
    x[special] = rng.choice(np.float32([np.nan, np.inf, -np.inf, -0.0, 0.0]), special.sum())
    for threshold in pack_thresholds(rng, shape):
        yield Case(name, {"x": x}, {"threshold": threshold})


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 64, 7, 9), (3, 130, 1, 1), (2, 33, 9, 16), (0, 5, 3, 3)])
@pytest.mark.parametrize("name", PACKS)
def test_pack(isa: str, name: str, shape: tuple[int, ...]) -> None:
    order = (0, 2, 3, 1) if name == "PackNhwc" else (0, 1, 2, 3)
    made = list(packs_of_whole_numbers(np.random.default_rng(shape), name, tuple(shape[axis] for axis in order)))
    assert len(made) == 21
    for case in made:
        check(case, case.constants["threshold"].shape, threads=(1,))


@pytest.mark.parametrize("channels", [1, 7, 8, 15, 16, 17, 63, 64, 65, 127, 130, 300])
@pytest.mark.parametrize("name", PACKS)
def test_pack_next_to_the_threshold(isa: str, name: str, channels: int) -> None:
    for seed, size in enumerate(((1, 1), (3, 5), (9, 17))):
        check(cases.pack_case(np.random.default_rng(seed), name, channels, size), size, threads=(1,))


@pytest.mark.parametrize("name", PACKS)
def test_pack_in_many_tasks(isa: str, name: str) -> None:
    rng = np.random.default_rng(0)
    shape, dims = ((2, 61, 43, 70), (70,)) if name == "PackNhwc" else ((2, 70, 61, 43), (70, 1, 1))
    x, threshold = (rng.standard_normal(n).astype(np.float32) for n in (shape, dims))
    check(Case(name, {"x": x}, {"threshold": threshold}), "many")


@pytest.mark.parametrize("name", PACKS)
def test_pack_takes_a_computed_threshold(isa: str, name: str) -> None:
    case = cases.pack_case(np.random.default_rng(0), name, 5)
    session = open_session(case, as_inputs=("threshold",))
    given = session.run(None, {**case.inputs, **case.constants})
    assert_same(given, case.expected(), "threshold as graph input")


# --- pooling ---


@pytest.mark.parametrize("block", range(6))
def test_max_pool(isa: str, block: int) -> None:
    for seed in range(10 * block, 10 * block + 10):
        rng = np.random.default_rng(seed)
        kernel, size, geometry = cases.random_window(rng, 4)
        channels, batch = int(rng.integers(1, 301)), int(rng.integers(0, 4))
        case = cases.pool_case(rng, channels, kernel, size, geometry, seed % 2, batch)
        if seed % 3 == 0:
            case.constants["and_mask"][:] = 0
        check(case, f"seed {seed}", threads=(1 + seed % 2,))


@pytest.mark.parametrize("row", [0, 1, 13])
def test_max_pool_of_any_bytes(isa: str, row: int) -> None:
    rng = np.random.default_rng(row)
    x, mask = (rng.integers(0, 256, dims, dtype=np.uint8) for dims in ((2, 5, 6, row), (row,)))
    attributes = {"kernel_shape": [2, 3], **window((1, 0), (2, 2)), "ceil_mode": 1}
    check(Case("MaxPool2d", {"x": x}, {"and_mask": mask}, attributes), row)


def test_max_pool_window_larger_than_the_map_in_ceil_mode(isa: str) -> None:
    rng = np.random.default_rng(0)
    check(cases.pool_case(rng, 9, (3, 3), (2, 2), window((0, 0), (2, 2)), 1, batch=1), "ceil")


# --- errors ---


def sound(name: str) -> Case:
    """Six channels, and ten output channels; without hazards."""
    rng = np.random.default_rng(0)
    if "Pack" in name:
        shape = (1, 4, 4, 6) if name == "PackNhwc" else (1, 6, 4, 4)
        return Case(name, {"x": rng.standard_normal(shape).astype(np.float32)}, {"threshold": np.zeros(1, np.float32)})
    if name == "MaxPool2d":
        return cases.pool_case(rng, 6, (2, 2), (4, 4), PLAIN, 0, batch=1)
    return cases.made_convolution(rng, name, 6, 10, 1, (3, 3), (4, 4), PLAIN, batch=1, low=-1)


def constant(name: str, value: Array) -> Callable[[Case], None]:
    return lambda case: case.constants.update({name: value})


def attribute(name: str, value: Any) -> Callable[[Case], None]:
    return lambda case: case.attributes.update({name: value})


BYTES, FLOATS = (lambda *shape: np.zeros(shape, np.uint8)), (lambda *shape: np.zeros(shape, np.float32))
ALL_STEPS = "BinaryConv2dShiftedPreluAddPreluFloatBits"
AT_CREATION = [
    ("BinaryConv2dFloat", constant("weight", BYTES(10, 3, 3, 16)), r"uint8\[O, kh, kw, 8\].*uint8\[10, 3, 3, 16\]"),
    ("BinaryConv2dFloat", constant("weight", BYTES(10, 3, 8)), r"uint8\[10, 3, 8\]"),
    ("BinaryConv2dFloat", constant("weight", BYTES(10, 0, 3, 8)), r"uint8\[10, 0, 3, 8\]"),
    (
        "BinaryConv2dThreshold",
        constant("threshold", np.zeros(1, np.int32)),
        r"threshold has one value for each .*int32",
    ),
    ("BinaryConv2dFloat", constant("scale", FLOATS(9)), r"scale has one value.* 10 .*float\[9\]"),
    ("BinaryConv2dFloat", constant("scale", FLOATS()), r"scale has one value.* 10 .*float\[\]"),
    ("BinaryConv2dBits", constant("bias", FLOATS(10, 1)), r"bias has one value.* 10 .*float\[10, 1\]"),
    ("BinaryConv2dFloatBits", constant("threshold", FLOATS(11)), r"threshold has one value.* 10 .*float\[11\]"),
    ("BinaryConv2dClampFloat", constant("low", FLOATS(2)), r"low has one value.* 10 .*float\[2\]"),
    ("BinaryConv2dAddClampFloat", constant("high", FLOATS(0)), r"high has one value.* 10 .*float\[0\]"),
    (ALL_STEPS, constant("shift_before", FLOATS(5)), r"shift_before has one value.* 10 .*float\[5\]"),
    (ALL_STEPS, constant("slope", FLOATS(6)), r"slope has one value.* 10 .*float\[6\]"),
    (ALL_STEPS, constant("shift_after", FLOATS(7)), r"shift_after has one value.* 10 .*float\[7\]"),
    (ALL_STEPS, constant("slope_2", FLOATS(1, 10)), r"slope_2 has one value.* 10 .*float\[1, 10\]"),
    ("BinaryConv2dThreshold", constant("threshold", np.zeros(11, np.int32)), r"threshold .* 10 .*int32\[11\]"),
    ("BinaryConv2dThreshold", constant("flip", BYTES(10)), r"flip is uint8\[8\].*uint8\[10\]"),
    ("BinaryConv2dFloat", attribute("groups", 4), "groups = 4"),
    ("BinaryConv2dFloat", attribute("groups", 0), "groups = 0"),
    ("BinaryConv2dFloat", attribute("groups", 3), "O a multiple of groups.*groups = 3"),
    ("BinaryConv2dFloat", attribute("low", 1), "low = 1"),
    ("BinaryConv2dTwiceThreshold", attribute("low", -2), "low = -2"),
    ("BinaryConv2dFloat", lambda case: case.attributes.pop("low"), "attribute low: "),
    ("BinaryConv2dTwiceFloat", constant("scale", FLOATS(10)), r"scale has one value.* 20 .*float\[10\]"),
    ("BinaryConv2dTwiceThreshold", constant("threshold", np.zeros(10, np.int32)), r"threshold .* 20 .*int32\[10\]"),
    ("BinaryConv2dFloat", attribute("channels", 0), "channels = 0"),
    ("BinaryConv2dFloat", attribute("channels", 65), "channels = 65"),
    ("BinaryConv2dFloat", attribute("pads", [1, 1]), r"pads is a list of 4 .*\[1, 1\]"),
    ("BinaryConv2dFloat", attribute("pads", [0, 0, 0, -1]), r"pads is a list of 4 .*\[0, 0, 0, -1\]"),
    ("BinaryConv2dFloat", attribute("pads", [2**40, 0, 0, 0]), "pads is a list of 4"),
    ("BinaryConv2dFloat", attribute("strides", [0, 1]), r"strides is a list of 2 .*\[0, 1\]"),
    ("BinaryConv2dFloat", attribute("dilations", [1, 0]), r"dilations is a list of 2 .*\[1, 0\]"),
    ("BinaryConv2dFloat", lambda case: case.attributes.pop("dilations"), "attribute dilations: "),
    ("MaxPool2d", constant("and_mask", BYTES(1, 8)), r"and_mask is uint8\[B\].*uint8\[1, 8\]"),
    ("MaxPool2d", attribute("kernel_shape", [2]), r"kernel_shape is a list of 2 .*\[2\]"),
    ("MaxPool2d", lambda case: case.attributes.pop("ceil_mode"), "attribute ceil_mode: "),
]
AT_RUN = [
    (
        "BinaryConv2dFloat",
        "x",
        BYTES(1, 4, 4, 16),
        r"x is uint8\[N, H, W, 8\] for 6 channels; got uint8\[1, 4, 4, 16\]",
    ),
    ("BinaryConv2dFloatBits", "x", BYTES(1, 4, 8), r"got uint8\[1, 4, 8\]"),
    ("BinaryConv2dThreshold", "x", BYTES(1, 4, 2, 8), r"window of \[3, 3\] does not fit into a map of \[4, 2\]"),
    ("BinaryConv2dThreshold", "x", BYTES(1, 0, 4, 8), r"map of \[0, 4\]"),
    ("BinaryConv2dBits", "x", BYTES(1, 2, 4, 8), r"window of \[3, 3\] does not fit into a map of \[2, 4\]"),
    (
        "BinaryConv2dAddFloat",
        "residual",
        FLOATS(1, 10, 2, 2),
        r"residual is float\[1, 2, 2, 10\].*float\[1, 10, 2, 2\]",
    ),
    (
        "BinaryConv2dAddBits",
        "residual",
        FLOATS(2, 2, 2, 10),
        r"like the result; got float\[2, 2, 2, 10\] with x = uint8",
    ),
    (ALL_STEPS, "residual", FLOATS(1, 1, 1, 10), r"residual is float\[1, 2, 2, 10\].*float\[1, 1, 1, 10\]"),
    (ALL_STEPS, "residual", FLOATS(1, 2, 2), r"residual is float\[1, 2, 2, 10\].*float\[1, 2, 2\]"),
    ("MaxPool2d", "x", BYTES(1, 4, 4, 9), r"uint8\[N, H, W, 8\].*uint8\[1, 4, 4, 9\]"),
    ("MaxPool2d", "x", BYTES(1, 1, 4, 8), r"window of \[2, 2\] does not fit into a map of \[1, 4\]"),
    ("Pack", "x", FLOATS(1, 4, 4), r"float\[N, C, H, W\].*float\[1, 4, 4\]"),
    ("PackNhwc", "x", FLOATS(1, 4, 4), r"float\[N, H, W, C\].*float\[1, 4, 4\]"),
]


@pytest.mark.parametrize("name", [*PACKS, *REPRESENTATIVES, ALL_STEPS, "MaxPool2d"])
def test_sound_cases_run(name: str) -> None:
    check(sound(name), name)


@pytest.mark.parametrize(("name", "spoil", "message"), AT_CREATION)
def test_malformed_node_is_refused_at_creation(name: str, spoil: Callable[[Case], None], message: str) -> None:
    case = sound(name)
    spoil(case)
    with pytest.raises(Exception, match=f"(?s)ai.bnnfx::{name}, node 'the_node': .*{message}"):
        open_session(case)


@pytest.mark.parametrize(("name", "operand", "value", "message"), AT_RUN)
def test_input_that_does_not_fit_is_refused(name: str, operand: str, value: Array, message: str) -> None:
    case = sound(name)
    session = open_session(case, any_rank=True)
    with pytest.raises(Exception, match=f"ai.bnnfx::{name}, node 'the_node': .*{message}"):
        session.run(None, case.inputs | {operand: value})
    assert_same(session.run(None, case.inputs), case.expected(), name)  # the session is still good


def test_threshold_that_does_not_broadcast() -> None:
    for name in PACKS:
        case = sound(name)
        shape = r"\[1, 4, 4, 6\]" if name == "PackNhwc" else r"\[1, 6, 4, 4\]"
        for dims in ((5,), (2, 1, 1, 1), (1, 1, 1, 1, 1), (6, 3)):
            case.constants["threshold"] = FLOATS(*dims)
            with pytest.raises(Exception, match=f"threshold broadcasts to the shape of x; got x = float{shape}"):
                run(case)


@pytest.mark.parametrize(
    ("name", "computed"),
    [(name, key) for name in ("MaxPool2d", "BinaryConv2dThreshold", ALL_STEPS) for key in sound(name).constants],
)
def test_constants_have_to_be_constant(name: str, computed: str) -> None:
    message = rf"{name}, node 'the_node': input \d+ \({computed}\) .*initializer"
    with pytest.raises(Exception, match=message):
        open_session(sound(name), as_inputs=(computed,))


@pytest.mark.parametrize("missing", ["residual", "threshold", "scale"])
def test_input_that_is_missing(missing: str) -> None:
    """ONNX Runtime counts the inputs: a node with fewer is none of the registered operator."""
    case = sound("BinaryConv2dAddFloatBits")
    (case.inputs if missing == "residual" else case.constants).pop(missing)
    with pytest.raises(Exception, match=r"BinaryConv2dAddFloatBits.* input"):
        open_session(case)


@pytest.mark.parametrize("name", sorted(BY_ONNX_NAME))
def test_every_operator_has_a_kernel(name: str) -> None:
    open_session(sound(name))


# --- choice of the instruction set ---


def test_portable_kernels_are_always_there() -> None:
    assert isas()[-1] == "portable"
    assert len(set(isas())) == len(isas())


@pytest.mark.parametrize("name", ["BinaryConv2dFloat", "Pack", "MaxPool2d"])
def test_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("BNNFX_ISA", "sse9")
    with pytest.raises(Exception, match=f"BNNFX_ISA is 'sse9'; this machine has {','.join(isas())}"):
        open_session(sound(name))


def test_empty_variable_means_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNNFX_ISA", "")
    check(sound("BinaryConv2dFloat"), "empty")
