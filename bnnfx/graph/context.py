"""What the passes of a pipeline share besides the graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from bnnfx.config import Config
from bnnfx.graph.dataflow import weight_bits
from bnnfx.graph.record import Remark
from bnnfx.schemes import Scheme


@dataclass
class ConvertContext:
    """For the passes of `convert`.

    Attributes:
        scheme: the scheme to apply.
        config: the user's choices.
        options: of the scheme for the network as a whole, resolved.
        shapes: shapes of the traced values, also in their canonical spelling; empty if no example inputs were given or
            once layers were given another width. Other nodes that are made have none.
        ranges: the least and the most of every value on the example inputs, in evaluation; empty without them.
        leaves: the submodules that could not be traced, with the reason.
        layers: the layers with a weight of the user's model and their types; `SelectLayers` adds functional calls.
        looking: the modules whose hooks were seen to only look.
        subclasses: the types that layers had before they became layers of torch, which the user knows them by.
        binary: the layers that will be binarized and their resolved options; `SelectLayers` fills it.
    """

    scheme: Scheme
    config: Config
    options: Mapping[str, Any] = field(default_factory=dict)
    shapes: dict[fx.Node, torch.Size] = field(default_factory=dict)
    ranges: dict[fx.Node, tuple[float, float]] = field(default_factory=dict)
    leaves: Sequence[Remark] = ()
    layers: dict[str, str] = field(default_factory=dict)
    looking: frozenset[str] = frozenset()
    subclasses: dict[str, type[nn.Module]] = field(default_factory=dict)
    binary: dict[str, dict[str, Any]] = field(default_factory=dict)

    def is_binary(self, node: fx.Node) -> bool:
        """Whether a node calls a layer that will be binarized."""
        return node.op == "call_module" and node.target in self.binary

    def type_of(self, name: str, layer: nn.Module) -> type[nn.Module]:
        """The type by which the user's configuration selects a layer."""
        own = self.subclasses.get(name)
        return own if own is not None and own in self.config.layers else type(layer)

    def absorbs_relu(self, name: str) -> bool:
        """Whether the activation in front of a binary layer gives with a ReLU before it what it gives without."""
        return self.scheme.activation(self.binary[name]).absorbs_relu


@dataclass
class LowerContext:
    """For the passes of `lower`.

    Attributes:
        inputs: the example inputs.
        shapes: shapes of the values on them; a pass that replaces a node by one of equal shape adds it.
        packed: the buffers that hold weight bits, and the layer that each comes from; `PackLayers` fills it.
        same_bits: the nodes whose bits are those of another one, by name; `let_stand` adds one.
    """

    inputs: tuple[torch.Tensor, ...]
    shapes: dict[fx.Node, torch.Size]
    packed: dict[str, str] = field(default_factory=dict)
    same_bits: dict[str, str] = field(default_factory=dict)

    def let_stand(self, name: str, other: str) -> None:
        """Note that node `other` has the bits of `name`, and of all whose bits `name` had."""
        for earlier in [name, *(key for key, value in self.same_bits.items() if value == name)]:
            self.same_bits[earlier] = other

    def layers_of(self, node: object) -> tuple[str, ...]:
        """The layer that a packed convolution was made from; nothing for any other node."""
        layer = self.packed.get(weight_bits(node) or "")
        return () if layer is None else (layer,)
