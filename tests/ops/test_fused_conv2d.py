"""The fused convolutions: against plain torch on numbers, step by step, and given wrong arguments."""

import contextlib
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from bnnfx.numerics.bits import pack_bits, row_bytes
from bnnfx.ops import BY_ONNX_NAME, BY_TARGET
from bnnfx.ops.epilogue import Epilogue, epilogues
from bnnfx.ops.fused_conv2d import FUSED_CONV2D

ALL = [pytest.param(epilogue, id=epilogue.name) for epilogue in epilogues()]
NAN, INF = float("nan"), float("inf")

ACTIVATIONS = {
    "": (),
    "clamp": ("low", "high"),
    "prelu": ("slope",),
    "shifted_prelu": ("shift_before", "slope", "shift_after"),
    "hardswish": (),
}


def packed(signs: Tensor) -> Tensor:
    """+-1, or 0 and 1, `[N, C, H, W]` to packed bits `[N, H, W, B]`."""
    return torch.from_numpy(pack_bits((signs.permute(0, 2, 3, 1) > 0).numpy()))


@dataclass
class Call:
    """Operands of one call, as numbers with channels first; constants are `[O]` or `[1]`."""

    x: Tensor
    weight: Tensor
    window: tuple[list[int], list[int], list[int], int]
    constants: dict[str, Tensor] = field(default_factory=dict)
    residual: Tensor | None = None
    low: int = -1

    def arguments(self, epilogue: Epilogue) -> list[object]:
        given: dict[str, Tensor] = {"x": packed(self.x), "weight": packed(self.weight), **self.constants}
        if self.residual is not None:
            given["residual"] = self.residual.permute(0, 2, 3, 1).contiguous()
        names = FUSED_CONV2D[epilogue].tensors
        return [*(given[name] for name in names), self.x.shape[1], *self.window, self.low]


def made(epilogue: Epilogue, seed: int = 0, *, one_for_all: bool = False, **sizes: object) -> Call:
    generator = torch.Generator().manual_seed(seed)
    options: dict = {
        "batch": 2,
        "channels": 6,
        "outputs": 9,
        "size": (5, 6),
        "kernel": (3, 2),
        "groups": 1,
        "low": -(seed % 2),
    } | sizes
    channels, outputs, groups = options["channels"], options["outputs"], options["groups"]
    x = torch.randint(0, 2, (options["batch"], channels, *options["size"]), generator=generator)
    x = torch.where(x == 1, 1.0, float(options["low"]))
    weight = torch.randint(0, 2, (outputs, channels // groups, *options["kernel"]), generator=generator) * 2.0 - 1
    window = ([2, 1], [1, 1], [1, 2] if options["kernel"] != (1, 1) else [1, 1], groups)
    call = Call(x, weight, window, low=options["low"])
    count = 1 if one_for_all else outputs * epilogue.copies

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    call.constants = {"scale": normal(count), "bias": normal(count) * 3}
    suffixes = ["", "_2"] if epilogue.before and epilogue.after else [""] * 2
    for activation, suffix in zip((epilogue.before, epilogue.after), suffixes, strict=True):
        for name in ACTIVATIONS[activation]:
            call.constants[name + suffix] = {
                "low": -normal(count).abs(), "high": normal(count).abs() * 3, "slope": normal(count) / 2
            }.get(name, normal(count))  # fmt: skip
    stream = plain(call, Epilogue(epilogue.before, copies=epilogue.copies))
    if epilogue.adds:
        call.residual = normal(*stream.shape) * 2
        if call.residual.numel():
            call.residual.view(-1)[::7] = -stream.view(-1)[::7]
    if "bits" in epilogue.outputs:
        stream = plain(call, epilogue)
        taken = stream.flatten(2).transpose(0, 1).flatten(1)
        call.constants["threshold"] = taken[:count, 3].clone() if stream.numel() else torch.zeros(count)
    return call


def plain(call: Call, epilogue: Epilogue) -> Tensor:
    """The float stream, channels first: one torch operation per rounding, in the order of the operator's name."""
    integers = F.conv2d(call.x.double(), call.weight.double(), None, *call.window[:3], call.window[3])
    assert torch.equal(integers, integers.round())
    constants = {name: value.view(1, -1, 1, 1) for name, value in call.constants.items()}

    def activate(y: Tensor, kind: str, suffix: str) -> Tensor:
        if kind == "clamp":
            y = torch.maximum(torch.minimum(y, constants["high" + suffix]), constants["low" + suffix])
        elif kind == "prelu":
            y = torch.where(y > 0, y, y * constants["slope" + suffix])
        elif kind == "shifted_prelu":
            y = y + constants["shift_before" + suffix]
            y = torch.where(y > 0, y, y * constants["slope" + suffix])
            y = y + constants["shift_after" + suffix]
        elif kind == "hardswish":
            y = F.hardswish(y)
        return y

    y = torch.cat([integers.float()] * epilogue.copies, 1) * constants["scale"]
    y = y + constants["bias"]
    y = activate(y, epilogue.before, "")
    if epilogue.adds:
        assert call.residual is not None
        y = y + call.residual
    return activate(y, epilogue.after, "_2" if epilogue.before else "")


def assert_gives(epilogue: Epilogue, call: Call) -> None:
    """All outputs of the operator, in order, are those of plain torch."""
    given = FUSED_CONV2D[epilogue].target(*call.arguments(epilogue))
    given = [given] if isinstance(given, Tensor) else list(given)
    stream = plain(call, epilogue)
    expected = []
    if "float" in epilogue.outputs:
        expected.append(stream.permute(0, 2, 3, 1))
    if "bits" in epilogue.outputs:
        expected.append(packed((stream >= call.constants["threshold"].view(1, -1, 1, 1)).float()))
    assert len(given) == len(expected) == len(epilogue.outputs)
    for result, wanted in zip(given, expected, strict=True):
        assert (result.dtype, result.shape, result.is_contiguous()) == (wanted.dtype, wanted.shape, True)
        assert torch.equal(result, wanted)


# --- the grammar ---


def test_names_tell_the_steps() -> None:
    names = {epilogue.name: epilogue for epilogue in FUSED_CONV2D}
    assert len(names) == len(FUSED_CONV2D)
    expected = {
        "_".join(part for part in ("binary_conv2d", copies, before, *then, outputs) if part)
        for copies in ("", "twice")
        for before in ACTIVATIONS
        for then in [(), *(("add", after) for after in ACTIVATIONS)]
        for outputs in ("float", "bits", "float_bits")
    }
    assert set(names) == expected
    for name, epilogue in names.items():
        op = FUSED_CONV2D[epilogue]
        assert op.target is getattr(torch.ops.bnnfx, name).default
        assert (
            op.onnx_name == name.title().replace("_", "").replace("Conv2D", "Conv2d") and op.onnx_name in BY_ONNX_NAME
        )
        assert op.outputs == epilogue.outputs and op.bits_in and BY_TARGET[op.target] is op
        assert (op.compared is None) == ("bits" not in epilogue.outputs)


@pytest.mark.parametrize(
    ("epilogue", "tensors"),
    [
        (Epilogue(), ()),
        (Epilogue(outputs=("bits",)), ("threshold",)),
        (Epilogue("clamp"), ("low", "high")),
        (Epilogue(adds=True, after="prelu", outputs=("float", "bits")), ("residual", "slope", "threshold")),
        (
            Epilogue("shifted_prelu", True, "prelu", ("bits",)),
            ("shift_before", "slope", "shift_after", "residual", "slope_2", "threshold"),
        ),
        (Epilogue("clamp", True, "clamp"), ("low", "high", "residual", "low_2", "high_2")),
    ],
)
def test_operands_in_order(epilogue: Epilogue, tensors: tuple[str, ...]) -> None:
    op = FUSED_CONV2D[epilogue]
    assert op.tensors == ("x", "weight", "scale", "bias", *tensors)
    assert op.attributes == ("channels", "strides", "pads", "dilations", "groups", "low")


# --- values ---


@pytest.mark.parametrize("epilogue", ALL)
def test_steps_in_float32_one_by_one(epilogue: Epilogue) -> None:
    assert_gives(epilogue, made(epilogue))
    assert_gives(epilogue, made(epilogue, 1, one_for_all=True))


FULL = Epilogue("shifted_prelu", True, "clamp", ("float", "bits"))
TWICE = replace(FULL, copies=2)
SHAPES = [
    {"low": 0},
    {"low": 0, "channels": 65, "outputs": 40},
    {"low": 0, "channels": 130, "outputs": 4, "groups": 2},
    {"channels": 1, "outputs": 1},
    {"channels": 64, "outputs": 64},
    {"channels": 65, "outputs": 65},
    {"channels": 6, "outputs": 4, "groups": 2},
    {"channels": 130, "outputs": 2, "groups": 2},
    {"channels": 3, "outputs": 3, "groups": 3},
    {"channels": 65, "outputs": 3, "batch": 0},
    {"channels": 5, "outputs": 2, "size": (1, 1), "kernel": (1, 1)},
]


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_shapes(sizes: dict[str, object]) -> None:
    assert_gives(FULL, made(FULL, **sizes))
    assert_gives(TWICE, made(TWICE, **sizes))


@pytest.mark.parametrize("swapped", [("shift_before", "shift_after"), ("scale", "bias"), ("low_2", "high_2")])
def test_operands_in_another_order_are_noticed(swapped: tuple[str, str]) -> None:
    call, op = made(FULL), FUSED_CONV2D[FULL]
    arguments = call.arguments(FULL)
    expected = plain(call, FULL).permute(0, 2, 3, 1)
    assert torch.equal(op.target(*arguments)[0], expected)
    first, second = (op.tensors.index(name) for name in swapped)
    arguments[first], arguments[second] = arguments[second], arguments[first]
    assert not torch.equal(op.target(*arguments)[0], expected)


def test_one_rounding_would_differ() -> None:
    """What the equality can see: a step that is fused with the next gives another number."""
    epilogue = Epilogue(adds=True)
    call = made(epilogue, channels=65, outputs=65)
    integers = F.conv2d(call.x.double(), call.weight.double(), None, *call.window[:3], call.window[3])
    scale, bias = (call.constants[name].double().view(1, -1, 1, 1) for name in ("scale", "bias"))
    assert call.residual is not None
    once = (integers * scale + bias + call.residual.double()).float()
    assert not torch.equal(once, plain(call, epilogue))


@pytest.mark.parametrize(
    ("residual", "threshold", "bit"),
    [
        (0.0, 3.0, 1),
        (0.0, 3.0000002, 0),
        (-3.0, 0.0, 1),
        (-3.0, -0.0, 1),
        (NAN, -INF, 0),
        (INF, INF, 1),
        (-INF, -INF, 1),
        (-INF, 0.0, 0),
        (0.0, NAN, 0),
    ],
)
def test_bits_at_the_threshold(residual: float, threshold: float, bit: int) -> None:
    """The accumulator is 3."""
    epilogue = Epilogue(adds=True, outputs=("float", "bits"))
    ones = torch.ones(1, 3, 1, 1)
    constants = {"scale": torch.ones(1), "bias": torch.zeros(1), "threshold": torch.tensor([threshold])}
    call = Call(ones, ones, ([1, 1], [0, 0], [1, 1], 1), constants, torch.full((1, 1, 1, 1), residual))
    stream, bits = FUSED_CONV2D[epilogue].target(*call.arguments(epilogue))
    assert bits.tolist() == [[[[bit, 0, 0, 0, 0, 0, 0, 0]]]]
    assert torch.equal(stream.isnan(), torch.full((1, 1, 1, 1), residual != residual))


@pytest.mark.parametrize(
    "epilogue", [FULL, TWICE, Epilogue(outputs=("bits",)), Epilogue(adds=True, outputs=("float", "bits"))]
)
def test_compared_is_the_stream_minus_the_threshold(epilogue: Epilogue) -> None:
    call = made(epilogue)
    compared = FUSED_CONV2D[epilogue].compared
    assert compared is not None
    stream = plain(call, epilogue).permute(0, 2, 3, 1)
    assert torch.equal(compared(*call.arguments(epilogue)), stream - call.constants["threshold"])


# --- registration ---


@pytest.mark.parametrize("epilogue", ALL)
def test_shape_function(epilogue: Epilogue) -> None:
    """The same shapes, types and strides as the reference gives, also of an empty batch."""
    for batch in (0, 2):
        arguments = made(epilogue, batch=batch).arguments(epilogue)
        op = FUSED_CONV2D[epilogue]
        real = op.target(*arguments)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = op.target(*arguments)
        pairs = [(fake, real)] if isinstance(real, Tensor) else list(zip(fake, real, strict=True))
        assert len(pairs) == len(epilogue.outputs)
        for given, wanted in pairs:
            assert (given.dtype, given.shape) == (wanted.dtype, wanted.shape)
            assert batch == 0 or given.stride() == wanted.stride()


@pytest.mark.parametrize("epilogue", [FULL, TWICE, Epilogue(), Epilogue(outputs=("bits",)), Epilogue(adds=True)])
@pytest.mark.parametrize("batch", [0, 2])
def test_opcheck(epilogue: Epilogue, batch: int) -> None:
    op = FUSED_CONV2D[epilogue]
    torch.library.opcheck(op.target, tuple(made(epilogue, batch=batch).arguments(epilogue)))


# --- wrong arguments ---

BYTE_ROW = torch.zeros(2, 5, 6, 16, dtype=torch.uint8)
ERRORS = [
    ("x", BYTE_ROW, r"x is uint8\[N, H, W, 8\] for 6 channels.*uint8\[2, 5, 6, 16\]"),
    ("x", BYTE_ROW[..., :8].float(), r"x is uint8.*float32\[2, 5, 6, 8\]"),
    ("weight", BYTE_ROW, r"weight is uint8.*uint8\[2, 5, 6, 16\]"),
    ("scale", torch.ones(3), r"scale is float32\[1\] or float32\[9\].*float32\[3\]"),
    ("scale", torch.ones(()), r"scale is float32\[1\] or float32\[9\].*float32\[\]"),
    ("bias", torch.ones(9).double(), r"bias is float32\[1\] or float32\[9\].*float64\[9\]"),
    ("shift_before", torch.ones(1, 9), r"shift_before is float32.*float32\[1, 9\]"),
    ("slope", torch.ones(8), r"slope is float32.*float32\[8\]"),
    ("shift_after", torch.ones(0), r"shift_after is float32.*float32\[0\]"),
    ("low_2", torch.ones(2), r"low_2 is float32.*float32\[2\]"),
    ("high_2", torch.ones(9, dtype=torch.int32), r"high_2 is float32.*int32\[9\]"),
    ("threshold", torch.zeros(1, 9, 1, 1), r"threshold is float32.*float32\[1, 9, 1, 1\]"),
    ("residual", torch.zeros(2, 9, 3, 6), r"residual is float32\[2, 3, 6, 9\] like the result.*float32\[2, 9, 3, 6\]"),
    ("residual", torch.zeros(1, 3, 6, 9), r"residual is float32\[2, 3, 6, 9\].*float32\[1, 3, 6, 9\]"),
    ("residual", torch.zeros(2, 3, 6, 1), r"residual is float32\[2, 3, 6, 9\].*float32\[2, 3, 6, 1\]"),
    ("residual", torch.zeros(2, 3, 6, 9).double(), r"residual is float32\[2, 3, 6, 9\].*float64\[2, 3, 6, 9\]"),
    ("channels", 70, r"x is uint8\[N, H, W, 16\] for 70 channels.*uint8\[2, 5, 6, 8\]"),
    ("groups", 2, r"groups divide channels = 6.*groups = 2"),
    ("low", 1, r"low, the value of a 0 bit of x, is -1 or 0; got low = 1"),
    ("strides", [1], r"pairs \(rows, columns\); got \[1\]"),
]


@pytest.mark.parametrize(("name", "value", "message"), ERRORS)
def test_wrong_argument_is_an_error_that_shows_it(name: str, value: object, message: str) -> None:
    call, op = made(FULL), FUSED_CONV2D[FULL]
    arguments = call.arguments(FULL)
    assert op.target(*arguments)[0].shape == (2, 3, 6, 9)
    arguments[[*op.tensors, *op.attributes].index(name)] = value
    with pytest.raises(ValueError, match=message) as error:
        op.target(*arguments)
    assert name == "strides" or f"bnnfx::{FULL.name}: " in str(error.value)


@pytest.mark.parametrize("fake", [False, True])
def test_window_larger_than_the_map(fake: bool) -> None:
    """Refused by the reference and by the shape function alike."""
    call, op = made(FULL, size=(5, 6)), FUSED_CONV2D[FULL]
    arguments = call.arguments(FULL)
    arguments[0] = torch.zeros(2, 5, 1, row_bytes(6), dtype=torch.uint8)
    arguments[[*op.tensors, *op.attributes].index("pads")] = [1, 0]
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext()
    with mode, pytest.raises((ValueError, RuntimeError), match="does not fit into a map of"):
        op.target(*arguments)
