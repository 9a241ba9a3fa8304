"""Running an ONNX file with every bit that it computes laid open, or with the bits of another run in their place."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import torch
from torch import Tensor

from bnnfx.backends.onnx.packed_maps import PackedMap, packed_maps
from bnnfx.backends.onnx.symbolic import from_onnx
from bnnfx.errors import StageError
from bnnfx.graph.shapes import leaves_of
from bnnfx.numerics.bits import unpack_bits
from bnnfx.ops import BY_ONNX_NAME, PackedOp
from bnnfx.ops.packed_op import ONNX_DOMAIN
from bnnfx.runtime.session import OPSET_KEY, open_session
from bnnfx.verification.bit_trace import Bits, BitTrace, packed_map, rows_of

Array = npt.NDArray[Any]

_GIVEN = "bnnfx_given_"


def is_ours(model: onnx.ModelProto) -> bool:
    """Whether `export_onnx` wrote it."""
    return any(entry.key == OPSET_KEY for entry in model.metadata_props)


def trace_file(
    model: onnx.ModelProto,
    source: str,
    inputs: tuple[Tensor, ...],
    *,
    kernels: bool = True,
    given: BitTrace | None = None,
    reference: bool = True,
    optimize: bool = True,
) -> BitTrace:
    """Run a file.

    Args:
        model: its content, which is changed.
        source: what it is called in errors.
        inputs: the arguments of forward.
        kernels: run it with the kernel library.
        given: another run, whose bits all readers of a packed map get; see `trace_bits`.
        reference: compare every node of ours with the reference operator on the same inputs.
        optimize: let the runtime optimize the graph first.

    Raises:
        StageError: `export_onnx` did not write it.
        ModelFileError: it cannot be run.
    """
    if not is_ours(model):
        raise StageError(f"{source} was not written by bnnfx.export_onnx, so it is no form of a binary model.")
    graph, samples = model.graph, len(inputs[0])
    maps = packed_maps(model)
    constants = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    outputs = [value.name for value in graph.output]
    feeds = dict(zip((value.name for value in graph.input), (x.numpy() for x in inputs), strict=False))
    replaced: dict[str, Array] = {}
    if len(feeds) == len(inputs):
        replaced = _give(graph, maps, given, feeds)
    else:
        feeds = {str(number): x.numpy() for number, x in enumerate(inputs)}  # the session says what is wrong with them
    ours = [node for node in graph.node if node.domain == ONNX_DOMAIN]
    nodes = ours if reference else []
    wanted = [name for node in nodes for name in (*node.input, *node.output)]
    wanted += [name for node in ours for name in _compared_by(node)]
    wanted += [name for packed in maps for name in (packed.name, *packed.compared)]
    known = {*constants, *feeds, *outputs}
    exposed = [name for name in dict.fromkeys(wanted) if name not in known]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in exposed)
    values = open_session(model, source, kernels=kernels, optimize=optimize).run(*feeds.values())
    computed = values if isinstance(values, tuple) else (values,)
    by_name = constants | feeds | dict(zip([*outputs, *exposed], computed, strict=True))
    trace = BitTrace(outputs=[by_name[name] for name in outputs], of_file=True, samples=samples)
    makers: dict[str, onnx.NodeProto] = {}
    for node in ours:
        op = BY_ONNX_NAME[node.op_type]
        trace.constants[node.name] = [constants[name] for name in node.input if name in constants]
        if reference:
            trace.faults[node.name] = _wrong_bytes(op, _call(node, by_name), [by_name[name] for name in node.output])
        if op.compared is not None:
            makers[node.output[op.outputs.index("bits")]] = node
    for packed in maps:
        trace.same |= dict.fromkeys(packed.also, packed.name)
        if packed.inner:
            trace.inner.add(packed.name)
        if packed.name in replaced and np.array_equal(by_name[packed.name], feeds[_GIVEN + packed.name]):
            trace.bits[packed.name] = Bits(replaced[packed.name], None)  # what was compared is of no interest
            continue
        maker = makers.get(packed.name)
        compared = None if maker is None else _distance(maker, BY_ONNX_NAME[maker.op_type], by_name)
        if packed.compared:
            compared = np.subtract(*(by_name[name] for name in packed.compared))
            compared = compared if packed.channels_last else compared.transpose(0, 2, 3, 1)
        bits = unpack_bits(by_name[packed.name], packed.channels)
        rows = (
            None if y is None else y.transpose(0, 3, 1, 2).reshape(rows_of(y, samples), -1) for y in (bits, compared)
        )
        trace.bits[packed.name] = Bits(*rows)  # type: ignore[arg-type]
    return trace


def _give(
    graph: onnx.GraphProto, maps: list[PackedMap], given: BitTrace | None, feeds: dict[str, Array]
) -> dict[str, Array]:
    """Let all readers of each packed map read an input of the graph, and feed that; the bits that they read."""
    if given is None:
        return {}
    replaced = {}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    for packed in maps:
        same = dict.fromkeys(packed.also, packed.name)
        found = next((bits for name in (packed.name, *packed.also) if (bits := given.bits_of(name, same))), None)
        _, height, width, _ = (size.dim_value for size in shapes[packed.name])
        pixel = height * width * packed.channels
        if found is None or found.bits.size % pixel:
            continue  # `compare` has a word on both
        name = _GIVEN + packed.name
        replaced[packed.name] = found.bits
        feeds[name] = packed_map(found.bits, (found.bits.size // pixel, height, width, packed.channels))
        type_ = onnx.helper.make_tensor_type_proto(onnx.TensorProto.UINT8, None)
        graph.input.append(onnx.helper.make_value_info(name, type_))
        for node in graph.node:
            node.input[:] = [name if read == packed.name else read for read in node.input]
    return replaced


def _compared_by(node: onnx.NodeProto) -> list[str]:
    """What must be laid open to find out what a node of ours compares."""
    op = BY_ONNX_NAME[node.op_type]
    if op.compared is None:
        return []
    if len(op.outputs) > 1:
        return [node.output[0], node.input[op.tensors.index("threshold")]]
    return list(node.input)


def _distance(node: onnx.NodeProto, op: PackedOp, by_name: dict[str, Array]) -> Array:
    """What a node of ours compares, minus the threshold, `float[N, H, W, C]`."""
    if len(op.outputs) > 1:
        return np.subtract(by_name[node.output[0]], by_name[node.input[op.tensors.index("threshold")]])
    assert op.compared is not None
    return op.compared(*_call(node, by_name)).numpy()


def _call(node: onnx.NodeProto, by_name: dict[str, Array]) -> list[Any]:
    """The arguments that a node of ours gives its operator."""
    op = BY_ONNX_NAME[node.op_type]
    tensors = [torch.from_numpy(np.array(by_name[name])) for name in node.input]
    attributes = from_onnx({a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
    return [*tensors, *(attributes[name] for name in op.attributes)]


def _wrong_bytes(op: PackedOp, arguments: list[Any], given: list[Array]) -> int:
    """In how many bytes results differ from those of the reference operator on the same inputs."""
    expected = leaves_of(op.target(*arguments))
    return sum(
        int((y.numpy().view(np.uint8) != np.ascontiguousarray(x).view(np.uint8)).sum())
        for y, x in zip(expected, given, strict=True)
    )
