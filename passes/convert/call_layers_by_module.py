"""Layers that are called as a function of a module's own weight: calls of that module."""

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
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

    That is how a model passes weights to a function of its own, and how a layer written by hand calls torch's function.
    With another bias than the module's, or none, what it has too much is a constant that is added behind the call:
    `m(x) + (bias - m.bias)`. Likewise `F.conv1d` and `F.conv2d`, whose other arguments are settings of the layer.
    """

    requires = Stage.TRACED
    ensures = Stage.TRACED

    def match(self) -> Iterator[fx.Node]:
        """Calls of these functions with a weight that is a module's."""
        for node in list(self.gm.graph.nodes):
            if node.op == "call_function" and node.target in _TYPES and self._path(node) is not None:
                yield node

    def allowed(self, match: fx.Node) -> Called | Refusal:
        """The module must have a weight, or a weight and a bias, nothing else, and no other settings than the call."""
        path, kind = self._path(match), _TYPES[match.target]
        assert path is not None
        module = self.gm.get_submodule(path)
        if not self._own(path) <= {"weight", "bias"} or type(module) not in (nn.Module, kind):
            return Refusal(
                f"it is called with the weight of '{path}', which has more than a weight and a bias",
                "give the weight and its bias, named weight and bias, a module of their own",
            )
        layer = self._layer(match, module, "bias" in self._own(path))
        if layer is None or (type(module) is kind and str(layer) != str(module)):
            return Refusal(
                f"it is called with the weight of '{path}', and not with its settings",
                f"let forward call an nn.{kind.__name__} with these settings, and a weight of its own",
            )
        return Called(path, layer if type(module) is nn.Module else None)

    def rewrite(self, match: fx.Node, plan: Called) -> None:
        """Make the module a layer, if the tracer kept no more of it than its parameters, and call it."""
        held, graph, path, layer = self.gm.get_submodule(plan.path), self.gm.graph, plan.path, plan.layer
        has_bias = "bias" in self._own(path)
        if layer is not None:
            for name, parameter in held.named_parameters():
                setattr(layer, name, parameter)
            edit.replace_module(self.gm, path, layer.train(held.training))
            self.context.layers[path] = type(layer).__name__
        values, _, *given = call_of(self.gm, match).operands
        bias = given[0] if given else None
        with graph.inserting_before(match):
            new = layer_call = graph.call_module(path, (values,))
            if (has_bias or bias is not None) and not _reads(bias, f"{path}.bias"):
                new = graph.call_function(*self._corrected(layer_call, bias, path if has_bias else None))
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

    def _corrected(self, call: fx.Node, bias: Any, biased: str | None) -> tuple[Any, tuple[fx.Node, Any]]:
        """What adds a bias behind a call, and takes away the one that it added, of the module at this path."""
        graph, operation, other = call.graph, operator.add, bias
        if biased is not None:
            own = graph.get_attr(f"{biased}.bias")
            operation = operator.sub if bias is None else operator.add
            other = own if bias is None else graph.call_function(operator.sub, (bias, own))
        axes = self.gm.get_submodule(str(call.target)).weight.ndim - 2  # type: ignore[operator]
        if axes:
            other = graph.call_function(torch.reshape, (other, (-1, *(1,) * axes)))
        return operation, (call, other)

    def _layer(self, node: fx.Node, module: Any, bias: bool) -> nn.Module | None:
        """A layer of the type and the settings of a call, without values; None if those are not constants."""
        settings = call_of(self.gm, node).arguments
        if any(isinstance(value, fx.Node) for value in _flat(settings.values())):
            return None
        outputs, inputs, *kernel = module.weight.shape
        if not kernel:
            return nn.Linear(inputs, outputs, bias, device="meta")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in settings.items()}
        groups = given.get("groups", 1)
        return _TYPES[node.target](inputs * groups, outputs, tuple(kernel), bias=bias, device="meta", **given)

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


def _flat(values: Iterable[object]) -> Iterator[object]:
    """Values, and what is in those that are tuples or lists."""
    for value in values:
        yield from value if isinstance(value, tuple | list) else (value,)
