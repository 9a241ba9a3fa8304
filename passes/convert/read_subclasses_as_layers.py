"""Subclasses of layers that compute what the layer does: that layer, perhaps behind a padding."""

import operator
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from bnnfx.graph import edit
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import module_calls, module_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.plain_layers import PlainLayer, Sides, as_pad, float_type, plain_layer
from bnnfx.graph.record import Refusal, Role
from bnnfx.graph.stage import Stage
from bnnfx.nn import layer_kind
from bnnfx.private_interfaces import LazyModule, assertion, has_hooks


class ReadSubclassesAsLayers(Pass[ConvertContext, fx.Node, PlainLayer]):
    """Before: a call of a subclass of `nn.Conv2d`. After: one of `nn.Conv2d` under its name, with its parameters.

    What a subclass computes is compared by value, see `bnnfx.graph.plain_layers`, on the shapes that example inputs
    tell. A padding that its two sides do not share stands in front, as `F.pad`. Where the padding depends on the size,
    the graph is held to the size of the example.
    """

    requires = Stage.TRACED
    ensures = Stage.TRACED
    role = Role.DECIDES

    def match(self) -> Iterator[fx.Node]:
        """The first call of every subclass of a layer that we know."""
        seen: set[object] = set()
        for node in module_calls(self.gm, nn.Module):
            if node.target not in seen and self._is_of_subclass(node):
                seen.add(node.target)
                yield node

    def allowed(self, match: fx.Node) -> PlainLayer | Refusal:
        """It must compute what the layer does, on inputs of every shape that it is called with."""
        layer, calls = module_of(self.gm, match), self._calls(match)
        assert layer is not None
        kind, name = float_type(layer), type(layer).__name__
        assert kind is not None
        if not all(len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs for node in calls):
            return Refusal(
                f"{name} takes more than its input",
                f"use nn.{kind.__name__} itself, and do what the subclass adds in a module around it",
            )
        shapes = [self.context.shapes.get(node.all_input_nodes[0]) for node in calls]
        known = [shape for shape in shapes if shape is not None]
        if len(known) < len(shapes):
            return Refusal(
                f"{name} is a subclass of nn.{kind.__name__}, and what it computes is not known",
                "give example_inputs, on which that is seen",
            )
        return plain_layer(layer, list(dict.fromkeys(known)))

    def rewrite(self, match: fx.Node, plan: PlainLayer) -> None:
        """Put the layer in the subclass's place, and the padding in front of its calls."""
        self.context.subclasses[str(match.target)] = type(module_of(self.gm, match))  # type: ignore[assignment]
        for node in self._calls(match):
            source = node.all_input_nodes[0]
            with self.gm.graph.inserting_before(node):
                if not plan.any_size:
                    self._hold_to_size(source)
                if plan.sides:
                    node.update_arg(0, self._padded(source, plan.sides))
        edit.replace_module(self.gm, str(match.target), plan.module)

    def subject(self, match: fx.Node) -> str:
        """The layer's qualified name."""
        return str(match.target)

    def _calls(self, match: fx.Node) -> list[fx.Node]:
        return [node for node in self.gm.graph.nodes if node.op == "call_module" and node.target == match.target]

    def _is_of_subclass(self, node: fx.Node) -> bool:
        layer = module_of(self.gm, node)
        if layer is None or layer_kind(layer) is not None or float_type(layer) is None:
            return False
        if isinstance(layer, LazyModule) or parametrize.is_parametrized(layer) or has_hooks(layer):
            return False  # SelectLayers says so
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        return weight.is_floating_point() and not weight.is_meta

    def _hold_to_size(self, source: fx.Node) -> None:
        """Let the graph refuse inputs of another size."""
        graph = self.gm.graph
        shape = graph.call_function(getattr, (source, "shape"))
        for axis, size in enumerate(self.context.shapes[source][2:], 2):
            same = graph.call_function(operator.eq, (graph.call_function(operator.getitem, (shape, axis)), size))
            said = f"'{source.name}' has another size along axis {axis} than {size}, for which the padding was found"
            graph.call_function(assertion, (same, said))

    def _padded(self, source: fx.Node, sides: Sides) -> fx.Node:
        padded = self.gm.graph.call_function(F.pad, (source, as_pad(sides)))
        size = (n + sum(pair) for n, pair in zip(self.context.shapes[source][2:], sides, strict=True))
        self.context.shapes[padded] = torch.Size((*self.context.shapes[source][:2], *size))
        if source in self.context.ranges:
            least, most = self.context.ranges[source]
            self.context.ranges[padded] = min(least, 0.0), max(most, 0.0)
        return padded
