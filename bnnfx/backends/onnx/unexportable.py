"""Which operator of a graph cannot be written as ONNX: torch's exporter names it seldom."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from bnnfx.errors import first_line
from bnnfx.graph.dataflow import calls, module_of, packed_op

Write = Callable[[fx.GraphModule], str | None]
"""Try to write a graph: why that is not possible, or None."""


def first_unexportable(gm: fx.GraphModule, examples: tuple[Tensor, ...], write: Write) -> tuple[fx.Node, str] | None:
    """The first node of a graph that does not run on another batch size, or up to which the graph cannot be written.

    Args:
        gm: a packed graph that cannot be written.
        examples: inputs of another batch size than it was lowered with.
        write: writes the beginning of the graph, see there; it is called about as often as the number of nodes has
            digits in base two.

    Returns:
        The node and the reason; None if nothing is found.
    """
    runner = _Runner(gm)
    try:
        with torch.no_grad():
            runner.run(*(x.clone() for x in examples))
    except Exception as error:
        return runner.at, first_line(error)
    nodes = [node for node in gm.graph.nodes if node.op.startswith("call_") and isinstance(runner.values[node], Tensor)]
    reasons: dict[int, str] = {}
    low, high = 0, len(nodes)  # the node is among those from low to high
    while low < high:
        middle = (low + high) // 2
        reason = write(_up_to(gm, nodes[: middle + 1]))
        if reason is None:
            low = middle + 1
        else:
            reasons[middle] = reason
            high = middle
    return (_user_operator(nodes[high]), reasons[high]) if high in reasons else None


def _user_operator(node: fx.Node) -> fx.Node:
    """What a node of ours reads, or one that picks a part of a tuple: these can be written themselves."""
    while (packed_op(node) is not None or calls(node, operator.getitem)) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def spelling(gm: fx.GraphModule, node: fx.Node) -> str:
    """How a node is known to whoever wrote the model: its module's name and type, or its own name and the function."""
    called = module_of(gm, node)
    if called is not None:
        return f"'{node.target}' ({type(called).__name__})"
    return f"'{node.name}' ({getattr(node.target, '__name__', node.target)})"


def why(error: BaseException) -> str:
    """What is at the bottom of an exporter's error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _up_to(gm: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """The beginning of a graph, which gives what nothing in it reads."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        copied[node] = graph.node_copy(node, copied.__getitem__)
        if node is nodes[-1]:
            break
    graph.output(tuple(copied[node] for node in nodes if not copied[node].users))
    return fx.GraphModule(gm, graph)


class _Runner(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.at = next(iter(gm.graph.nodes))
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.at = n
        self.values[n] = super().run_node(n)
        return self.values[n]
