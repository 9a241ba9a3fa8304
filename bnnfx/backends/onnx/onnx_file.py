"""From a packed graph to one ONNX file: torch exports what is standard, we add our nodes' functions and metadata."""

import copy
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.numpy_helper
import torch
from torch import fx

from bnnfx.api import lower
from bnnfx.backends.onnx.functions import OLDEST_OPSET, function_protos
from bnnfx.backends.onnx.packed_maps import packed_maps_of, write_packed_maps
from bnnfx.backends.onnx.symbolic import NAMES_KEY, replace_packed_ops
from bnnfx.errors import ExportError, first_line
from bnnfx.file_writing import write_whole
from bnnfx.graph.record import record_of, require_stage
from bnnfx.graph.stage import Stage
from bnnfx.ops.packed_op import ONNX_DOMAIN, OPSET_VERSION
from bnnfx.runtime.session import OPSET_KEY

DIALECTS = ("bnnfx", "standard")
_IR_VERSION = 9  # what ONNX Runtime 1.17, the oldest we support, reads


def export_onnx(
    gm: fx.GraphModule,
    path: str | Path,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    dialect: str = "bnnfx",
    opset: int | None = None,
) -> Path:
    """Write a graph as one ONNX file with a free batch size.

    Args:
        gm: a graph in stage PACKED, or in stage TRAINABLE, which is lowered first.
        path: the file to write; it appears whole or not at all.
        example_inputs: arguments of forward, needed to lower a trainable graph.
        dialect: `"bnnfx"` (nodes of domain `ai.bnnfx`, each with a body of standard operators, so that the file runs
            in any ONNX Runtime and at full speed where the kernel library is registered) or `"standard"` (standard
            operators only).
        opset: version of the standard operator set, 18 or higher; 18 if not given.

    Returns:
        The path written.

    Raises:
        ValueError: unknown dialect, or an opset that is too old.
        StageError: `gm` is neither trainable nor packed.
        ExportError: the folder of `path` is missing, or some node cannot be exported.
    """
    path = Path(path)
    _check_target(path, dialect, opset)
    record = record_of(gm) if isinstance(gm, fx.GraphModule) else None
    if record is not None and record.stage is Stage.TRAINABLE:
        if example_inputs is None:
            raise ExportError("A trainable graph is lowered first, which needs example_inputs=(x,); none were given.")
        gm = lower(gm, example_inputs)
    record = require_stage(gm, Stage.PACKED, "export_onnx")
    model = _finish(_export(gm, record.inputs, opset or OLDEST_OPSET), record.scheme)
    maps = packed_maps_of(model, gm)
    if dialect == "standard":
        model = onnx.inliner.inline_local_functions(model)
        _set_opset(model, ONNX_DOMAIN, None)
    write_packed_maps(model, maps)
    onnx.checker.check_model(model, full_check=True)
    write_whole(path, model.SerializeToString())
    return path


def _check_target(path: Path, dialect: str, opset: int | None) -> None:
    if dialect not in DIALECTS:
        raise ValueError(f"Unknown dialect {dialect!r}; the known ones are: {', '.join(DIALECTS)}.")
    if opset is not None and opset < OLDEST_OPSET:
        raise ValueError(
            f"opset is {OLDEST_OPSET} or higher (older ones have no bit operators on tensors); got {opset}."
        )
    if not path.parent.is_dir():
        raise ExportError(
            f"The folder {path.parent} does not exist, so {path.name} cannot be written there; create it first."
        )
    if path.is_dir():
        raise ExportError(f"{path} is a folder; give the name of a file in it.")


def _export(gm: fx.GraphModule, inputs: tuple[tuple[torch.Size, torch.dtype], ...], opset: int) -> onnx.ModelProto:
    """Torch's export of the graph with our operators as nodes of our domain."""
    standard = copy.deepcopy(gm)
    replace_packed_ops(standard)
    # a batch of 1 would be taken for a constant
    examples = tuple(torch.zeros((2, *shape[1:]), dtype=dtype) for shape, dtype in inputs)
    batch = torch.export.Dim("batch")
    names = [node.name for node in gm.graph.nodes if node.op == "placeholder"][: len(inputs)]
    try:
        with _quiet():
            program = torch.onnx.export(
                standard,
                examples,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=names,
                dynamic_shapes=tuple({0: batch} for _ in examples),
            )
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ExportError(
            "torch.onnx.export failed on the packed graph. A batch size that the model fixes (a reshape to a number), "
            f"or a float layer that ONNX lacks, is the usual cause. It said: {first_line(cause)}"
        ) from error
    assert program is not None
    model = program.model_proto
    fixed = [value.name for value in model.graph.input if not value.type.tensor_type.shape.dim[0].dim_param]
    if fixed:
        raise ExportError(
            f"The batch size of input {', '.join(fixed)} cannot stay free: the model fixes it (a reshape to a number "
            "is the usual cause; x.flatten(1) or -1 for the batch leaves it free)."
        )
    return model


def _finish(model: onnx.ModelProto, scheme: str) -> onnx.ModelProto:
    """Name our nodes as in the packed graph, strip the exporter's notes, add functions, versions and metadata."""
    graph = model.graph
    renamed: dict[str, str] = {}
    for node in graph.node:
        names = {entry.key: entry.value for entry in node.metadata_props}.get(NAMES_KEY)
        if names is not None:
            node.name, *results = json.loads(names)
            renamed.update(zip(node.output, results, strict=True))
    _rename(graph, renamed)
    _merge_slices(graph)
    for item in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    graph.ClearField("metadata_props")
    model.ClearField("metadata_props")
    used = {node.op_type for node in graph.node if node.domain == ONNX_DOMAIN}
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    kept = [function for function in model.functions if function.domain != ONNX_DOMAIN]
    del model.functions[:]
    model.functions.extend([*kept, *function_protos(used, opset)])
    _set_opset(model, ONNX_DOMAIN, OPSET_VERSION if used else None)
    metadata = {"bnnfx.version": version("bnnfx"), OPSET_KEY: str(OPSET_VERSION), "bnnfx.scheme": scheme}
    onnx.helper.set_model_props(model, metadata)
    model.producer_name, model.producer_version = "bnnfx", version("bnnfx")
    model.ir_version = _IR_VERSION
    return model


def _rename(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    taken = {name for node in graph.node for name in node.output} | {x.name for x in (*graph.input, *graph.initializer)}
    final = {old: new for old, new in renamed.items() if new not in taken - {old} and old not in _output_names(graph)}
    for node in graph.node:
        node.input[:] = [final.get(name, name) for name in node.input]
        node.output[:] = [final.get(name, name) for name in node.output]
    for value in graph.value_info:
        value.name = final.get(value.name, value.name)


def _merge_slices(graph: onnx.GraphProto) -> None:
    """One `Slice` for two in a row: the exporter writes one per axis, and a runtime copies the map for each."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    slices = {node.output[0]: node for node in graph.node if node.op_type == "Slice"}
    for node in list(slices.values()):
        first = slices.get(node.input[0])
        if first is None or readers[node.input[0]] != 1 or node.input[0] in _output_names(graph):
            continue
        if not {*first.input[1:], *node.input[1:]} <= constants.keys() or len(first.input) != len(node.input):
            continue
        # starts, ends, axes, steps
        pairs = zip(first.input[1:], node.input[1:], strict=True)
        arguments = [np.concatenate([constants[a], constants[b]]) for a, b in pairs]
        names = [f"{node.name}_{what}" for what in ("starts", "ends", "axes", "steps")][: len(arguments)]
        if len(arguments) < 3 or len(set(arguments[2].tolist())) < len(arguments[2]):
            continue  # the axes are not given, or one is sliced twice
        graph.initializer.extend(map(onnx.numpy_helper.from_array, arguments, names))
        constants.update(zip(names, arguments, strict=True))
        node.input[:] = [first.input[0], *names]
        graph.node.remove(first)
    read = {name for node in graph.node for name in node.input}
    unread = [tensor for tensor in graph.initializer if tensor.name not in read]
    for tensor in unread:
        graph.initializer.remove(tensor)


def _output_names(graph: onnx.GraphProto) -> set[str]:
    return {value.name for value in graph.output}


def _set_opset(model: onnx.ModelProto, domain: str, number: int | None) -> None:
    kept = [entry for entry in model.opset_import if entry.domain != domain]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    if number is not None:
        model.opset_import.append(onnx.helper.make_opsetid(domain, number))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress notes and deprecation warnings to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
