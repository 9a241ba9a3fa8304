"""What `split`, `lower` and `export` look at before they return: whether it computes what they were given."""

import copy

import torch
from torch import Tensor, fx

from bnnfx.errors import ConversionError, ExportError, first_line
from bnnfx.graph.random_state import same_random_state
from bnnfx.graph.record import Record
from bnnfx.graph.shapes import copies, infer_shapes, leaves_of, require_arguments, with_batch
from bnnfx.verification.bit_trace import BitTrace, trace_graph
from bnnfx.verification.comparison import compare

_SAMPLES = 2
"""So many are enough to tell a wrong graph from a right one."""

_MOST_VALUES = 1 << 22
"""Larger inputs are tried with a single sample: 14 images of 3x224x224 have as many values as this."""

_REMEDY = "That is a fault of bnnfx, or of a pass of another package; check=False leaves this comparison out."


def run_trainable(gm: fx.GraphModule, inputs: tuple[Tensor, ...]) -> BitTrace:
    """What a trainable graph, in evaluation and in float32 on the CPU, makes of the first few samples.

    It is not changed. Shapes are recorded for its own nodes.

    Raises:
        ExampleInputError: the inputs do not fit.
    """
    require_arguments(gm, inputs)
    try:
        with same_random_state():
            return trace_graph(copy.deepcopy(gm), _first_samples(inputs), {}, graph=gm.graph)
    except Exception:
        infer_shapes(gm, inputs)  # names what does not fit
        if is_whole(inputs):
            raise
    with same_random_state():
        return trace_graph(copy.deepcopy(gm), copies(inputs), {}, graph=gm.graph)  # the batch is of one size


def is_whole(inputs: tuple[Tensor, ...]) -> bool:
    """Whether the first few samples are all that there are."""
    return all(len(x) <= _SAMPLES for x, batched in _batched(inputs) if batched)


def _first_samples(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What has no batch is taken whole."""
    return tuple((x[:_SAMPLES] if batched else x).clone() for x, batched in _batched(inputs))


def _batched(inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, bool]]:
    return list(zip(inputs, with_batch([x.shape for x in inputs]), strict=True))


def check_rewritten(
    expected: BitTrace, gm: fx.GraphModule, record: Record, inputs: tuple[Tensor, ...], made: str, of: str
) -> None:
    """Compare a graph, in evaluation and in float32 on the CPU, with the run of the one that it was made of.

    Args:
        expected: that run.
        gm: what was made; it is not changed.
        record: its record.
        inputs: the example inputs.
        made: what it is called in errors.
        of: what the other one is called.

    Raises:
        ConversionError: it computes something else.
    """
    given = copies(inputs) if expected.samples == len(inputs[0]) else _first_samples(inputs)
    try:
        with same_random_state():
            found = compare(expected, trace_graph(copy.deepcopy(gm), given, record.same_bits, expected))
    except Exception as error:  # whatever it is, the other graph runs
        raise ConversionError(
            f"The {made} graph cannot be compared with the {of} one, which runs on the example inputs: "
            f"{first_line(error)} {_REMEDY}"
        ) from error
    if not found and not _draws_random_numbers(gm, given):
        raise ConversionError(
            f"The {made} graph does not compute what the {of} one does on the example inputs: {found.objection} "
            f"({found.differing_bits} bits differ in all). {_REMEDY}"
        )


def check_file(packed: fx.GraphModule, record: Record, content: bytes) -> None:
    """Run the content of an ONNX file and compare it with the packed graph, on random inputs of its shapes.

    Without the kernel library, and with it where it is built and there is something for it to run. A file that is none
    of ours is not looked at.

    Raises:
        ExportError: it computes something else, or ONNX Runtime cannot run it.
    """
    import onnx

    from bnnfx.ops.packed_op import ONNX_DOMAIN
    from bnnfx.runtime.library import library_path
    from bnnfx.verification.file_trace import is_ours, trace_file

    model = onnx.load_from_string(content)
    if not is_ours(model):
        return
    forms = [False]
    if any(node.domain == ONNX_DOMAIN for node in model.graph.node):
        try:
            library_path()
            forms.append(True)
        except FileNotFoundError:
            pass
    inputs = _random(record)
    with same_random_state():
        expected = trace_graph(copy.deepcopy(packed).eval(), copies(inputs), record.same_bits)
    for kernels in forms:
        how = "with the kernel library" if kernels else "without the kernel library"
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        try:
            run = trace_file(
                copied, "the file", inputs, kernels=kernels, given=expected, reference=False, optimize=False
            )
            found = compare(expected, run)
        except Exception as error:  # whatever it is, the packed graph runs
            raise ExportError(
                f"The file cannot be compared with the packed graph {how}: {first_line(error)} Another opset or "
                "version of ONNX Runtime may help; check=False writes it all the same."
            ) from error
        if not found and not _draws_random_numbers(packed, inputs):
            raise ExportError(
                f"The file, {how}, does not compute what the packed graph does on random inputs: {found.objection} "
                f"({found.differing_bits} bits differ in all). {_REMEDY}"
            )


def _draws_random_numbers(packed: fx.GraphModule, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a graph computes something else each time, so that its values say nothing of those of a file."""
    results = []
    for seed in (0, 1):
        with torch.no_grad(), same_random_state(seed):
            results.append(leaves_of(copy.deepcopy(packed)(*copies(inputs))))
    return any(not torch.equal(x, y) for x, y in zip(*results, strict=True) if isinstance(x, Tensor))


def _random(record: Record) -> tuple[Tensor, ...]:
    """A few samples of the shapes that a graph was lowered for."""
    generator = torch.Generator().manual_seed(0)
    values = sum(shape[1:].numel() for shape, _ in record.inputs)
    samples = _SAMPLES if values * _SAMPLES <= _MOST_VALUES else 1
    inputs = []
    batched = with_batch([shape for shape, _ in record.inputs])
    for (shape, dtype), has_batch in zip(record.inputs, batched, strict=True):
        sizes = (samples, *shape[1:]) if has_batch else tuple(shape)
        if dtype.is_floating_point or dtype.is_complex:
            inputs.append(torch.randn(sizes, generator=generator, dtype=dtype))
        else:
            inputs.append(torch.randint(0, 2, sizes, generator=generator).to(dtype))
    return tuple(inputs)
