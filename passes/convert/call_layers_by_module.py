"""Linear layers that are called as a function of a module's own parameters: calls of that module."""

from collections.abc import Iterator

from torch import fx, nn
from torch.nn import functional as F

from bnnfx.graph import edit
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import calls
from bnnfx.graph.operators import call_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage


class CallLayersByModule(Pass[ConvertContext, fx.Node, str]):
    """Before: `F.linear(x, m.weight, m.bias)`. After: `m(x)`, a `nn.Linear` with these parameters.

    That is how a model passes weights to a function of its own, and how a layer written by hand calls torch's function.
    """

    requires = Stage.TRACED
    ensures = Stage.TRACED

    def match(self) -> Iterator[fx.Node]:
        """Calls of `F.linear` with a weight that is a module's."""
        for node in list(self.gm.graph.nodes):
            if calls(node, F.linear) and self._path(node) is not None:
                yield node

    def allowed(self, match: fx.Node) -> str | Refusal:
        """The weight and the bias must be all that the module has; the plan is its path."""
        path = self._path(match)
        assert path is not None
        module = self.gm.get_submodule(path)
        own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        if own != set(self._read(match)) or type(module) not in (nn.Module, nn.Linear):
            return Refusal(
                f"it is called with the weight of '{path}', which has more than this weight and bias",
                "give the weight and its bias, named weight and bias, a module of their own",
            )
        return path

    def rewrite(self, match: fx.Node, plan: str) -> None:
        """Make the module a layer, if the tracer kept no more of it than its parameters, and call it."""
        held = self.gm.get_submodule(plan)
        if type(held) is nn.Module:
            outputs, inputs = held.weight.shape  # type: ignore[misc]
            layer = nn.Linear(inputs, outputs, "bias" in self._read(match), device="meta")
            for name, parameter in held.named_parameters():
                setattr(layer, name, parameter)
            edit.replace_module(self.gm, plan, layer.train(held.training))
            self.context.layers[plan] = nn.Linear.__name__
        with self.gm.graph.inserting_before(match):
            new = self.gm.graph.call_module(plan, call_of(self.gm, match).operands[:1])
        if match in self.context.shapes:
            self.context.shapes[new] = self.context.shapes[match]
        if match in self.context.ranges:
            self.context.ranges[new] = self.context.ranges[match]
        new.meta.update(match.meta)
        edit.replace(match, new)

    def subject(self, match: fx.Node) -> str:
        """The node's name."""
        return match.name

    def _read(self, node: fx.Node) -> dict[str, str]:
        """The parameters that a call reads, by their names within their modules: the modules' paths."""
        read = [operand for operand in call_of(self.gm, node).operands[1:] if isinstance(operand, fx.Node)]
        pairs = [str(operand.target).rpartition(".") for operand in read if operand.op == "get_attr"]
        return {name: path for path, _, name in pairs} if len(pairs) == len(read) else {}

    def _path(self, node: fx.Node) -> str | None:
        """The module whose weight and, if there is one, bias a call reads."""
        read, operands = self._read(node), call_of(self.gm, node).operands
        paths = set(read.values())
        fits = list(read) in (["weight"], ["weight", "bias"]) and len(paths) == 1 and isinstance(operands[0], fx.Node)
        return (paths.pop() or None) if fits else None
