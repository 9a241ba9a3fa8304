"""A graph as people look at it: nodes with labels, edges with shapes, and the block of the model each node is from.

The same for every stage. Constants are no nodes here but details of their readers, and where a packed operator gives
two results, the nodes that pick them are the two edges.
"""

import contextlib
import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn

from bnnfx.errors import ExampleInputError
from bnnfx.frontend.trace import trace
from bnnfx.graph.dataflow import calls, packed_op, packed_result
from bnnfx.graph.record import record_of
from bnnfx.graph.shapes import tensors_if_given
from bnnfx.inspect.drawing.graph_view_blocks import Blocks
from bnnfx.inspect.drawing.graph_view_labels import constants_of, details_of, is_constant, kind_of, lines_of
from bnnfx.inspect.drawing.graph_view_values import Holds, Values

Kind = Literal["input", "output", "float", "binarizer", "binary", "packed"]


@dataclass(frozen=True)
class Node:
    """One operation, input or output.

    Attributes:
        name: of the node in the `torch.fx` graph.
        kind: what it computes with; pictures colour by it.
        lines: its label; the first line starts with `title`.
        title: its name inside its block.
        block: qualified name of the module that it is a step of, such as `layer1.0`; empty at the top.
        layer: qualified name of the module that it calls; empty if it calls none.
        details: everything else worth knowing, by caption.
        constants: names of the `get_attr` nodes that it reads, which are no nodes of their own here.
    """

    name: str
    kind: Kind
    lines: tuple[str, ...]
    title: str
    block: str
    layer: str
    details: Mapping[str, str]
    constants: tuple[str, ...]


@dataclass(frozen=True)
class Edge:
    """One value and one of its readers.

    Attributes:
        source: name of the node that computes the value.
        target: name of the node that reads it.
        value: name of the value in the `torch.fx` graph: that of `source`, unless `source` has several results.
        holds: whether the value is floats, bits, ternary, or no tensor ("other").
        shape: sizes of its axes as text, the batch as `N`, channels counted where bits are packed; None if not known.
        bytes: what it takes in memory in this graph, per sample; None if not known.
    """

    source: str
    target: str
    value: str
    holds: Holds
    shape: tuple[str, ...] | None
    bytes: int | None

    @property
    def label(self) -> str:
        """Shape and value type, such as `N×64×56×56 float`."""
        return " ".join(part for part in ("×".join(self.shape or ()), self.holds) if part and part != "other")


@dataclass(frozen=True)
class GraphView:
    """A graph to be drawn or listed.

    Attributes:
        title: class of the model, stage and scheme.
        nodes: in the order of execution.
        edges: in the order of their readers.
    """

    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def counts(self) -> dict[str, int]:
        """How many nodes there are of each kind."""
        return dict(Counter(node.kind for node in self.nodes))


def view(gm: nn.Module, example_inputs: tuple[Any, ...] | None = None) -> GraphView:
    """What there is to see of a graph, in any stage, or of a module that `torch.fx` can trace.

    Args:
        gm: a graph, or a module, which is traced as `bnnfx.convert` traces it; neither is changed.
        example_inputs: arguments of its forward, for the shapes; a packed graph remembers them.

    Raises:
        ConversionError: the module cannot be traced.
        ExampleInputError: the example inputs do not fit.

    >>> graph = view(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (torch.zeros(1, 3, 9, 9),))
    >>> [node.lines[0] for node in graph.nodes]
    ['input_1', '0 Conv2d 3×3 3→8', '1 ReLU', 'output']
    >>> graph.edges[1].label
    'N×8×7×7 float'
    """
    if not isinstance(gm, fx.GraphModule):
        gm = trace(gm, example_inputs=tensors_if_given(example_inputs)).gm
    record = record_of(gm)
    values = Values(gm, example_inputs)
    if example_inputs is None and record is not None and record.inputs:
        remembered = tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in record.inputs)
        with contextlib.suppress(ExampleInputError):  # a graph that does not run can still be looked at
            values = Values(gm, remembered)
    blocks = Blocks(gm)
    shown = [node for node in gm.graph.nodes if not is_constant(node) and not _is_pick(node)]
    nodes = tuple(_node(gm, node, blocks) for node in shown)
    edges = tuple(_edge(value, node, values) for node in shown for value in _reads(node))
    stage = "float" if record is None else record.stage.value
    name = type(gm).__name__  # of the user's class; copying a graph loses it
    parts = ["" if name == "GraphModule" else name, stage, "" if record is None else record.scheme]
    return GraphView(", ".join(part for part in parts if part), nodes, edges)


def _is_pick(node: fx.Node) -> bool:
    """Whether a node only names one of several results of a packed operator."""
    return calls(node, operator.getitem) and packed_result(node) is not None and packed_op(node) is None


def _reads(node: fx.Node) -> Iterator[fx.Node]:
    return (value for value in node.all_input_nodes if not is_constant(value))


def _node(gm: fx.GraphModule, node: fx.Node, blocks: Blocks) -> Node:
    block = blocks.of(node)
    title = blocks.title(node)
    return Node(
        node.name,
        kind_of(gm, node),
        lines_of(gm, node, title),
        title,
        block,
        str(node.target) if node.op == "call_module" else "",
        details_of(gm, node),
        tuple(constant.name for constant in constants_of(node)),
    )


def _edge(value: fx.Node, reader: fx.Node, values: Values) -> Edge:
    source = value.all_input_nodes[0] if _is_pick(value) else value
    return Edge(
        source.name, reader.name, value.name, values.holds(value), values.shape(value), values.bytes_per_sample(value)
    )
