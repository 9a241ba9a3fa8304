"""Follow channels through a traced network: what each operation does to them, and what it ties or fixes.

Whatever is not known here fixes the width of all that it reads, with its own name as the reason: that is always right,
and costs a width that could have changed.
"""

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from bnnfx.graph.channel_graph import ChannelGraph, Channels, Layer, Part
from bnnfx.graph.channel_rules import (
    adaptive_positions,
    argument,
    cuts_positions,
    ignores_channels,
    is_channel_axis,
    pads_positions,
)
from bnnfx.graph.dataflow import calls, module_of
from bnnfx.graph.inplace import home_of
from bnnfx.graph.operators import Kind, operator_of, operator_of_module
from bnnfx.nn import ActivationBinarizer
from bnnfx.private_interfaces import has_hooks


def follow_channels(gm: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size] | None = None) -> ChannelGraph:
    """The channel axes of a network in stage CANONICAL.

    Args:
        gm: the graph; it is only read.
        shapes: of the values where they are known; without them more widths may be fixed.
    """
    return _Flow(gm, shapes or {}).graph


class _Flow:
    def __init__(self, gm: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size]) -> None:
        self.gm = gm
        self.graph = ChannelGraph()
        self.values: dict[fx.Node, Channels] = {}
        self.numbers: set[fx.Node] = set()  # sizes, and what is computed of them
        self.shapes = shapes
        owners = Counter(id(p) for m in gm.modules() for p in m.parameters(recurse=False))
        read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
        self.foreign = {id(p) for p in gm.parameters() if owners[id(p)] > 1}
        self.foreign |= {id(p) for name, p in gm.named_parameters(remove_duplicate=False) if name in read}
        for node in gm.graph.nodes:
            channels = self._value(node)
            if channels is not None:
                self.values[node] = self._with_positions(node, channels)

    def _value(self, node: fx.Node) -> Channels | None:
        """The channels of a node's value; None if there are none, or none that could change."""
        if node.op == "call_module":
            return self._module(node)
        if node.op in ("call_function", "call_method"):
            return self._function(node)
        if node.op == "output":
            for source in node.all_input_nodes:
                if source in self.values:
                    self.graph.fix(self.values[source], f"'{source.name}' is an output of the model")
        return None

    def _unknown(
        self, node: fx.Node, reason: str = "does more with its channels than can be followed"
    ) -> Channels | None:
        what = str(node.target) if node.op == "call_module" else node.name
        for source in node.all_input_nodes:
            if source in self.values:
                self.graph.fix(self.values[source], f"'{what}' {reason}")
        return None

    def _with_positions(self, node: fx.Node, channels: Channels) -> Channels:
        shape = self.shapes.get(node)
        if channels.positions is None and channels.is_map and shape is not None and len(shape) == channels.rank:
            return replace(channels, positions=shape[2:].numel())
        return channels

    # modules

    def _module(self, node: fx.Node) -> Channels | None:
        module, name = module_of(self.gm, node), str(node.target)
        if len(node.all_input_nodes) != 1:
            return self._unknown(node)
        channels = self.values.get(node.all_input_nodes[0])
        row = operator_of_module(module)
        if row.resizable:
            assert module is not None
            obstacle = self._obstacle(module)
            if obstacle is not None:
                return self._unknown(node, obstacle)
            return self._resizable(node, name, module, channels)
        if channels is not None and (row.kind is Kind.ELEMENTWISE or isinstance(module, ActivationBinarizer)):
            return channels
        if channels is not None and row.kind in (Kind.POOL, Kind.RESAMPLE) and channels.is_map:
            return replace(channels, positions=adaptive_positions(module))
        return self._unknown(node, f"reads it, a {type(module).__name__}, whose width is not known to follow")

    def _obstacle(self, module: nn.Module) -> str | None:
        if parametrize.is_parametrized(module) or has_hooks(module):
            return "reads it and has a parametrization or hooks, which expect its present size"
        if any(id(parameter) in self.foreign for parameter in module.parameters(recurse=False)):
            return "reads it and shares a parameter with another module"
        return None

    def _resizable(self, node: fx.Node, name: str, module: nn.Module, channels: Channels | None) -> Channels | None:
        inputs = channels
        if channels is not None:
            inputs = self._readable(module, channels)
            if inputs is None:
                self._unknown(node)
        row = operator_of_module(module)
        if row.kind is not Kind.LAYER:
            if inputs is None or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
                return inputs
            self._remember(name, Layer(module, inputs, inputs))
            if isinstance(module, nn.GroupNorm):
                self.graph.require_multiple(
                    inputs, module.num_groups, f"'{name}' normalizes groups that cut through it"
                )
            return inputs
        if name in self.graph.layers:
            return self._remember(name, Layer(module, inputs, self.graph.layers[name].outputs))
        if isinstance(module, nn.Linear):
            shape = self.shapes.get(node)
            rank = inputs.rank if inputs is not None else None if shape is None else len(shape)
            outputs = self.graph.add_axis(name, module.out_features, rank, last=True)
        else:
            outputs = self._convolution(name, module, inputs)
        return self._remember(name, Layer(module, inputs, outputs))

    def _readable(self, module: nn.Module, channels: Channels) -> Channels | None:
        """The channels as this module reads them, or None if its size does not follow from them."""
        if isinstance(module, nn.Linear):
            in_order = channels.last or channels.rank == 2
            flat = replace(channels, last=True, positions=1) if channels.is_map else channels
            return self.graph.resolved(flat, module.in_features) if in_order else None
        row = operator_of_module(module)
        if row.kind is Kind.LAYER:
            fits = channels.is_map and channels.rank == row.axes
            return self.graph.resolved(channels, module.in_channels) if fits else None  # type: ignore[arg-type]
        if channels.rank != 2 and channels.last != (row.channel_axis == -1) and channels.rank is not None:
            return None  # a normalization or PReLU reads one axis for the channels
        if isinstance(module, nn.PReLU):
            return channels if module.num_parameters == 1 else self.graph.resolved(channels, module.num_parameters)
        size = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
        assert isinstance(size, int)
        return self.graph.resolved(channels, size)

    def _convolution(self, name: str, module: Any, inputs: Channels | None) -> Channels:
        groups, rank = module.groups, operator_of_module(module).axes
        if inputs is not None and groups == module.in_channels > 1 and not operator_of_module(module).transposed:
            copies = module.out_channels // groups  # depthwise: every channel of the input gives so many of the output
            return replace(
                inputs,
                parts=tuple(Part(part.axis, part.repeat * copies) for part in inputs.parts),
                positions=None,
            )
        outputs = self.graph.add_axis(name, module.out_channels, rank)
        if groups > 1:
            reason = f"'{name}' has {groups} groups that cut through it"
            for channels in (outputs, inputs):
                if channels is not None and operator_of_module(module).transposed:
                    self.graph.fix(channels, f"'{name}' is a transposed convolution with groups")
                elif channels is not None:
                    self.graph.require_multiple(channels, groups, reason)
        return outputs

    def _remember(self, name: str, layer: Layer) -> Channels:
        """Note a module; if it is called again, what it reads must be alike."""
        before = self.graph.layers.setdefault(name, layer)
        reason = f"'{name}' is called with several values"
        if layer.inputs is not None and before.inputs is not None:
            self.graph.tie(before.inputs, layer.inputs, reason)
        else:
            for channels in (before.inputs, layer.inputs):
                if channels is not None:
                    self.graph.fix(channels, reason)
        return layer.outputs if layer.inputs is layer.outputs else before.outputs

    # functions and methods

    def _function(self, node: fx.Node) -> Channels | None:
        target, sources = node.target, [n for n in node.all_input_nodes if n not in self.numbers]
        row = operator_of(self.gm, node)
        if row.kind is Kind.SIZE or (not sources and node.all_input_nodes and home_of(target) == "_operator"):
            self.numbers.add(node)
        if node in self.numbers and not sources:
            return None
        if row.kind is Kind.JOIN:
            return self._join(node, sources)
        if calls(node, torch.cat):
            return self._concatenate(node)
        if len(sources) != 1 or sources[0] not in self.values:
            return self._unknown(node)
        channels = self.values[sources[0]]
        if row.kind is Kind.ELEMENTWISE:
            return channels
        if row.name == "interpolate" and channels.is_map:
            return replace(channels, positions=None)
        if target is torch.flatten:
            return self._flatten(node, channels)
        if row.name == "mean":
            return self._mean(node, channels)
        if row.kind is Kind.SIZE:
            return None if ignores_channels(node, channels) else self._unknown(node, "reads its width as a number")
        if target is operator.getitem and channels.is_map and cuts_positions(node.args[1]):
            return replace(channels, positions=None)
        if row.name == "pad" and channels.is_map and pads_positions(node, channels.rank):
            return replace(channels, positions=None)
        return self._unknown(node)

    def _join(self, node: fx.Node, sources: list[fx.Node]) -> Channels | None:
        """Elementwise functions of several tensors; numbers and single channels are broadcast."""
        values = [self.values[source] for source in sources if source in self.values]
        if len(values) < len(sources) or not values:
            return self._unknown(node, "combines it with a value whose width is given from outside")
        single = [v for v in values if v.is_map and self.graph.width(v) == 1]
        wide = [v for v in values if v not in single] or values
        for value in single if len(wide) < len(values) else ():
            self.graph.fix(value, f"'{node.name}' broadcasts it over channels")
        for value in wide[1:]:
            self.graph.tie(wide[0], value, f"'{node.name}' combines it with channels that are arranged differently")
        return wide[0]

    def _concatenate(self, node: fx.Node) -> Channels | None:
        sources = argument(node, 0, "tensors", ())
        if not isinstance(sources, list | tuple):
            return self._unknown(node)
        values = [self.values[source] for source in sources if source in self.values]
        if not values or len(values) < len(sources):
            return self._unknown(node, "concatenates it with a value whose width is given from outside")
        first, axis = values[0], argument(node, 1, "dim", 0)
        if any((v.rank, v.last) != (first.rank, first.last) for v in values) or not isinstance(axis, int):
            return self._unknown(node)
        if not is_channel_axis(axis, first):
            if first.rank is None or axis % first.rank == 0:
                return self._unknown(node)
            for value in values[1:]:
                self.graph.tie(first, value, f"'{node.name}' joins it with channels that are arranged differently")
            return replace(first, positions=None)
        if first.is_map:
            return replace(first, parts=tuple(part for value in values for part in value.parts))
        parts = []
        for value in values:
            if value.positions is None:
                return self._unknown(node, "concatenates it with features of maps whose size is not known")
            parts += [Part(part.axis, part.repeat * value.positions) for part in value.parts]
        return replace(first, parts=tuple(parts), positions=1)

    def _flatten(self, node: fx.Node, channels: Channels) -> Channels | None:
        start, end = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
        if end != -1 or channels.rank is None:
            return self._unknown(node)
        if start == 1 and (channels.is_map or channels.rank == 2):
            return replace(channels, rank=2, last=True)
        if start == 2 and channels.is_map:
            return replace(channels, rank=3)
        return self._unknown(node)

    def _mean(self, node: fx.Node, channels: Channels) -> Channels | None:
        axes, keep = argument(node, 1, "dim", None), argument(node, 2, "keepdim", False)
        axes = (axes,) if isinstance(axes, int) else axes
        if not isinstance(axes, list | tuple) or not channels.is_map or channels.rank is None:
            return self._unknown(node)
        reduced = {axis % channels.rank for axis in axes if isinstance(axis, int)}
        if len(reduced) != len(axes) or 0 in reduced:
            return self._unknown(node)
        if 1 in reduced:
            return None  # the channels are gone
        rest = channels.rank - len(reduced)
        if keep:
            return replace(channels, positions=1 if rest == 2 else None)
        return replace(channels, rank=rest, last=rest == 2, positions=1 if rest == 2 else None)
