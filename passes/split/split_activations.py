"""BinaryDuo's second stage: two binary activations for a ternary one, and the layers behind it of twice the inputs."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from bnnfx.graph import edit
from bnnfx.graph.dataflow import module_calls, module_of
from bnnfx.graph.halved_channels import groups_of, halves_of, mean_of, readers_of_shifted
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.graph.value_flow import follow_values
from bnnfx.nn import ActivationBinarizer, layer_kind
from bnnfx.nn.halves import halves_by_group
from bnnfx.private_interfaces import has_hooks_before


@dataclass
class Ternary:
    """A call of a ternary activation and what reads its values.

    Attributes:
        activation: the call.
        layers: the layers that read it, through dropout, pooling and views only.
        others: every other reader, with the value that it reads.
        doubled: the layers of which no activation before this one took the inputs.
        elsewhere: calls of the layers that read something else than a ternary activation.
        axes: which axis the layers take for the channels of the activation, 1 or -1; a flattened map has axis 1.
    """

    activation: fx.Node
    layers: list[fx.Node] = field(default_factory=list)
    others: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    elsewhere: list[fx.Node] = field(default_factory=list)
    axes: set[int] = field(default_factory=set)


class SplitActivations(Pass[None, Ternary, None]):
    """Before: `layer(ternary(x))`. After: `layer(heaviside(shift_halves([x, x], 1/4)))` with the weight `[W/2, W/2]`.

    For every x, `ternary(x) = (H(x - 1/4 - 1/2) + H(x + 1/4 - 1/2)) / 2`, so the layer gives what it gave. Whatever
    else reads the activation reads the mean of the two halves. For a grouped layer the halves of each group's channels
    are put side by side in front of the activation.

    Allowed where `[W/2, W/2]` is binarized to `[W_b/2, W_b/2]`: `WeightBinarizer.homogeneous`. Source: BinaryDuo
    (arXiv 2002.06517) and the authors' code.
    """

    requires = Stage.TRAINABLE
    ensures = Stage.TRAINABLE

    def __init__(self, gm: fx.GraphModule, context: None) -> None:
        super().__init__(gm, context)
        self._values = follow_values(gm)

    def match(self) -> Iterator[Ternary]:
        """Every call of an activation that is half the sum of two binary ones, `ActivationBinarizer.split`."""
        found = [Ternary(node) for node in module_calls(self.gm, ActivationBinarizer) if self._half(node) is not None]
        for ternary in found:
            for value, reader, flattened in readers_of_shifted(self.gm, ternary.activation):
                kind = layer_kind(module_of(self.gm, reader))
                if kind is not None:
                    ternary.layers.append(reader)
                    first = flattened or kind.channel_axis == 1 or self._values[value].axes == 2
                    ternary.axes.add(1 if first else -1)
                else:
                    ternary.others.append((value, reader))
        reading, doubled = {layer for ternary in found for layer in ternary.layers}, set[str]()
        for ternary in found:
            names = dict.fromkeys(str(layer.target) for layer in ternary.layers)
            ternary.doubled = [name for name in names if name not in doubled]
            doubled.update(names)
            calls = [node for node in self.gm.graph.nodes if node.op == "call_module" and node.target in names]
            ternary.elsewhere = [node for node in calls if node not in reading]
        yield from found

    def allowed(self, match: Ternary) -> Refusal | None:
        """All layers behind it must be ones whose weight can be halved and repeated, at every one of their calls."""
        for node in match.layers:
            refusal = self._keeps_its_weight(node, match.elsewhere)
            if refusal is not None:
                return Refusal(f"the layer '{node.target}' behind it {refusal.reason}", refusal.remedy)
        groups = {groups_of(self.gm, node) for node in match.layers}
        if len(groups) > 1:
            names = ", ".join(f"'{node.target}'" for node in match.layers)
            return Refusal(f"{names} read it in different groups of channels", "give each an activation of its own")
        if len(match.axes) > 1:
            names = ", ".join(f"'{node.target}'" for node in match.layers)
            return Refusal(f"{names} read channels on different axes of it", "give each an activation of its own")
        if match.others and groups - {1}:
            return Refusal(
                f"the grouped layer '{match.layers[0].target}' and '{match.others[0][1].name}' both read it, in "
                "different orders of channels",
                "give each an activation of its own",
            )
        return None

    def rewrite(self, match: Ternary, plan: None) -> None:
        """Compare the shifted halves, double the layers' inputs, and put means in front of the other readers."""
        graph, activation = self.gm.graph, match.activation
        (axis,) = match.axes or {1}
        halves = halves_of(activation.all_input_nodes[0], axis)
        groups = max((groups_of(self.gm, node) for node in match.layers), default=1)
        with graph.inserting_before(activation):
            if groups > 1:
                halves = graph.call_function(halves_by_group, (halves, groups))
        activation.args = (halves,)
        half = self._half(activation)
        if half is not None:  # else an earlier call was split
            edit.replace_module(self.gm, str(activation.target), half)
        for layer in match.doubled:
            _double_inputs(self.gm.get_submodule(layer))
        means: dict[fx.Node, fx.Node] = {}
        for value, reader in match.others:
            if value not in means:
                means[value] = mean_of(value, axis)
            reader.replace_input_with(value, means[value])

    def subject(self, match: Ternary) -> str:
        """The activation's qualified name."""
        return str(match.activation.target)

    def finish(self) -> None:
        """A network of which a part stays ternary is of no use: refuse all of it, with every reason."""
        self.stop_if_refused("split cannot make two binary activations of each ternary one")

    def _half(self, activation: fx.Node) -> nn.Module | None:
        module = module_of(self.gm, activation)
        assert isinstance(module, ActivationBinarizer)
        half = module.split()
        return None if half is None else half.train(module.training)

    def _keeps_its_weight(self, layer: fx.Node, elsewhere: list[fx.Node]) -> Refusal | None:
        """The reason why a layer cannot have its weight halved and repeated, or None."""
        module = module_of(self.gm, layer)
        assert module is not None
        if "weight" not in dict(module.named_parameters(recurse=False)) or has_hooks_before(module):
            return Refusal("has its weight computed by a hook (weight normalization does that)", "remove it first")
        binarizer = getattr(module, "binarizer", None)
        if binarizer is not None and not binarizer.homogeneous:
            return Refusal(
                f"has a {type(binarizer).__name__}, which does not make [W_b/2, W_b/2] of [W/2, W/2] "
                "(it standardises, rotates or clamps the weight)",
                "use a binarizer that is homogeneous",
            )
        for node in elsewhere:
            if node.target == layer.target:
                source = node.all_input_nodes[0].name
                return Refusal(f"is also called on '{source}', which is not ternary", "give that a layer of its own")
        holders = [name for name, weight in self.gm.named_parameters(remove_duplicate=False) if weight is module.weight]
        if len(holders) > 1:
            return Refusal(f"shares its weight ({', '.join(holders)})", "give each a weight of its own")
        return None


@torch.no_grad()
def _double_inputs(layer: nn.Module) -> None:
    """`W` `[O, C, ...]` to `[W/2, W/2]` `[O, 2 C, ...]`, in place; of a grouped convolution likewise in each group."""
    kind, weight = layer_kind(layer), layer.weight
    assert kind is not None and isinstance(weight, nn.Parameter)
    layer.weight = nn.Parameter(torch.cat([weight / 2, weight / 2], dim=1), weight.requires_grad)
    inputs = kind.width_names[0]
    setattr(layer, inputs, 2 * getattr(layer, inputs))
