"""From a packed graph to one ONNX file: torch exports what is standard, we add our nodes' functions and metadata."""

import copy
import json
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass, RemoveUnusedNodesPass
from torch import fx

from bnnfx.backends.onnx.end_names import Names, name_ends, require_names
from bnnfx.backends.onnx.functions import OLDEST_OPSET, function_protos
from bnnfx.backends.onnx.fusable import scale_last
from bnnfx.backends.onnx.packed_maps import PackedMap, write_packed_maps
from bnnfx.backends.onnx.pool_windows import refuse_divisors, spell_out_windows
from bnnfx.backends.onnx.symbolic import NAMES_KEY, replace_packed_ops
from bnnfx.backends.onnx.unexportable import first_unexportable, spelling, why
from bnnfx.errors import ExportError
from bnnfx.graph.record import require_stage
from bnnfx.graph.results import flatten_results, results_of
from bnnfx.graph.shapes import copies, leaves_of, with_batch
from bnnfx.graph.stage import Stage
from bnnfx.ops.packed_op import ONNX_DOMAIN, OPSET_VERSION
from bnnfx.runtime.session import OPSET_KEY, newest_opset

_SLICE_INPUTS = ("starts", "ends", "axes", "steps")
_EXPORTING = threading.RLock()  # torch's exporter changes its own modules and the process's settings while it works
_IR_VERSION = 9  # what ONNX Runtime 1.17, the oldest we support, reads


def onnx_model(
    gm: fx.GraphModule, opset: int | None = None, input_names: Names = None, output_names: Names = None
) -> onnx.ModelProto:
    """The graph as ONNX with a free batch size: our operators as nodes of our domain, with their functions.

    Args:
        gm: a graph in stage PACKED.
        opset: version of the standard operator set, from 18 to what is installed here; 18 if not given.
        input_names: names of the inputs in the file; those of forward if not given.
        output_names: names of the outputs; if not given, the keys and fields of what forward returns.

    Raises:
        ValueError: an opset that is too old or too new; names that are too many, too few, or not different.
        ExportError: some node cannot be exported.
    """
    require_names("input_names", input_names)
    require_names("output_names", output_names)
    opset = OLDEST_OPSET if opset is None else _require_opset(opset)
    record = require_stage(gm, Stage.PACKED, "export")
    model = _export(gm, record.inputs, opset)
    if model.opset_imports[""] != opset:  # torch goes on with another one
        raise ExportError(
            f"The graph cannot be converted to opset {opset}, only to {model.opset_imports['']}; give that, or none."
        )
    name_ends(model, input_names, output_names, [name for name, _ in results_of(gm)], set(_wanted(model).values()))
    nodes = [node for node in model.graph.all_nodes() if node.domain == ONNX_DOMAIN]
    if any(NAMES_KEY not in node.metadata_props for node in nodes):  # converted by onnx itself, which keeps none
        raise ExportError(
            f"At opset {opset} the exporter loses the names of nodes, by which verify compares; give a lower one."
        )
    _name_as_packed_graph(model)
    _merge_slices(model)
    scale_last(model)
    spell_out_windows(model)
    _strip(model)
    NameFixPass()(model)
    RemoveUnusedNodesPass()(model)
    used = {node.op_type for node in model.graph.all_nodes() if node.domain == ONNX_DOMAIN}
    for identifier in [identifier for identifier in model.functions if identifier[0] == ONNX_DOMAIN]:
        del model.functions[identifier]
    model.opset_imports.pop(ONNX_DOMAIN, None)
    if used:
        model.opset_imports[ONNX_DOMAIN] = OPSET_VERSION
    model.producer_name, model.producer_version = "bnnfx", version("bnnfx")
    model.ir_version = _IR_VERSION
    metadata = {"bnnfx.version": version("bnnfx"), OPSET_KEY: str(OPSET_VERSION), "bnnfx.scheme": record.scheme}
    model.metadata_props.update(metadata)
    proto = ir.to_proto(model)
    proto.functions.extend(function_protos(used, model.opset_imports[""]))
    return proto


def _require_opset(opset: int) -> int:
    if isinstance(opset, bool) or not isinstance(opset, int):
        raise ValueError(f"opset is a whole number; got {opset!r}.")
    if opset < OLDEST_OPSET:
        raise ValueError(
            f"opset is {OLDEST_OPSET} or higher (older ones have no bit operators on tensors); got {opset}."
        )
    if opset > newest_opset():
        raise ValueError(
            f"opset is {newest_opset()} or lower, the newest that onnx {onnx.__version__} and ONNX Runtime "
            f"{onnxruntime.__version__}, which are installed here, have; got {opset}."
        )
    return opset


def with_standard_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the bodies of our operators in place of their nodes."""
    inlined = onnx.inliner.inline_local_functions(model)
    kept = [entry for entry in inlined.opset_import if entry.domain != ONNX_DOMAIN]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def content(model: onnx.ModelProto, maps: list[PackedMap]) -> bytes:
    """The file of a model, which says which of its values hold bits, checked."""
    write_packed_maps(model, maps)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _export(gm: fx.GraphModule, inputs: tuple[tuple[torch.Size, torch.dtype], ...], opset: int) -> ir.Model:
    """Torch's export of the graph with our operators as nodes of our domain."""
    free = with_batch([shape for shape, _ in inputs])
    # a batch of 1 would be taken for a constant
    sizes = [(2, *shape[1:]) if batched else shape for (shape, _), batched in zip(inputs, free, strict=True)]
    examples = tuple(torch.zeros(size, dtype=dtype) for size, (_, dtype) in zip(sizes, inputs, strict=True))
    _refuse_numbers(gm, examples)
    standard = copy.deepcopy(gm)
    replace_packed_ops(standard)
    flatten_results(standard)
    names = [node.name for node in gm.graph.nodes if node.op == "placeholder"][: len(inputs)]

    def write(beginning: fx.GraphModule) -> str | None:
        replace_packed_ops(beginning)
        try:
            _write(beginning, examples, free, opset)
        except Exception as error:
            return why(error)
        return None

    try:
        return _write(standard, examples, free, opset, names)
    except Exception as error:
        found = first_unexportable(gm, examples, write)
        what = "The packed graph" if found is None else spelling(gm, found[0])
        raise ExportError(
            f"{what} cannot be written as ONNX with a free batch size: {why(error) if found is None else found[1]} Use "
            "another operator in its place, or one that leaves the batch as it is."
        ) from error


def _write(
    gm: fx.GraphModule,
    examples: tuple[torch.Tensor, ...],
    free: Sequence[bool],
    opset: int,
    names: list[str] | None = None,
) -> ir.Model:
    batch = torch.export.Dim("batch")
    with _EXPORTING, _quiet():
        program = torch.onnx.export(
            gm,
            examples,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=names,
            dynamic_shapes=tuple({0: batch} if batched else {} for batched in free),
        )
    assert program is not None and program.exported_program is not None
    refuse_divisors(program.exported_program.graph)
    for value, batched in zip(program.model.graph.inputs, free, strict=True):
        if batched and (value.shape is None or isinstance(value.shape[0], int)):
            raise ExportError(
                "It fixes the batch size (x.flatten(1), or -1 for the batch in a reshape, leaves it free)."
            )
    return program.model


def _refuse_numbers(gm: fx.GraphModule, examples: tuple[torch.Tensor, ...]) -> None:
    """Raise if a constant or a size is among the outputs; None is left out of the file, with the exporter."""
    with torch.no_grad():
        results = leaves_of(copy.deepcopy(gm)(*copies(examples)))
    numbers = [value for value in results if value is not None and not isinstance(value, torch.Tensor)]
    if numbers:
        raise ExportError(
            f"forward returns the {type(numbers[0]).__name__} {numbers[0]!r} (in a batch of 2), and the outputs of "
            "ONNX are tensors; return tensors alone."
        )


def _name_as_packed_graph(model: ir.Model) -> None:
    """Name our nodes and their results as in the packed graph.

    Inputs, outputs and initializers keep their names; another value that has one of ours, in any subgraph, loses it.
    """
    graph = model.graph
    for node in graph.all_nodes():
        if NAMES_KEY in node.metadata_props:
            node.name = json.loads(node.metadata_props[NAMES_KEY])[0]
    fixed = {value.name for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    wanted = {value: name for value, name in _wanted(model).items() if name not in fixed}
    names_of_ours = set(wanted.values())
    for node in graph.all_nodes():
        for value in node.outputs:
            if value not in wanted and value.name in names_of_ours and not value.is_graph_output():
                value.name = None  # the name fix gives it another
    for value, name in wanted.items():
        value.name = name


def _wanted(model: ir.Model) -> dict[ir.Value, str]:
    """The results of our nodes and their names in the packed graph, but for outputs, which have their own."""
    wanted: dict[ir.Value, str] = {}
    for node in model.graph.all_nodes():
        if NAMES_KEY in node.metadata_props:
            wanted.update(zip(node.outputs, json.loads(node.metadata_props[NAMES_KEY])[1:], strict=True))
    return {value: name for value, name in wanted.items() if not value.is_graph_output()}


def _merge_slices(model: ir.Model) -> None:
    """One `Slice` for two in a row: the exporter writes one per axis, and a runtime copies the map for each."""
    for node in list(model.graph.all_nodes()):
        first = _slice_before(node)
        if first is None:
            continue
        # starts, ends, axes, steps
        pairs = zip(map(_constant, first.inputs[1:]), map(_constant, node.inputs[1:]), strict=False)
        arguments = [np.concatenate([a, b]) for a, b in pairs if a is not None and b is not None]
        if not 3 < len(first.inputs) == len(node.inputs) == len(arguments) + 1:
            continue  # the axes are not given, or something is not constant
        if len(set(arguments[2].tolist())) < len(arguments[2]):
            continue  # an axis is sliced twice
        node.replace_input_with(0, first.inputs[0])
        for place, (what, argument) in enumerate(zip(_SLICE_INPUTS, arguments, strict=False), start=1):
            value = ir.val(f"{node.name}_{what}", const_value=ir.tensor(argument))
            assert node.graph is not None
            node.graph.register_initializer(value)
            node.replace_input_with(place, value)


def _slice_before(node: ir.Node) -> ir.Node | None:
    """The `Slice` whose result this one reads and nothing else does."""
    if not _is_slice(node) or node.inputs[0] is None:
        return None
    source, first = node.inputs[0], node.inputs[0].producer()
    if first is None or not _is_slice(first) or len(source.uses()) != 1 or source.is_graph_output():
        return None
    return first if first.graph is node.graph else None  # a branch computes what it needs, only if it runs


def _is_slice(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "Slice")


def _constant(value: ir.Value | None) -> "np.ndarray[Any, Any] | None":
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def _strip(model: ir.Model) -> None:
    """Take off the exporter's notes: they name files of the machine that it ran on."""
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    for graph in model.graphs():
        results = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *results):
            value.metadata_props.clear()
            value.doc_string = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress notes and deprecation warnings to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
