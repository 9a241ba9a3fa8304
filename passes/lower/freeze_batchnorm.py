"""Batch norm to its inference function over constants, which no later `train()` can turn back."""

from collections.abc import Iterator
from typing import Any

from torch import fx

from bnnfx.graph import edit
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import is_batch_norm, is_freezable, module_of
from bnnfx.graph.operators import BATCH_NORM_TENSORS, FUNCTIONAL_BATCH_NORM, call_of, operator_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.nn.frozen_norm import frozen_batch_norm


class FreezeBatchNorm(Pass[LowerContext, fx.Node, tuple[Any, ...]]):
    """Before: `bn(x)`. After: `frozen_batch_norm(x, mean, var, gamma, beta, eps)`: same kernel, same bits.

    Likewise `F.batch_norm` of parameters and buffers, where evaluation calls it with `training=False`.
    """

    requires = Stage.TRAINABLE
    ensures = Stage.TRAINABLE

    def match(self) -> Iterator[fx.Node]:
        """Calls of batch norms, as modules and as functions."""
        for node in list(self.gm.graph.nodes):
            if is_batch_norm(self.gm, node) or operator_of(self.gm, node).name == FUNCTIONAL_BATCH_NORM:
                yield node

    def allowed(self, match: fx.Node) -> tuple[Any, ...] | Refusal:
        """Running statistics are needed; the plan: the input, the names of the four tensors or None, and numbers."""
        if is_freezable(self.gm, match):
            module = module_of(self.gm, match)
            tensors = {name: getattr(module, name) for name in BATCH_NORM_TENSORS}
            names = [None if tensor is None else f"{match.target}.{name}" for name, tensor in tensors.items()]
            axis = operator_of(self.gm, match).channel_axis
            last = () if axis == 1 else (axis,)
            return (match.all_input_nodes[0], names, module.eps, *last)  # type: ignore[union-attr]
        if match.op == "call_module":
            return Refusal(
                "it keeps no running statistics and normalizes each batch by itself",
                "build it with track_running_stats=True before convert",
            )
        call = call_of(self.gm, match)
        given = [call.get(name) for name in BATCH_NORM_TENSORS]
        constants = all(value is None or (isinstance(value, fx.Node) and value.op == "get_attr") for value in given)
        if call.get("training", False) is not False or None in given[:2] or not constants:
            return Refusal(
                "it is called as a function that normalizes each batch by itself, or with statistics that are computed",
                "make it a module, such as nn.BatchNorm2d, that forward calls",
            )
        return (
            call.operands[0],
            [None if value is None else str(value.target) for value in given],
            call.get("eps", 1e-5),
        )

    def rewrite(self, match: fx.Node, plan: tuple[Any, ...]) -> None:
        """Read the tensors as constants and call the function."""
        graph, (source, names, *numbers) = self.gm.graph, plan
        with graph.inserting_before(match):
            constants = [None if name is None else graph.get_attr(name) for name in names]
            frozen = graph.call_function(frozen_batch_norm, (source, *constants, *numbers))
        self.context.shapes[frozen] = self.context.shapes[match]
        edit.replace(match, frozen)

    def subject(self, match: fx.Node) -> str:
        """The module's qualified name, or the node's."""
        return str(match.target) if match.op == "call_module" else match.name
