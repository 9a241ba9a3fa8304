"""Layers that are called as a function of a module's own parameters: calls of that module."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from bnnfx.graph import edit
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.operators import call_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage

_TYPES: dict[object, type[nn.Module]] = {F.linear: nn.Linear, F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d}


@dataclass(frozen=True)
class Called:
    """A module that can be called instead of a function.

    Attributes:
        path: where it is.
        layer: what it is to be, without values; None if it is that already.
    """

    path: str
    layer: Any


class CallLayersByModule(Pass[ConvertContext, fx.Node, Called]):
    """Before: `F.linear(x, m.weight, m.bias)`. After: `m(x)`, a `nn.Linear` with these parameters.

    Likewise `F.conv1d` and `F.conv2d`, whose other arguments are settings of the layer.
    That is how a model passes weights to a function of its own, and how a layer written by hand calls torch's function.
    """

    requires = Stage.TRACED
    ensures = Stage.TRACED

    def match(self) -> Iterator[fx.Node]:
        """Calls of these functions with a weight that is a module's."""
        for node in list(self.gm.graph.nodes):
            if node.op == "call_function" and node.target in _TYPES and self._path(node) is not None:
                yield node

    def allowed(self, match: fx.Node) -> Called | Refusal:
        """The weight and the bias must be all that the module has, and its settings, if it has any, the call's."""
        path, kind = self._path(match), _TYPES[match.target]
        assert path is not None
        module = self.gm.get_submodule(path)
        own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        if own != set(self._read(match)) or type(module) not in (nn.Module, kind):
            return Refusal(
                f"it is called with the weight of '{path}', which has more than this weight and bias",
                "give the weight and its bias, named weight and bias, a module of their own",
            )
        layer = self._layer(match, module)
        if layer is None or (type(module) is kind and str(layer) != str(module)):
            return Refusal(
                f"it is called with the weight of '{path}', and not with its settings",
                f"let forward call an nn.{kind.__name__} with these settings, and a weight of its own",
            )
        return Called(path, layer if type(module) is nn.Module else None)

    def rewrite(self, match: fx.Node, plan: Called) -> None:
        """Make the module a layer, if the tracer kept no more of it than its parameters, and call it."""
        held, layer = self.gm.get_submodule(plan.path), plan.layer
        if layer is not None:
            for name, parameter in held.named_parameters():
                setattr(layer, name, parameter)
            edit.replace_module(self.gm, plan.path, layer.train(held.training))
            self.context.layers[plan.path] = type(layer).__name__
        with self.gm.graph.inserting_before(match):
            new = self.gm.graph.call_module(plan.path, call_of(self.gm, match).operands[:1])
        if match in self.context.shapes:
            self.context.shapes[new] = self.context.shapes[match]
        if match in self.context.ranges:
            self.context.ranges[new] = self.context.ranges[match]
        new.meta.update(match.meta)
        edit.replace(match, new)

    def subject(self, match: fx.Node) -> str:
        """The node's name."""
        return match.name

    def _layer(self, node: fx.Node, module: Any) -> nn.Module | None:
        """A layer of the type and the settings of a call, without values; None if those are not constants."""
        settings = call_of(self.gm, node).arguments
        if any(isinstance(value, fx.Node) for value in _flat(settings.values())):
            return None
        (outputs, inputs, *kernel), bias = module.weight.shape, "bias" in self._read(node)
        if not kernel:
            return nn.Linear(inputs, outputs, bias, device="meta")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in settings.items()}
        groups = given.get("groups", 1)
        return _TYPES[node.target](inputs * groups, outputs, tuple(kernel), bias=bias, device="meta", **given)

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


def _flat(values: Iterable[object]) -> Iterator[object]:
    """Values, and what is in those that are tuples or lists."""
    for value in values:
        yield from value if isinstance(value, tuple | list) else (value,)
