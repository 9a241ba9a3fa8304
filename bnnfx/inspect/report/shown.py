"""The graphs of a page, what is found out about each, and which of their nodes belong together."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx

from bnnfx.analysis import QuantizationError, quantization_error
from bnnfx.errors import ExampleInputError, ModelFileError
from bnnfx.graph.record import Record
from bnnfx.graph.stage import Stage
from bnnfx.inspect.drawing import GraphView
from bnnfx.inspect.drawing.graph_view import Node
from bnnfx.inspect.explain import Explanation, explain
from bnnfx.inspect.summary import Summary, summary
from bnnfx.nn import BinaryLayer


@dataclass(frozen=True)
class Model:
    """One of the graphs of the page.

    Attributes:
        graph: the graph, or the path of an ONNX file.
        record: its history; None for a float model and for a file.
        view: its picture.
        prefix: of the ids in it.
        inputs: example inputs, if there are some.
    """

    graph: fx.GraphModule | Path
    record: Record | None
    view: GraphView
    prefix: str
    inputs: tuple[Any, ...] | None

    @property
    def stage(self) -> str:
        """As in `Record.stage`, or "float" or "ONNX"."""
        if isinstance(self.graph, Path):
            return "ONNX"
        return "float" if self.record is None else self.record.stage.value

    def summary(self) -> Summary | None:
        """Its costs, where shapes are known."""
        if isinstance(self.graph, Path) or (self.record is not None and self.record.stage is Stage.PACKED):
            with contextlib.suppress(ExampleInputError, ModelFileError):  # what cannot be counted can be looked at
                return summary(self.graph)
            return None
        return None if self.inputs is None else summary(self.graph, self.inputs)

    def explanation(self) -> Explanation | None:
        """What became of its layers, where it was converted."""
        return None if self.record is None or isinstance(self.graph, Path) else explain(self.graph)

    def quantization_error(self) -> QuantizationError | None:
        """How well bits stand for its weights, where it has both."""
        if isinstance(self.graph, Path):
            return None
        binary = any(isinstance(module, BinaryLayer) for module in self.graph.modules())
        return quantization_error(self.graph) if binary else None


class Owners:
    """Which nodes of different graphs belong together, and to which layer.

    A module keeps its name from stage to stage, and so does mostly what takes its place. A node also stands for every
    module whose constants it reads: their names begin with that of the module's node.

    Attributes:
        modules: qualified names by the name of the node that calls the module.
    """

    def __init__(self, models: Sequence[Model], layers: Sequence[str]) -> None:
        self.modules = {name.replace(".", "_"): name for name in layers}
        for model in models:
            self.modules |= {node.name: node.layer for node in model.view.nodes if node.layer}
        self._names = {node.name for model in models for node in model.view.nodes} | self.modules.keys()

    def layers(self, model: Model) -> dict[str, str]:
        """The layer that each node of a graph is or computes, by the node's name."""
        packed = {} if model.record is None else model.record.packed
        found = {}
        for node in model.view.nodes:
            weights = [packed[constant] for constant in node.constants if constant in packed]
            read = [self.modules[name] for name in self._read(node) if name in self.modules]
            found[node.name] = next(iter((*weights, *read)), node.layer)
        return {name: layer for name, layer in found.items() if layer}

    def keys(self, node: Node) -> list[str]:
        """What nodes that belong together have in common."""
        names = [node.name, *self._read(node)]
        modules = (f"layer {self.modules[name]}" for name in names if name in self.modules)
        return list(dict.fromkeys([*(f"node {name}" for name in names), *modules]))

    def _read(self, node: Node) -> list[str]:
        """Of every constant that it reads, the longest name of a node that the constant's name begins with."""
        found = []
        for constant in node.constants:
            end = constant.rfind("_")
            while end > 0 and constant[:end] not in self._names:
                end = constant.rfind("_", 0, end)
            if end > 0:
                found.append(constant[:end])
        return found
