"""In-place operations to their functional forms, so that a rewrite may drop or move them."""

import operator
from collections.abc import Iterator

import torch
from torch import fx

from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage

_INPLACE_FUNCTIONS = (operator.iadd, torch.relu_)  # torch.relu_ is F.relu_ too


class FunctionalizeInplace(Pass[ConvertContext, fx.Node, None]):
    """Before: `y = relu_(x)`, and later readers of `x` see what relu_ wrote. After: `y = relu(x)`, they read `y`."""

    requires = Stage.TRACED
    ensures = Stage.TRACED

    def match(self) -> Iterator[fx.Node]:
        """Calls of modules with `inplace=True`, functions given `inplace=True`, `relu_` and its like, and `+=`."""
        # all at once: a module that is called twice loses its flag at the first call, its later calls count as well
        yield from [node for node in self.gm.graph.nodes if self._is_inplace(node)]

    def allowed(self, match: fx.Node) -> None:
        """Each of them has a functional form."""

    def rewrite(self, match: fx.Node, plan: None) -> None:
        """Redirect later readers of the input, then drop the in-place flag."""
        source = match.all_input_nodes[0]
        later = set(_after(match))
        source.replace_all_uses_with(match, delete_user_cb=lambda user: user in later)
        module = module_of(self.gm, match)
        if module is not None:
            module.inplace = False  # type: ignore[assignment]  # ours: convert works on a copy
        elif match.target is operator.iadd:
            match.target = operator.add
        elif match.op == "call_method":
            match.target = str(match.target).removesuffix("_")
        else:
            match.kwargs = {name: value for name, value in match.kwargs.items() if name != "inplace"}

    def subject(self, match: fx.Node) -> str:
        """The module's or node's name."""
        return str(match.target) if match.op == "call_module" else match.name

    def _is_inplace(self, node: fx.Node) -> bool:
        module = module_of(self.gm, node)
        if module is not None:
            return bool(getattr(module, "inplace", False))
        if node.op == "call_method":
            return str(node.target) in ("relu_", "add_", "clamp_", "sigmoid_", "tanh_")
        return node.op == "call_function" and (node.target in _INPLACE_FUNCTIONS or node.kwargs.get("inplace") is True)


def _after(node: fx.Node) -> Iterator[fx.Node]:
    while node.next.op != "root":
        node = node.next
        yield node
