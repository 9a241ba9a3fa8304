"""Calls that follow the mode to calls as evaluation makes them."""

from collections.abc import Iterator

from torch import fx

from bnnfx.graph import edit
from bnnfx.graph.context import LowerContext
from bnnfx.graph.dataflow import module_calls, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage
from bnnfx.nn.mode import CallByMode


class SettleMode(Pass[LowerContext, fx.Node, CallByMode]):
    """Before: `call_by_mode(x)`. After: the function that it calls, with the arguments of evaluation."""

    requires = Stage.TRAINABLE
    ensures = Stage.TRAINABLE

    def match(self) -> Iterator[fx.Node]:
        """Calls of a function that has other arguments in training."""
        yield from module_calls(self.gm, CallByMode)

    def allowed(self, match: fx.Node) -> CallByMode:
        """Always: a packed graph is for inference."""
        module = module_of(self.gm, match)
        assert isinstance(module, CallByMode)
        return module

    def rewrite(self, match: fx.Node, plan: CallByMode) -> None:
        """Call the function."""
        args, kwargs = plan.arguments(False, match.args, match.kwargs)
        with self.gm.graph.inserting_before(match):
            settled = self.gm.graph.call_function(plan.function, args, kwargs)
        if match in self.context.shapes:
            self.context.shapes[settled] = self.context.shapes[match]
        edit.replace(match, settled)

    def subject(self, match: fx.Node) -> str:
        """The node's name."""
        return match.name
