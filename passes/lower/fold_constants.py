"""What is computed from parameters and buffers alone, once and for all."""

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from bnnfx.graph import edit
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import call_node
from bnnfx.graph.operators import Mode, operator_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage


class Constant(NamedTuple):
    """A value that depends on constants alone.

    Attributes:
        node: what computes it.
        value: what that gives.
    """

    node: fx.Node
    value: Tensor


class FoldConstants(Pass[LowerContext, Constant, None]):
    """Before: `weight * (var + eps).rsqrt()`. After: a buffer that holds it, `x * scale` being one per channel then.

    Only operators that are known to give the same at every run are computed here. What is no tensor, as the device or
    the sizes of one, stays.
    """

    requires = Stage.TRAINABLE
    ensures = Stage.TRAINABLE

    def match(self) -> Iterator[Constant]:
        """Tensors that depend on constants alone, and that something else reads."""
        values: dict[fx.Node, Any] = {}
        for node in self.gm.graph.nodes:
            if node.op == "get_attr":
                values[node] = operator.attrgetter(str(node.target))(self.gm)
            elif self._gives_the_same(node) and values.keys() >= set(node.all_input_nodes):
                with torch.no_grad():
                    values[node] = call_node(node, None, *fx.node.map_arg((node.args, node.kwargs), values.get))
        for node, value in values.items():
            if node.op != "get_attr" and isinstance(value, Tensor) and not values.keys() >= node.users.keys():
                yield Constant(node, value)

    def _gives_the_same(self, node: fx.Node) -> bool:
        computes = node.op in ("call_function", "call_method") and node.all_input_nodes
        return bool(computes) and operator_of(self.gm, node).mode is Mode.SAME

    def allowed(self, match: Constant) -> None:
        """Always."""

    def rewrite(self, match: Constant, plan: None) -> None:
        """Read the value from a buffer."""
        node = match.node
        with self.gm.graph.inserting_before(node):
            constant = edit.add_buffer(self.gm, f"{node.name}_constant", match.value.clone())
        if node in self.context.shapes:
            self.context.shapes[constant] = self.context.shapes[node]
        node.replace_all_uses_with(constant)
        self.gm.graph.erase_node(node)

    def subject(self, match: Constant) -> str:
        """The node's name."""
        return match.node.name
