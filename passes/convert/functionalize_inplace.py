"""In-place operations to their functional forms, so that a rewrite may drop or move them."""

from collections.abc import Callable, Iterator

from torch import fx

from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import module_of
from bnnfx.graph.inplace import functional_twin, place_of_flag, written
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage

Twin = Callable[..., object] | str | None
"""The function or method that gives what an in-place one writes; None for a module, which has a flag."""


class FunctionalizeInplace(Pass[ConvertContext, fx.Node, Twin]):
    """Before: `y = relu_(x)`, and later readers of `x` see what relu_ wrote. After: `y = relu(x)`, they read `y`.

    The tracer has made leaves of what cannot be rewritten, or refused it: see `bnnfx.graph.inplace`.
    """

    requires = Stage.TRACED
    ensures = Stage.TRACED

    def match(self) -> Iterator[fx.Node]:
        """Calls of modules and functions with `inplace=True` or `out=`, of `relu_` and its like, and `+=`."""
        # all at once: a module that is called twice loses its flag at the first call, its later calls count as well
        yield from [node for node in self.gm.graph.nodes if written(self.gm, node) is not None]

    def allowed(self, match: fx.Node) -> Twin:
        """Each of them has a functional form."""
        return None if match.op == "call_module" else functional_twin(match)

    def rewrite(self, match: fx.Node, plan: Twin) -> None:
        """Redirect later readers of the input, then drop what says in place."""
        module = module_of(self.gm, match)
        source = written(self.gm, match)
        if source is None:  # a module that lost its flag at an earlier call
            source = match.all_input_nodes[0]
        later = set(_after(match))
        source.replace_all_uses_with(match, delete_user_cb=lambda user: user in later)
        if module is not None:
            module.inplace = False  # type: ignore[assignment]  # ours: convert works on a copy
            return
        assert plan is not None
        place = place_of_flag(self.gm, match)
        match.args = tuple(False if index == place else value for index, value in enumerate(match.args))
        match.kwargs = {name: value for name, value in match.kwargs.items() if name not in ("inplace", "out")}
        match.target = plan
        if match.op == "call_method" and not isinstance(plan, str):
            match.op = "call_function"

    def subject(self, match: fx.Node) -> str:
        """The module's or node's name."""
        return str(match.target) if match.op == "call_module" else match.name


def _after(node: fx.Node) -> Iterator[fx.Node]:
    while node.next.op != "root":
        node = node.next
        yield node
