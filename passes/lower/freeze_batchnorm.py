"""Batch norm to its inference function over constants, which no later `train()` can turn back."""

from collections.abc import Iterator
from typing import Any

from torch import fx
from torch.nn import functional as F

from bnnfx.graph import edit
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import BATCH_NORMS, is_freezable, module_calls, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage


class FreezeBatchNorm(Pass[LowerContext, fx.Node, None]):
    """Before: `bn(x)`. After: `F.batch_norm(x, mean, var, gamma, beta, training=False)`: same kernel, same bits."""

    requires = Stage.TRAINABLE
    ensures = Stage.TRAINABLE

    def match(self) -> Iterator[fx.Node]:
        """Calls of batch norms."""
        yield from module_calls(self.gm, BATCH_NORMS)

    def allowed(self, match: fx.Node) -> Refusal | None:
        """Running statistics are needed."""
        if is_freezable(module_of(self.gm, match)):
            return None
        return Refusal(
            "it keeps no running statistics and normalizes each batch by itself",
            "build it with track_running_stats=True before convert",
        )

    def rewrite(self, match: fx.Node, plan: None) -> None:
        """Read the module's tensors as constants and call the function."""
        module, graph = module_of(self.gm, match), self.gm.graph
        names = ("running_mean", "running_var", "weight", "bias")
        with graph.inserting_before(match):
            constants = [
                None if getattr(module, name) is None else graph.get_attr(f"{match.target}.{name}") for name in names
            ]
            arguments: tuple[Any, ...] = (match.all_input_nodes[0], *constants, False, 0.0, module.eps)  # type: ignore[union-attr]
            frozen = graph.call_function(F.batch_norm, arguments)
        self.context.shapes[frozen] = self.context.shapes[match]
        edit.replace(match, frozen)

    def subject(self, match: fx.Node) -> str:
        """The module's qualified name."""
        return str(match.target)
