"""`bnnfx.report`: what is known about a model on its way, as one page."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from bnnfx.analysis import FlipHistory
from bnnfx.arguments import read_json, require_instance
from bnnfx.file_writing import require_folder, write_whole
from bnnfx.frontend.trace import trace
from bnnfx.graph.record import record_of
from bnnfx.graph.shapes import tensors_if_given
from bnnfx.inspect.drawing import file_view, view
from bnnfx.inspect.report.contents import contents
from bnnfx.inspect.report.page import page
from bnnfx.inspect.report.shown import Model


def report(
    models: Sequence[nn.Module | str | Path],
    path: str | Path,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    flips: FlipHistory | str | Path | None = None,
    bench: Mapping[str, Any] | str | Path | None = None,
) -> Path:
    """Write a page that shows graphs side by side, and everything known about their layers.

    The page is one file and loads nothing. It has a picture of every graph, in which pointing at a node marks what it
    has become in the others; a table of the layers with what became of each and why, its costs, and how well bits stand
    for its weights; histograms of the weights before and after rotation; the log of all passes. What cannot be known
    from the given graphs is left out: reasons and the log need a graph of `convert` or `lower`, costs need shapes,
    cosines and histograms a trainable graph.

    Args:
        models: float modules, graphs in any stage and paths of ONNX files, in the order in which they are shown, such
            as `[model, bnn, packed]` or `["model.onnx"]`; none is changed.
        path: of the file to write; it appears whole or not at all.
        example_inputs: arguments of forward, for shapes and costs; without them, those that a packed graph among the
            models was lowered for.
        flips: a log of training, `FlipRate.history` or the file that its `save` wrote.
        bench: what `bnnfx bench --json` wrote, or the path of it.

    Returns:
        The path written.

    Raises:
        TypeError: `models` is no list of modules and paths.
        ValueError: it is empty, or `flips` or `bench` is something else.
        ConversionError: a module cannot be traced.
        ModelFileError: a file is missing, or is no ONNX file.
        ExampleInputError: the example inputs do not fit.
        ExportError: `path` cannot be written.
        BnnfxError: the extra `draw` is not installed.

    >>> import bnnfx, tempfile
    >>> model = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bnnfx.report([model, bnnfx.convert(model, "rbnn")], Path(folder) / "report.html").name
    'report.html'
    """
    path = require_folder(path)
    several = isinstance(models, Iterable) and not isinstance(models, nn.Module | str | Path | Mapping)
    models = list(models) if several else []
    if not several or not all(isinstance(m, nn.Module | str | Path) for m in models):
        raise TypeError("report takes a list of modules, graphs and ONNX files, such as [model, bnn, packed].")
    if not models:
        raise ValueError("report needs at least one module, graph or file.")
    history = FlipHistory.load(flips) if isinstance(flips, str | Path) else flips
    if history is not None:
        require_instance("flips", history, FlipHistory, "a FlipHistory (FlipRate.history), or the path of one")
    timings = _read_bench(bench)
    inputs = _remembered(models) if example_inputs is None else example_inputs
    shown = [_model(model, inputs, f"graph{index}-") for index, model in enumerate(models)]
    return write_whole(path, page([(model.prefix, model.view) for model in shown], contents(shown, history, timings)))


def _model(model: nn.Module | str | Path, example_inputs: tuple[Any, ...] | None, prefix: str) -> Model:
    """A file or a graph of ours as it is, any other module as `convert` would trace it."""
    if isinstance(model, str | Path):
        return Model(Path(model), None, file_view(model), prefix, None)
    gm = (
        model if isinstance(model, fx.GraphModule) else trace(model, example_inputs=tensors_if_given(example_inputs)).gm
    )
    record = record_of(gm)
    inputs = None if record is not None and record.inputs else example_inputs  # it has its own
    return Model(gm, record, view(gm, inputs), prefix, inputs)


def _remembered(models: Sequence[nn.Module | str | Path]) -> tuple[torch.Tensor, ...] | None:
    """Zeros in the shapes that a packed graph was lowered for."""
    records = (record_of(model) for model in models if isinstance(model, fx.GraphModule))
    remembered = next((record.inputs for record in records if record is not None and record.inputs), None)
    return None if remembered is None else tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in remembered)


def _read_bench(bench: Mapping[str, Any] | str | Path | None) -> Mapping[str, Any] | None:
    if bench is None:
        return None
    named = "That is"
    if isinstance(bench, str | Path):
        named = f"{bench} is"
        bench = read_json(bench)
    kinds = {"machine": Mapping, "models": list, "notes": list}  # as JSON has them
    if not (isinstance(bench, Mapping) and all(isinstance(bench.get(key), kind) for key, kind in kinds.items())):
        raise ValueError(f"{named} no result of a benchmark; `bnnfx bench MODEL --json FILE` writes one.")
    return bench
