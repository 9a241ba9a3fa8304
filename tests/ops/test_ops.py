"""The torch operators: against plain float formulations, under fake tensors and export, and given wrong arguments."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional as F

from bnnfx.numerics.bits import row_bytes
from bnnfx.ops import BY_TARGET
from bnnfx.ops.fused_conv2d import FUSED_CONV2D

# the fused convolutions, of which there are many, have a file of their own: test_fused_conv2d.py
FUSED = "binary_conv2d_add_float_bits"

OPS = torch.ops.bnnfx
NAN, INF = float("nan"), float("inf")
INT32 = torch.iinfo(torch.int32)
CHANNELS = (1, 64, 65)


def random_signs(*shape, seed):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


def pack_rows(bits):
    """`bool[..., C]` to packed rows, spelled out with shifts."""
    channels = bits.shape[-1]
    padded = F.pad(bits.to(torch.int32), (0, 8 * row_bytes(channels) - channels))
    return (padded.unflatten(-1, (-1, 8)) << torch.arange(8)).sum(-1).to(torch.uint8)


def pack_signs(signs):
    """+-1 `[N, C, H, W]` to packed bits `[N, H, W, B]`; a weight is the same with O for N."""
    return pack_rows(signs.permute(0, 2, 3, 1) > 0)


class Layer:
    """One convolution's operands, packed and as numbers, and its exact accumulators in float64."""

    def __init__(self, channels=5, outputs=4, batch=2, size=(5, 6), kernel=(3, 2), groups=1, seed=0, low=-1, copies=1):
        self.x = random_signs(batch, channels, *size, seed=seed).clamp_min(low)
        self.weight = random_signs(outputs, channels // groups, *kernel, seed=seed + 1)
        self.packed = (pack_signs(self.x), pack_signs(self.weight))
        self.window = (channels, [2, 1], [1, 1], [1, 2], groups, low)
        self.copies, outputs = copies, outputs * copies
        integers = F.conv2d(self.x.double(), self.weight.double(), None, [2, 1], [1, 1], [1, 2], groups)
        assert torch.equal(integers, integers.round())
        self.integers = torch.cat([integers] * copies, 1)
        generator = torch.Generator().manual_seed(seed + 2)
        self.scale, self.bias = torch.rand(2, outputs, generator=generator) - 0.5
        self.threshold = torch.randint(-4, 5, (outputs,), generator=generator, dtype=torch.int32)
        self.flipped = torch.rand(outputs, generator=generator) < 0.5

    def float_arguments(self):
        return (*self.packed, self.scale, self.bias, *self.window, self.copies)

    def fused_arguments(self):
        rows, columns = self.integers.shape[2:]
        residual = random_signs(len(self.x), rows, columns, len(self.weight), seed=5) / 3
        return (*self.packed, self.scale, self.bias, residual, torch.zeros(1), *self.window)

    def threshold_arguments(self):
        return (*self.packed, self.threshold, pack_rows(self.flipped), *self.window)


def pool_arguments(channels=5, batch=2, seed=0):
    x = pack_signs(random_signs(batch, channels, 5, 6, seed=seed))
    mask = pack_rows(random_signs(channels, seed=seed + 1) > 0)
    return (x, mask, [2, 3], [2, 2], [1, 0], [1, 1], 1)


def all_arguments(batch=2):
    """One call of every operator."""
    layer = Layer(batch=batch)
    return {
        "pack": (layer.x * 0.5, torch.zeros(1, 5, 1, 1)),
        "pack_nhwc": (layer.x.permute(0, 2, 3, 1) * 0.5, torch.zeros(1, 1, 1, 5)),
        FUSED: layer.fused_arguments(),
        "binary_conv2d": layer.float_arguments(),
        "binary_conv2d_threshold": layer.threshold_arguments(),
        "binary_conv2d_twice_threshold": Layer(batch=batch, copies=2).threshold_arguments(),
        "max_pool2d": pool_arguments(batch=batch),
    }


NAMES = tuple(all_arguments())


def name_of(op):
    return str(op.target).split(".")[1]


def results(name, arguments):
    """What an operator gives, always as a tuple."""
    given = getattr(OPS, name)(*arguments)
    return (given,) if isinstance(given, torch.Tensor) else tuple(given)


def test_every_operator_is_tested_here():
    assert {name_of(op) for op in BY_TARGET.values() if name_of(op) not in FUSED_NAMES} == set(NAMES) - {FUSED}
    assert len(FUSED_NAMES) == 180


FUSED_NAMES = {epilogue.name for epilogue in FUSED_CONV2D}


# --- values ---


PACKS = ("pack", "pack_nhwc")


def packed_by(name, x, threshold):
    """Bits of `x`, channels first, in the layout that the operator takes."""
    if name == "pack":
        return OPS.pack(x, threshold)
    threshold = threshold.reshape((1,) * (4 - threshold.ndim) + tuple(threshold.shape)).permute(0, 2, 3, 1)
    return OPS.pack_nhwc(x.permute(0, 2, 3, 1), threshold)


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_pack_is_a_comparison(name, channels, batch):
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(batch, channels, 4, 3, generator=generator)
    threshold = torch.randn(1, channels, 1, 1, generator=generator) / 4
    result = packed_by(name, x, threshold)
    assert (result.dtype, result.shape) == (torch.uint8, (batch, 4, 3, row_bytes(channels)))
    assert torch.equal(result, pack_signs((x >= threshold).float()))


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize(
    ("value", "threshold", "bit"),
    [
        (0.0, 0.0, 1),
        (-0.0, 0.0, 1),
        (0.0, -0.0, 1),
        (-1e-45, 0.0, 0),
        (NAN, 0.0, 0),
        (NAN, -INF, 0),
        (1.0, NAN, 0),
        (0.1, 0.1, 1),
        (INF, INF, 1),
        (-INF, -INF, 1),
        (-INF, 0.0, 0),
        (3e38, INF, 0),
    ],
)
def test_pack_at_the_threshold(name, value, threshold, bit):
    result = packed_by(name, torch.full((1, 3, 1, 1), value), torch.full((1, 3, 1, 1), threshold))
    assert result.tolist() == [[[[7 * bit, 0, 0, 0, 0, 0, 0, 0]]]]


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pack_takes_other_float_types(name, dtype):
    x = torch.tensor([-1.0, -0.0, 0.25, NAN], dtype=dtype).view(1, 4, 1, 1)
    assert packed_by(name, x, torch.zeros(1, dtype=dtype)).flatten().tolist() == [0b0110, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1), (2, 1, 1, 1), (3, 1, 1), (2, 3, 4, 5)], ids=str)
def test_pack_with_every_threshold_that_broadcasts(name, shape):
    generator = torch.Generator().manual_seed(1)
    x, threshold = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(shape, generator=generator)
    assert torch.equal(packed_by(name, x, threshold), pack_signs((x >= threshold).float()))


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_pack_does_not_depend_on_memory_format(name, layout):
    x = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(2))
    given = packed_by(name, x.to(memory_format=layout), torch.zeros(()))
    assert torch.equal(given, pack_signs((x >= 0).float()))


CONVOLUTIONS = [
    {"channels": 1, "outputs": 1},
    {"channels": 64, "outputs": 64},
    {"channels": 65, "outputs": 65},
    {"channels": 6, "outputs": 4, "groups": 2},
    {"channels": 130, "outputs": 2, "groups": 2},
    {"channels": 3, "outputs": 3, "groups": 3},
    {"channels": 65, "outputs": 3, "batch": 0},
    {"channels": 5, "outputs": 2, "size": (1, 1), "kernel": (1, 1)},
    {"low": 0},
    {"low": 0, "channels": 130, "outputs": 6, "groups": 2},
    {"copies": 2, "outputs": 40},
    {"low": 0, "copies": 2, "channels": 65, "outputs": 32},
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution_is_rounded_after_product_and_after_sum(case):
    layer = Layer(**case)
    expected = layer.integers.float() * layer.scale.view(-1, 1, 1)  # float32: one rounding here,
    expected = expected + layer.bias.view(-1, 1, 1)  # and one here
    result = OPS.binary_conv2d(*layer.float_arguments())
    assert (result.dtype, result.shape, result.is_contiguous()) == (torch.float32, expected.shape, True)
    assert torch.equal(result, expected)


def test_fused_rounding_would_differ():
    """What the bit-equality above can see: one rounding of scale * z + bias gives another number."""
    layer = Layer(channels=65, outputs=65)
    fused = layer.integers * layer.scale.double().view(-1, 1, 1) + layer.bias.double().view(-1, 1, 1)
    assert not torch.equal(OPS.binary_conv2d(*layer.float_arguments()), fused.float())


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_threshold_compares_integers(case):
    layer = Layer(**case)
    bits = (layer.integers >= layer.threshold.view(-1, 1, 1)) ^ layer.flipped.view(-1, 1, 1)
    compare = OPS.binary_conv2d_threshold if layer.copies == 1 else OPS.binary_conv2d_twice_threshold
    result = compare(*layer.threshold_arguments())
    assert (result.dtype, result.shape) == (torch.uint8, (*bits.shape[:1], *bits.shape[2:], row_bytes(bits.shape[1])))
    assert torch.equal(result, pack_rows(bits.permute(0, 2, 3, 1)))


@pytest.mark.parametrize("offset", [0, 1])
def test_accumulator_exactly_on_the_threshold(offset):
    layer = Layer(outputs=3, size=(3, 3), kernel=(3, 3), batch=1)
    layer.window = (5, [1, 1], [0, 0], [1, 1], 1, -1)
    integers = F.conv2d(layer.x, layer.weight).flatten()
    layer.threshold, layer.flipped = integers.int() + offset, torch.tensor([False, True, False])
    bits = OPS.binary_conv2d_threshold(*layer.threshold_arguments())
    assert bits.flatten().tolist() == [0b010 if offset else 0b101, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("threshold", "reached"), [(INT32.min, True), (-31, True), (31, False), (INT32.max, False)])
def test_threshold_out_of_range_is_a_constant(threshold, reached):
    layer = Layer(channels=5, outputs=65)
    layer.threshold = torch.full((65,), threshold, dtype=torch.int32)
    result = OPS.binary_conv2d_threshold(*layer.threshold_arguments())
    expected = pack_rows(layer.flipped ^ reached).expand(result.shape)  # n = 30
    assert torch.equal(result, expected)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize(("ceil_mode", "columns"), [(0, 2), (1, 3)])
def test_pool_is_max_or_min(channels, batch, ceil_mode, columns):
    x, mask, kernel, stride, padding, dilation, _ = pool_arguments(channels, batch)
    signs, falls = random_signs(batch, channels, 5, 6, seed=0), random_signs(channels, seed=1) > 0
    largest, smallest = (
        s * F.max_pool2d(s * signs, kernel, stride, padding, dilation, bool(ceil_mode)) for s in (1, -1)
    )
    expected = torch.where(falls.view(-1, 1, 1), smallest, largest)
    result = OPS.max_pool2d(x, mask, kernel, stride, padding, dilation, ceil_mode)
    assert result.shape[2] == columns
    assert torch.equal(result, pack_signs(expected))


@pytest.mark.parametrize("name", NAMES)
def test_operands_that_are_views(name):
    """Slices of larger tensors, with strides of their own."""
    arguments = all_arguments()[name]
    views = []
    for value in arguments:
        if isinstance(value, torch.Tensor):
            wide = torch.stack([value, torch.ones_like(value)], dim=-1)[..., 0]
            assert wide.numel() < 2 or not wide.is_contiguous()
            value = wide
        views.append(value)
    for given, expected in zip(results(name, views), results(name, arguments), strict=True):
        assert torch.equal(given, expected)


def test_scale_and_bias_may_be_parameters():
    layer = Layer()
    packed, (scale, bias), window = layer.packed, (nn.Parameter(layer.scale), nn.Parameter(layer.bias)), layer.window
    assert torch.equal(
        OPS.binary_conv2d(*packed, scale, bias, *window, 1).detach(), OPS.binary_conv2d(*layer.float_arguments())
    )


# --- registration ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [0, 2])
def test_opcheck(name, batch):
    torch.library.opcheck(getattr(OPS, name).default, all_arguments(batch)[name])


@pytest.mark.parametrize("name", NAMES)
def test_shape_function_keeps_a_symbolic_batch(name):
    arguments = all_arguments(batch=3)[name]
    expected = results(name, arguments)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fakes = [mode.from_tensor(arguments[0], symbolic_context=dynamic_batch())]
    for argument, value in zip(argument_names(name)[1:], arguments[1:], strict=True):
        context = {"symbolic_context": dynamic_batch()} if argument == "residual" else {"static_shapes": True}
        fakes.append(mode.from_tensor(value, **context) if isinstance(value, torch.Tensor) else value)
    with mode:
        given = results(name, fakes)
    assert len(given) == len(expected)
    for fake, real in zip(given, expected, strict=True):
        assert isinstance(fake.shape[0], torch.SymInt)
        assert str(fake.shape[0]) == str(fakes[0].shape[0])  # the symbol itself, not a number
        assert tuple(fake.shape[1:]) == tuple(real.shape[1:])
        assert (fake.dtype, fake.stride()[1:]) == (real.dtype, real.stride()[1:])


def argument_names(name):
    return [argument.name for argument in getattr(OPS, name).default._schema.arguments]


def dynamic_batch():
    return StatelessSymbolicContext([DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * 3)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PACKS])
@pytest.mark.parametrize("fake", [False, True])
def test_window_larger_than_the_map(name, fake):
    """Refused by the reference and by the shape function alike."""
    arguments = list(all_arguments()[name])
    arguments[0] = arguments[0][:, :, :1].contiguous()  # one column, but dilated or unpadded windows of two
    arguments[argument_names(name).index("pads")] = [1, 0]
    if name == "max_pool2d":
        arguments[argument_names(name).index("ceil_mode")] = 0
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext()
    with mode, pytest.raises((ValueError, RuntimeError), match="does not fit into a map of"):
        getattr(OPS, name)(*arguments)


class AllOps(nn.Module):
    """pack, convolution to bits, pooling of bits, convolutions to numbers, and a stream with a residual."""

    def __init__(self):
        super().__init__()
        first, second = Layer(channels=65, outputs=70, kernel=(3, 3)), Layer(channels=140, outputs=3, seed=9)
        flip = pack_rows(first.flipped)
        tensors = {"w1": first.packed[1], "threshold": first.threshold, "flip": flip}
        tensors |= {"w2": second.packed[1], "scale": second.scale, "bias": second.bias}
        tensors |= {"w4": Layer(channels=70, outputs=70, kernel=(3, 3), seed=4).packed[1]}
        tensors |= {"w3": Layer(channels=3, outputs=3, kernel=(1, 1)).packed[1]}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x):
        zero = torch.zeros(1)
        window = ([1, 1], [0, 0], [1, 1], 1, -1)
        padded = ([1, 1], [1, 1], [1, 1])
        bits = OPS.pack(x, torch.zeros(1, 1, 1, 1))
        bits = OPS.binary_conv2d_threshold(bits, self.w1, self.threshold, self.flip, 65, *padded, 1, -1)
        both, twice = self.threshold.repeat(2), torch.zeros(24, dtype=torch.uint8)
        bits = OPS.binary_conv2d_twice_threshold(bits, self.w4, both, twice, 70, *padded, 1, 0)
        bits = OPS.max_pool2d(bits, twice, [2, 2], [2, 2], [0, 0], [1, 1], 0)
        y = OPS.binary_conv2d(bits, self.w2, self.scale, self.bias, 140, [1, 1], [1, 0], [1, 1], 1, 0, 1)
        stream = y.permute(0, 2, 3, 1)
        bits = OPS.pack_nhwc(stream, zero)
        stream, _ = OPS.binary_conv2d_add_float_bits(bits, self.w3, self.scale, self.bias, stream, zero, 3, *window)
        bits = OPS.pack_nhwc(stream, stream.mean((1, 2, 3), keepdim=True))
        return OPS.binary_conv2d(bits, self.w3, self.scale, self.bias, 3, *window, 1)


def test_export_with_a_dynamic_batch():
    module, generator = AllOps(), torch.Generator().manual_seed(3)
    example = torch.randn(3, 65, 6, 8, generator=generator)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert {op.target for op in BY_TARGET.values() if name_of(op) in NAMES} <= targets
    exported = program.module()
    for batch in (1, 2, 3, 7):
        x = torch.randn(batch, 65, 6, 8, generator=generator)
        result = exported(x)
        assert result.shape[0] == batch
        assert torch.equal(result, module(x))
    assert module(example[:0]).shape == (0, *module(example).shape[1:])


# --- wrong arguments ---


def replaced(name, position, value):
    arguments = list(all_arguments()[name])
    arguments[position] = value
    return arguments


BYTE_ROW = torch.zeros(2, 5, 6, 16, dtype=torch.uint8)
CONVOLUTION_ERRORS = [
    (0, BYTE_ROW, r"x is uint8\[N, H, W, 8\] for 5 channels.*uint8\[2, 5, 6, 16\]"),
    (0, BYTE_ROW[..., :8].float(), r"x is uint8.*float32\[2, 5, 6, 8\]"),
    (0, BYTE_ROW[0, ..., :8], r"x is uint8.*uint8\[5, 6, 8\]"),
    (1, BYTE_ROW, r"weight is uint8.*uint8\[2, 5, 6, 16\]"),
    (1, BYTE_ROW[..., :8].float(), r"weight is uint8.*float32\[2, 5, 6, 8\]"),
    (1, BYTE_ROW[0, ..., :8], r"weight is uint8.*uint8\[5, 6, 8\]"),
    (4, 70, r"x is uint8\[N, H, W, 16\] for 70 channels.*uint8\[2, 5, 6, 8\]"),
    (8, 2, r"groups divide channels = 5.*groups = 2"),
    (9, 1, r"low, the value of a 0 bit of x, is -1 or 0; got low = 1"),
]
THRESHOLDS = ("binary_conv2d_threshold", "binary_conv2d_twice_threshold")
ERRORS = [
    ("pack", 0, torch.zeros(2, 5, 6), r"x is float\[N, C, H, W\].*float32\[2, 5, 6\]"),
    ("pack", 0, torch.zeros(2, 5, 5, 6, dtype=torch.int32), r"x is float\[N, C, H, W\].*int32\[2, 5, 5, 6\]"),
    ("pack", 1, torch.zeros(1, 4, 1, 1), r"threshold broadcasts.*float32\[2, 5, 5, 6\].*float32\[1, 4, 1, 1\]"),
    ("pack", 1, torch.zeros(1, 1, 1, 1, 1), r"threshold broadcasts.*float32\[1, 1, 1, 1, 1\]"),
    ("pack_nhwc", 0, torch.zeros(2, 5, 6), r"x is float\[N, H, W, C\].*float32\[2, 5, 6\]"),
    ("pack_nhwc", 1, torch.zeros(6, 1, 1), r"threshold broadcasts.*float32\[2, 5, 6, 5\].*float32\[6, 1, 1\]"),
    *[(name, *error) for name in ("binary_conv2d", *THRESHOLDS) for error in CONVOLUTION_ERRORS],
    ("binary_conv2d", 2, torch.ones(3), r"scale is float32\[4\].*float32\[3\]"),
    ("binary_conv2d", 2, torch.ones(()), r"scale is float32\[4\].*float32\[\]"),
    ("binary_conv2d", 2, torch.ones(4).double(), r"scale is float32\[4\].*float64\[4\]"),
    ("binary_conv2d", 3, torch.ones(1, 4), r"bias is float32\[4\].*float32\[1, 4\]"),
    ("binary_conv2d_threshold", 2, torch.ones(4), r"threshold is int32\[4\].*float32\[4\]"),
    ("binary_conv2d_threshold", 2, torch.ones(1, dtype=torch.int32), r"threshold is int32\[4\].*int32\[1\]"),
    ("binary_conv2d_twice_threshold", 2, torch.zeros(4, dtype=torch.int32), r"threshold is int32\[8\].*int32\[4\]"),
    ("binary_conv2d_threshold", 3, torch.zeros(4, dtype=torch.uint8), r"flip is uint8\[8\].*uint8\[4\]"),
    ("binary_conv2d_threshold", 3, torch.zeros(8, dtype=torch.bool), r"flip is uint8\[8\].*bool\[8\]"),
    ("max_pool2d", 0, BYTE_ROW, r"and_mask is uint8\[B\].*uint8\[2, 5, 6, 16\].*uint8\[8\]"),
    ("max_pool2d", 0, BYTE_ROW[..., :8].float(), r"x is uint8\[N, H, W, B\].*float32\[2, 5, 6, 8\]"),
    ("max_pool2d", 0, BYTE_ROW[0, ..., :8], r"x is uint8\[N, H, W, B\].*uint8\[5, 6, 8\]"),
    ("max_pool2d", 1, torch.zeros(8), r"and_mask is uint8\[B\].*float32\[8\]"),
]


@pytest.mark.parametrize(("name", "position", "value", "message"), ERRORS)
def test_wrong_argument_is_an_error_that_shows_it(name, position, value, message):
    with pytest.raises(ValueError, match=rf"bnnfx::{name}: .*{message}"):
        getattr(OPS, name)(*replaced(name, position, value))


def test_threshold_that_would_widen_the_map_is_refused():
    """One channel against eight thresholds: broadcasting would make eight channels of it."""
    with pytest.raises(ValueError, match=r"bnnfx::pack: threshold broadcasts to the shape of x"):
        OPS.pack(torch.zeros(2, 1, 3, 3), torch.zeros(1, 8, 1, 1))


def test_filters_that_groups_do_not_divide():
    layer = Layer(channels=6, outputs=4, groups=2)
    arguments = [layer.packed[0], layer.packed[1][:3], layer.scale[:3], layer.bias[:3], *layer.window, 1]
    with pytest.raises(ValueError, match=r"bnnfx::binary_conv2d: .*groups divide.*uint8\[3, 3, 2, 8\], groups = 2"):
        OPS.binary_conv2d(*arguments)


def test_arguments_of_the_tests_are_right():
    """The errors above come from the one argument that is replaced."""
    for name, arguments in all_arguments().items():
        for result in results(name, arguments):
            assert result.numel() > 0
            assert np.isfinite(result.numpy()).all()
