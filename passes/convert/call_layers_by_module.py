"""Linear layers that are called as a function of a module's own weight: calls of that module."""

import operator
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
    With another bias than the module's, or none, what it has too much is a constant that is added behind the call:
    `m(x) + (bias - m.bias)`.
    """

    requires = Stage.TRACED
    ensures = Stage.TRACED

    def match(self) -> Iterator[fx.Node]:
        """Calls of `F.linear` with a weight that is a module's."""
        for node in list(self.gm.graph.nodes):
            if calls(node, F.linear) and self._path(node) is not None:
                yield node

    def allowed(self, match: fx.Node) -> str | Refusal:
        """The module must have a weight, or a weight and a bias, and nothing else; the plan is its path."""
        path = self._path(match)
        assert path is not None
        module = self.gm.get_submodule(path)
        if not self._own(path) <= {"weight", "bias"} or type(module) not in (nn.Module, nn.Linear):
            return Refusal(
                f"it is called with the weight of '{path}', which has more than a weight and a bias",
                "give the weight and its bias, named weight and bias, a module of their own",
            )
        return path

    def rewrite(self, match: fx.Node, plan: str) -> None:
        """Make the module a layer, if the tracer kept no more of it than its parameters, and call it."""
        held, graph = self.gm.get_submodule(plan), self.gm.graph
        has_bias = "bias" in self._own(plan)
        if type(held) is nn.Module:
            outputs, inputs = held.weight.shape  # type: ignore[misc]
            layer = nn.Linear(inputs, outputs, has_bias, device="meta")
            for name, parameter in held.named_parameters():
                setattr(layer, name, parameter)
            edit.replace_module(self.gm, plan, layer.train(held.training))
            self.context.layers[plan] = nn.Linear.__name__
        values, _, *given = call_of(self.gm, match).operands
        bias = given[0] if given else None
        with graph.inserting_before(match):
            new = layer_call = graph.call_module(plan, (values,))
            if has_bias and not _reads(bias, f"{plan}.bias"):
                own = graph.get_attr(f"{plan}.bias")
                operation, other = (
                    (operator.sub, own)
                    if bias is None
                    else (operator.add, graph.call_function(operator.sub, (bias, own)))
                )
                new = graph.call_function(operation, (layer_call, other))
            elif bias is not None and not has_bias:
                new = graph.call_function(operator.add, (layer_call, bias))
        for node in (layer_call, new):
            if match in self.context.shapes:
                self.context.shapes[node] = self.context.shapes[match]
            node.meta.update(match.meta)
        if match in self.context.ranges:
            self.context.ranges[new] = self.context.ranges[match]
        edit.replace(match, new)

    def subject(self, match: fx.Node) -> str:
        """The node's name."""
        return match.name

    def _own(self, path: str) -> set[str]:
        """The names of the parameters and buffers that a module has."""
        module = self.gm.get_submodule(path)
        return {name for name, _ in (*module.named_parameters(), *module.named_buffers())}

    def _path(self, node: fx.Node) -> str | None:
        """The module whose weight a call reads."""
        values, weight, *_ = (*call_of(self.gm, node).operands, None, None)
        if not isinstance(values, fx.Node) or not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return None
        path, _, name = str(weight.target).rpartition(".")
        return path if path and name == "weight" else None


def _reads(node: object, target: str) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and node.target == target
