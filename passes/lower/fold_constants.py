"""What is computed from parameters and buffers alone, once and for all."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from bnnfx.graph import edit
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import call_node
from bnnfx.graph.operators import Mode, operator_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage


class FoldConstants(Pass[LowerContext, fx.Node, Tensor]):
    """Before: `weight * (var + eps).rsqrt()`. After: a buffer that holds it, `x * scale` being one per channel then.

    Only operators that are known to give the same at every run are computed here.
    """

    requires = Stage.TRAINABLE
    ensures = Stage.TRAINABLE

    def match(self) -> Iterator[fx.Node]:
        """Values that depend on constants alone, and that something else reads."""
        constants: set[fx.Node] = set()
        for node in self.gm.graph.nodes:
            computed = node.op in ("call_function", "call_method") and operator_of(self.gm, node).mode is Mode.SAME
            if node.op == "get_attr" or (
                computed and node.all_input_nodes and constants.issuperset(node.all_input_nodes)
            ):
                constants.add(node)
        for node in list(self.gm.graph.nodes):
            if node in constants and node.op != "get_attr" and not constants.issuperset(node.users):
                yield node

    def allowed(self, match: fx.Node) -> Tensor:
        """The value, computed by the graph's own operators."""
        with torch.no_grad():
            value = self._value(match)
        assert isinstance(value, Tensor)
        return value

    def rewrite(self, match: fx.Node, plan: Tensor) -> None:
        """Read the value from a buffer."""
        with self.gm.graph.inserting_before(match):
            constant = edit.add_buffer(self.gm, f"{match.name}_constant", plan.clone())
        if match in self.context.shapes:
            self.context.shapes[constant] = self.context.shapes[match]
        match.replace_all_uses_with(constant)
        self.gm.graph.erase_node(match)

    def subject(self, match: fx.Node) -> str:
        """The node's name."""
        return match.name

    def _value(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.gm)
        args: Any
        kwargs: Any
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self._value)
        return call_node(node, None, args, kwargs)
