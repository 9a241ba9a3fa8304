"""`summary`: what a model costs, layer by layer, in parameters, operations and bytes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from torch import fx, nn

from bnnfx.errors import ExampleInputError
from bnnfx.graph.given_models import obstacle
from bnnfx.graph.record import record_of
from bnnfx.graph.shapes import as_tensors
from bnnfx.graph.stage import Stage
from bnnfx.inspect.costs import BATCH_NORM_NUMBERS, BINARY_MACS_PER_FLOP, FLOAT_BITS, Cost, LayerCost
from bnnfx.inspect.file_costs import file_costs
from bnnfx.inspect.graph_costs import as_graph, graph_costs
from bnnfx.tables import as_markdown, as_text

_WORDS = ("layer", "kind", "weight x activation", "input", "output")
_FIGURES = ("1-bit", "float", "Mbit", "binary MACs", "float MACs", "FLOPs", "packed bytes")
_TEXT_WIDTH = 160
_WIDE = 140  # where all columns fit


@dataclass(frozen=True)
class Summary:
    """What a model costs; prints as a table.

    Attributes:
        title: what was counted.
        layers: one row per call of a layer, in order of execution.
    """

    title: str
    layers: tuple[LayerCost, ...]

    @property
    def totals(self) -> Cost:
        """All layers together."""
        return Cost.sum(layer.cost for layer in self.layers)

    def notes(self) -> list[str]:
        """The rule, and what it leaves out of this model."""
        totals = self.totals
        mixed = [layer for layer in self.layers if layer.operands and layer.operands.mixed]
        notes = [
            f"Mbit = 1-bit + {FLOAT_BITS} x (float parameters + {BATCH_NORM_NUMBERS} per batch-norm channel); "
            f"FLOPs = float MACs + binary MACs / {BINARY_MACS_PER_FLOP}; all per sample, of convolutions, linear "
            "layers and products of matrices"
        ]
        if mixed:
            notes.append(
                f"{_count(len(mixed), 'layer')} with one operand in one bit and the other not: their MACs are float"
            )
        if totals.mean_additions:
            notes.append(
                f"not counted: {totals.mean_additions:,} additions for means of activations, taken at run time"
            )
        if totals.other_parameters:
            notes.append(f"not counted: {_count(totals.other_parameters, 'parameter')} that no layer multiplies by")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Rows, totals and notes as plain values, which JSON can hold."""
        rows = [
            {
                "name": layer.name,
                "kind": layer.kind,
                "operands": None if layer.operands is None else str(layer.operands),
                "input_shape": list(layer.input_shape),
                "output_shape": list(layer.output_shape),
                **layer.cost.to_dict(),
            }
            for layer in self.layers
        ]
        return {"title": self.title, "layers": rows, "totals": self.totals.to_dict(), "notes": self.notes()}

    def to_markdown(self) -> str:
        """The table in Markdown, with exact numbers."""
        rows = [(*_words(layer), *_figures(layer.cost, exact=True)) for layer in self.layers]
        total = ("total", *[""] * (len(_WORDS) - 1), *_figures(self.totals, exact=True))
        table = as_markdown((*_WORDS, *_FIGURES), [*rows, total], numbers=len(_FIGURES))
        return "\n".join([f"**{self.title}**", "", table, "", *(f"* {note}" for note in self.notes())]) + "\n"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table for a terminal: with fewer columns, and what describes a layer in one of them, if it is narrow."""
        narrow = options.max_width < _WIDE
        words, figures = (_WORDS[:1], _FIGURES[2:]) if narrow else (_WORDS, _FIGURES)
        table = Table(title=Text(self.title), title_justify="left")
        for name in words:
            table.add_column(name, overflow="fold")
        for name in figures:
            table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
        for layer in self.layers:
            name, kind, operands, shape_in, shape_out = _words(layer)
            described = f"{name}\n{kind} {operands}\n{shape_in} -> {shape_out}"
            cells = (described,) if narrow else (name, kind, operands, shape_in, shape_out)
            # as text: names may look like markup
            table.add_row(*map(Text, cells), *_figures(layer.cost)[-len(figures) :])
        table.add_section()
        table.add_row("total", *[""] * (len(words) - 1), *_figures(self.totals)[-len(figures) :])
        yield table
        yield from map(Text, self.notes())

    def __str__(self) -> str:
        return as_text(self, width=_TEXT_WIDTH)


def summary(model: nn.Module | str | Path, example_inputs: tuple[Any, ...] | None = None) -> Summary:
    """Count parameters, operations and bytes of a model; the rule is that of `bnnfx.inspect.costs`.

    What is counted is what runs in evaluation. A layer that is called twice has two rows: its parameters count at the
    first, its operations at both. Nothing is computed, only shapes, unless a module asks for values. In what cannot be
    traced, layers are found but not functions: `F.conv2d` there has no row, and neither has what TorchScript compiled.
    Of branches, those that the inputs take are counted.

    Args:
        model: a float module, a trainable graph, a packed graph, or the path of an ONNX file.
        example_inputs: arguments of forward, with any batch of at least one: every figure is for one sample. Packed
            graphs know theirs; files need them only where sizes other than the batch are open.

    Returns:
        Rows and totals.

    Raises:
        ExampleInputError: they are needed, or do not fit.
        ModelFileError: there is no such file, or it is no ONNX file.

    >>> print(summary(nn.Conv2d(3, 8, 3), (torch.zeros(1, 3, 9, 7),)).totals.float_macs)
    7560
    """
    inputs = None if example_inputs is None else as_tensors(example_inputs, scalars=True)
    if isinstance(model, str | Path):
        return Summary(str(model), tuple(file_costs(Path(model), inputs)))
    if not isinstance(model, nn.Module):
        given, refusal = f"a {type(model).__name__}", obstacle(model)
        if refusal is not None:
            given += f", which {refusal.reason}. The remedy: {refusal.remedy}"
        raise TypeError(f"summary takes a module, a graph or the path of an ONNX file; got {given}.")
    record = record_of(model) if isinstance(model, fx.GraphModule) else None
    if inputs is None and record is not None and record.stage is Stage.PACKED:
        inputs = tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in record.inputs)
    if not inputs:
        raise ExampleInputError(
            "summary needs example_inputs, such as (torch.zeros(1, 3, 224, 224),), to know the sizes of the maps; only "
            "packed graphs and files know them."
        )
    stage = "float" if record is None else f"{record.stage.value}, {record.scheme}"
    return Summary(f"{type(model).__name__} ({stage})", tuple(graph_costs(as_graph(model, inputs), inputs)))


def _words(layer: LayerCost) -> tuple[str, str, str, str, str]:
    operands = "" if layer.operands is None else str(layer.operands)
    shape_in, shape_out = ("x".join(map(str, shape)) for shape in (layer.input_shape, layer.output_shape))
    return layer.name, layer.kind, operands, shape_in, shape_out


def _figures(cost: Cost, *, exact: bool = False) -> list[str]:
    """The columns of numbers; what is zero stays empty, so that what a layer has stands out."""
    floats = cost.float_parameters + BATCH_NORM_NUMBERS * cost.batch_norm_channels
    counts = (cost.one_bit_parameters, floats, cost.binary_macs, cost.float_macs, cost.flops, cost.packed_bytes)
    write = _exact if exact else _short
    one_bit, floating, binary, others, flops, stored = (write(count) if count else "" for count in counts)
    mbit = f"{cost.mbit:.3f}" if cost.parameter_bits else ""
    return [one_bit, floating, mbit, binary, others, flops, stored]


def _exact(number: float) -> str:
    return f"{number:,.2f}".rstrip("0").rstrip(".")


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return _exact(number)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
