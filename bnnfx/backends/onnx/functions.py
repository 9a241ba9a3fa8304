"""Standard-operator bodies of the packed operators: model-local ONNX functions of domain `ai.bnnfx`.

A file that holds packed nodes carries these functions, so a runtime that has never heard of bnnfx inlines them and gets
the bits that the kernels give. Inputs and attributes of a function are those of its torch operator (`bnnfx.ops`), with
`pads` spelled as in ONNX, `[top, left, bottom, right]`: a node of a body can repeat an attribute of the function, not
compute with it.

How the bodies compute:

1. Bytes to numbers. A byte indexes a table of 256 rows that hold the values of its 8 bits. This one `Gather` replaces a
   shift and a mask, which ONNX Runtime computes bit by bit. The numbers are single bytes until they are in NCHW order.
2. Weights go the same way. They are constants, so a runtime that folds constants unpacks them once, at load time. The
   same holds for what is computed below from attributes and static shapes, by `Range`, `Where` and the like.
3. Convolution is the float `Conv`; its zero padding is that of the trained network. Sums of +-1 are exact below 2**24.
4. Bits to bytes. A 1x1 `ConvInteger` sums the place values 1, 2, .. 128 of the 8 channels of a byte; its filters for
   the bytes that fill up the last 64-bit word are 0.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, helper, inliner
from onnxscript import FLOAT, INT8, INT32, INT64, UINT8, opset18, script
from onnxscript.onnx_types import TensorType
from onnxscript.values import Opset

from bnnfx.ops.epilogue import Epilogue
from bnnfx.ops.fused_conv2d import FUSED_CONV2D
from bnnfx.ops.packed_op import ONNX_DOMAIN, OPSET_VERSION
from bnnfx.ops.recorder import operations
from bnnfx.ops.steps import STEPS, Step

OLDEST_OPSET = 18
"""First version of the standard operators that has all that the bodies use (`BitwiseXor`, `Pad` with axes)."""

_DOMAIN = Opset(ONNX_DOMAIN, OPSET_VERSION)
op: Any = opset18  # its annotations take tensors of one type only, not the results of other operators

# Constants are spelled `op.Constant`: a bare number in an argument becomes a constant and a `CastLike`. No numbers and
# single floats are tensors in it: onnxslim makes Python's numbers of the others, and float64 of those.
_NOTHING = helper.make_tensor("nothing", INT64.dtype, [0], [])


@script(_DOMAIN, default_opset=op)
def _row_bits(channels: INT64) -> INT64:
    """Length of a packed row of `channels` bits, rounded up to whole 64-bit words."""
    word = op.Constant(value_int=64)
    bits: INT64 = op.Mul(op.Div(op.Add(channels, op.Constant(value_int=63)), word), word)
    return bits


@script(_DOMAIN, default_opset=op)
def _sizes(x: TensorType) -> INT64:
    """Shape of `x`, except that the batch is 0.

    The batch is usually open, and ONNX Runtime folds the shape of a tensor only if all of it is known. Taking no items
    costs nothing and leaves the static sizes.
    """
    sizes: INT64 = op.Shape(op.Gather(x, op.Constant(value=_NOTHING), axis=0))
    return sizes


@script(_DOMAIN, default_opset=op)
def _values_of_bytes(low: INT64) -> INT8:
    """What the bits of each byte stand for, `int8[256, 8]`: 1 where a bit is set, else `low`."""
    zero, one, two = op.Constant(value_int=0), op.Constant(value_int=1), op.Constant(value_int=2)
    byte = op.Unsqueeze(op.Range(zero, op.Constant(value_int=256), one), op.Constant(value_ints=[1]))
    bits = op.Mod(op.Div(byte, op.Constant(value_ints=[1, 2, 4, 8, 16, 32, 64, 128])), two)
    table: INT8 = op.Cast(op.Where(op.Equal(bits, one), one, low), to=INT8.dtype)
    return table


@script(_DOMAIN, default_opset=op)
def _unpack(packed: UINT8, channels: INT64, table: INT8) -> FLOAT:
    """Packed `[N, H, W, B]` to `float[N, channels, H, W]` by `_values_of_bytes`; `channels` is `int64[1]`."""
    by_byte = op.Gather(table, op.Cast(packed, to=INT32.dtype), axis=0)  # [N, H, W, B, 8]
    # The row is computed: a reshape cannot infer it for an empty batch. It comes from the attribute, not from the shape
    # of `packed`, because ONNX Runtime would turn that into a reshape that infers it.
    shape = op.Concat(op.Constant(value_ints=[0, 0, 0]), _row_bits(channels), axis=0)
    rows = op.Reshape(by_byte, shape)
    used = op.Slice(rows, op.Constant(value_ints=[0]), channels, op.Constant(value_ints=[3]))
    unpacked: FLOAT = op.Cast(op.Transpose(used, perm=[0, 3, 1, 2]), to=FLOAT.dtype)
    return unpacked


@script(_DOMAIN, default_opset=op)
def _pack(bits: UINT8, channels: INT64) -> UINT8:
    """Bits as `uint8[N, channels, H, W]` of 0 and 1 to packed `[N, H, W, B]`; `channels` is `int64[1]`."""
    zero, one, eight = op.Constant(value_int=0), op.Constant(value_int=1), op.Constant(value_int=8)
    channel = op.Range(zero, op.Squeeze(channels), one)
    row_bytes = op.Squeeze(op.Div(_row_bits(channels), eight))
    byte = op.Unsqueeze(op.Range(zero, row_bytes, one), op.Constant(value_ints=[1]))
    place = op.Gather(op.Constant(value_ints=[1, 2, 4, 8, 16, 32, 64, 128]), op.Mod(channel, eight))
    filters = op.Cast(op.Where(op.Equal(byte, op.Div(channel, eight)), place, zero), to=UINT8.dtype)  # [B, channels]
    sums = op.ConvInteger(bits, op.Unsqueeze(filters, op.Constant(value_ints=[2, 3])))
    packed: UINT8 = op.Transpose(op.Cast(sums, to=UINT8.dtype), perm=[0, 2, 3, 1])
    return packed


@script(_DOMAIN, default_opset=op)
def _accumulate(
    x: UINT8,
    weight: UINT8,
    channels: int,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    low: int,
) -> FLOAT:
    """Accumulators of a packed convolution, integers held as `float[N, O, OH, OW]`; a 0 bit of `x` is `low`."""
    all_channels = op.Unsqueeze(op.Constant(value_int=channels), op.Constant(value_ints=[0]))
    group_channels = op.Div(all_channels, op.Constant(value_int=groups))
    values = _unpack(x, all_channels, _values_of_bytes(op.Constant(value_int=low)))
    filters = _unpack(weight, group_channels, _values_of_bytes(op.Constant(value_int=-1)))
    integers: FLOAT = op.Conv(values, filters, strides=strides, pads=pads, dilations=dilations, group=groups)
    return integers


@script(_DOMAIN, default_opset=op)
def Pack(x: FLOAT, threshold: FLOAT) -> UINT8:
    """Bit 1 where `x >= threshold`; a comparison with NaN is false, which is bit 0."""
    bits = op.Cast(op.GreaterOrEqual(x, threshold), to=UINT8.dtype)
    channels = op.Slice(_sizes(x), op.Constant(value_ints=[1]), op.Constant(value_ints=[2]))
    packed: UINT8 = _pack(bits, channels)
    return packed


@script(_DOMAIN, default_opset=op)
def PackNhwc(x: FLOAT, threshold: FLOAT) -> UINT8:
    """`Pack` of a map whose channels are last."""
    bits = op.Transpose(op.Cast(op.GreaterOrEqual(x, threshold), to=UINT8.dtype), perm=[0, 3, 1, 2])
    channels = op.Slice(_sizes(x), op.Constant(value_ints=[3]), op.Constant(value_ints=[4]))
    packed: UINT8 = _pack(bits, channels)
    return packed


# --- the steps of a fused convolution, on maps [N, C, H, W] ---


@script(_DOMAIN, default_opset=op)
def _per_map(constant: FLOAT) -> FLOAT:
    """One value per channel, or one for all, to broadcast over a map."""
    column: FLOAT = op.Unsqueeze(constant, op.Constant(value_ints=[1, 2]))
    return column


@script(_DOMAIN, default_opset=op)
def _shifted(x: FLOAT, shift: FLOAT) -> FLOAT:
    """ONNX Runtime drops the addition of a single 0.0, which makes 0.0 of -0.0; `lower` writes -0.0 in its place."""
    y: FLOAT = op.Add(x, _per_map(shift))
    return y


@script(_DOMAIN, default_opset=op)
def _twice(x: FLOAT) -> FLOAT:
    """Two copies, one behind the other on the axis of the channels."""
    y: FLOAT = op.Concat(x, x, axis=1)
    return y


@script(_DOMAIN, default_opset=op)
def _filters(weight: UINT8) -> INT64:
    """How many output channels there are, `int64[1]`."""
    count: INT64 = op.Shape(weight, start=0, end=1)
    return count


@script(_DOMAIN, default_opset=op)
def _filters_twice(weight: UINT8) -> INT64:
    count: INT64 = op.Mul(_filters(weight), op.Constant(value_int=2))
    return count


@script(_DOMAIN, default_opset=op)
def _scaled(integers: FLOAT, scale: FLOAT, bias: FLOAT) -> FLOAT:
    """`float32(accumulator) * scale + bias`, rounded after the product and after the sum."""
    # Without the way through int32 a runtime may move scale and bias into the filters, which rounds differently.
    exact = op.Cast(op.Cast(integers, to=INT32.dtype), to=FLOAT.dtype)
    y: FLOAT = _shifted(op.Mul(exact, _per_map(scale)), bias)
    return y


@script(_DOMAIN, default_opset=op)
def _add(x: FLOAT, residual: FLOAT) -> FLOAT:
    """The residual comes with its channels last."""
    y: FLOAT = op.Add(x, op.Transpose(residual, perm=[0, 3, 1, 2]))
    return y


@script(_DOMAIN, default_opset=op)
def _channels_last(x: FLOAT) -> FLOAT:
    y: FLOAT = op.Transpose(x, perm=[0, 2, 3, 1])
    return y


@script(_DOMAIN, default_opset=op)
def _compared(x: FLOAT, threshold: FLOAT, channels: INT64) -> UINT8:
    """Packed bits of `x >= threshold`; `channels` is `int64[1]`."""
    bits = op.Cast(op.GreaterOrEqual(x, _per_map(threshold)), to=UINT8.dtype)
    packed: UINT8 = _pack(bits, channels)
    return packed


_KINDS = {
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "divide": "Div",
    "greater": "Greater",
    "less": "Less",
    "where": "Where",
}
"""How ONNX calls the operations of a step."""


def _step(step: Step) -> FunctionProto:
    """What a step does to a map `x`, from its row."""
    nodes = [helper.make_node("Constant", [], ["axes"], value_ints=[1, 2])]  # as in `_per_map`
    nodes += [helper.make_node("Unsqueeze", [name, "axes"], [f"{name}_per_map"]) for name in step.constants]
    for operation in operations(step):
        operands = []
        for number, operand in enumerate(operation.operands):
            if isinstance(operand, float):
                value = helper.make_tensor("value", FLOAT.dtype, [], [operand])
                nodes.append(helper.make_node("Constant", [], [f"{operation.result}_{number}"], value=value))
                operands.append(nodes[-1].output[0])
            else:
                operands.append(f"{operand}_per_map" if operand in step.constants else operand)
        nodes.append(helper.make_node(_KINDS[operation.kind], operands, [operation.result]))
    imports = [helper.make_opsetid("", OLDEST_OPSET)]
    inputs = ["x", *step.constants]
    return helper.make_function(ONNX_DOMAIN, f"_{step.name}", inputs, [*nodes[-1].output], nodes, imports)


def _fused_conv2d(epilogue: Epilogue) -> FunctionProto:
    """The body of `BinaryConv2d<Steps>`: the functions above, one after the other."""
    signature = FUSED_CONV2D[epilogue].signature
    assert signature.onnx_name is not None
    remaining = list(epilogue.tensors)
    nodes: list[NodeProto] = []

    def call(function: str, inputs: Sequence[str], constants: int = 0) -> str:
        """Append a call that takes the next `constants` tensors too, and give the name of its result."""
        taken = [remaining.pop(0) for _ in range(constants)]
        result = f"step{len(nodes)}"
        nodes.append(helper.make_node(function, [*inputs, *taken], [result], domain=ONNX_DOMAIN))
        return result

    def step(name: str, stream: str) -> str:
        return call(f"_{name}", [stream], len(STEPS[name].constants)) if name else stream

    stream = call(_accumulate.name, ["x", "weight"])
    kinds = {"int": AttributeProto.INT, "ints": AttributeProto.INTS}
    nodes[0].attribute.extend(helper.make_attribute_ref(n, kinds[kind]) for n, kind in signature.attributes.items())
    if epilogue.copies == 2:
        stream = call(_twice.name, [stream])
    stream = step(epilogue.before, call(_scaled.name, [stream], 2))
    if epilogue.adds:
        stream = step(epilogue.after, call(_add.name, [stream], 1))
    count = _filters_twice if epilogue.copies == 2 else _filters
    given = {
        "float": lambda: call(_channels_last.name, [stream]),
        "bits": lambda: call(_compared.name, [stream, "threshold", call(count.name, ["weight"])]),
    }
    results = [given[output]() for output in epilogue.outputs]
    return helper.make_function(
        ONNX_DOMAIN,
        signature.onnx_name,
        [tensor.name for tensor in signature.inputs],
        results,
        nodes,
        [helper.make_opsetid(ONNX_DOMAIN, OPSET_VERSION)],
        list(signature.attributes),
    )


@script(_DOMAIN, default_opset=op)
def _compared_integers(integers: FLOAT, threshold: INT32, flip: UINT8) -> UINT8:
    """Packed bits `(accumulator >= threshold) xor flip`."""
    # Exact in float: a threshold that float32 must round is at least 2**24 away from 0, which accumulators are not.
    at_least = op.Unsqueeze(op.Cast(threshold, to=FLOAT.dtype), op.Constant(value_ints=[1, 2]))
    bits = op.Cast(op.GreaterOrEqual(integers, at_least), to=UINT8.dtype)
    packed: UINT8 = op.BitwiseXor(_pack(bits, op.Shape(threshold)), flip)
    return packed


@script(_DOMAIN, default_opset=op)
def BinaryConv2dThreshold(
    x: UINT8,
    weight: UINT8,
    threshold: INT32,
    flip: UINT8,
    channels: int,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    low: int,
) -> UINT8:
    """Bit `(accumulator >= threshold[O]) xor flip`."""
    integers = _accumulate(x, weight, channels, strides, pads, dilations, groups, low)
    packed: UINT8 = _compared_integers(integers, threshold, flip)
    return packed


@script(_DOMAIN, default_opset=op)
def BinaryConv2dTwiceThreshold(
    x: UINT8,
    weight: UINT8,
    threshold: INT32,
    flip: UINT8,
    channels: int,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    low: int,
) -> UINT8:
    """Two bits per accumulator, `(accumulator >= threshold[2 * O]) xor flip`."""
    integers = _twice(_accumulate(x, weight, channels, strides, pads, dilations, groups, low))
    packed: UINT8 = _compared_integers(integers, threshold, flip)
    return packed


@script(_DOMAIN, default_opset=op)
def MaxPool2d(
    x: UINT8,
    and_mask: UINT8,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int,
) -> UINT8:
    """OR of the bits of a window; AND, which is NOT OR(NOT bits), where `and_mask` is 1.

    The padding is made by hand, as 0 bits, and it includes what `ceil_mode` asks for: runtimes and shape inference do
    not agree on `ceil_mode` of `MaxPool`. Here it is torch's, where no window starts past the map. Along each axis:

    1. `room = size + begin + end - dilation * (kernel - 1) - 1` is the farthest possible start of a window.
    2. The last window starts at `stride * min(ceil(room / stride), floor((size + begin - 1) / stride))`.
    3. If that is beyond `room`, the difference is added to the lower padding.
    """
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    padding, stride = op.Constant(value_ints=pads), op.Constant(value_ints=strides)
    two, four = op.Constant(value_ints=[2]), op.Constant(value_ints=[4])
    begin, end = op.Slice(padding, op.Constant(value_ints=[0]), two), op.Slice(padding, two, four)
    size = op.Slice(_sizes(x), op.Constant(value_ints=[1]), op.Constant(value_ints=[3]))
    past_begin = op.Add(size, begin)
    span = op.Mul(op.Constant(value_ints=dilations), op.Sub(op.Constant(value_ints=kernel_shape), one))
    room = op.Sub(op.Add(past_begin, end), op.Add(span, one))
    round_up = op.Div(op.Sub(op.Add(room, stride), one), stride)
    last = op.Mul(stride, op.Min(round_up, op.Div(op.Sub(past_begin, one), stride)))
    more = op.Mul(op.Max(op.Sub(last, room), zero), op.Constant(value_int=ceil_mode))
    all_pads = op.Add(padding, op.Concat(op.Constant(value_ints=[0, 0]), more, axis=0))
    padded = op.Pad(op.BitwiseXor(x, and_mask), all_pads, None, op.Constant(value_ints=[1, 2]))

    # float, because the runtimes' MaxPool of bytes is many times slower
    channels = op.Mul(op.Shape(and_mask), op.Constant(value_int=8))
    bits = _unpack(padded, channels, _values_of_bytes(zero))
    pooled = op.MaxPool(bits, kernel_shape=kernel_shape, strides=strides, dilations=dilations)
    packed: UINT8 = op.BitwiseXor(_pack(op.Cast(pooled, to=UINT8.dtype), channels), and_mask)
    return packed


_STAGES = (_twice, _shifted, _scaled, _add, _channels_last, _compared)
_COUNTS = (_row_bits, _sizes, _filters, _filters_twice)
_HELPERS = (*_COUNTS, _values_of_bytes, _unpack, _pack, _accumulate, _per_map, *_STAGES, _compared_integers)

BODIES: dict[str, Callable[[], FunctionProto]] = {
    function.name: function.to_function_proto
    for function in (Pack, PackNhwc, BinaryConv2dThreshold, BinaryConv2dTwiceThreshold, MaxPool2d)
}
"""The bodies that are written out, by operator; those of fused convolutions are put together from their steps."""


def function_protos(names: Collection[str], opset: int = OLDEST_OPSET) -> list[FunctionProto]:
    """The bodies of packed operators, one function each, calling nothing but standard operators.

    Args:
        names: the operators, as ONNX spells them.
        opset: version of the standard operators that the model imports; its functions must import the same.

    Raises:
        ValueError: if `opset` is older than `OLDEST_OPSET`.
    """
    if opset < OLDEST_OPSET:
        raise ValueError(f"packed operators need opset {OLDEST_OPSET} or newer, got opset {opset}")
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(ONNX_DOMAIN, OPSET_VERSION)]
    fused = [epilogue for epilogue, packed in FUSED_CONV2D.items() if packed.onnx_name in names]
    helpers = [*(function.to_function_proto() for function in _HELPERS), *map(_step, STEPS.values())]
    functions = [*helpers, *(make() for name, make in BODIES.items() if name in names), *map(_fused_conv2d, fused)]
    for function in functions:
        del function.opset_import[:]
        function.opset_import.extend(imports)
    library = ModelProto(ir_version=10, opset_import=imports, functions=functions)
    library.graph.name = "library"
    inlined = inliner.inline_selected_functions(
        library, [(ONNX_DOMAIN, function.name) for function in helpers]
    ).functions
    return [function for function in inlined if function.name in names]
