"""Decide which layers become binary; every other convolution or linear layer gets its reason."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from bnnfx.errors import ConversionError
from bnnfx.graph.context import ConvertContext
from bnnfx.graph.dataflow import WEIGHT_LAYERS, depends_on_input, is_add, is_kind, module_calls, module_of
from bnnfx.graph.gates import hidden_gates, made_for_gates
from bnnfx.graph.given_models import computed_weight
from bnnfx.graph.inplace import home_of
from bnnfx.graph.operators import Kind, Sign, operator_of
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal, Remark, Role
from bnnfx.graph.stage import Stage
from bnnfx.graph.value_flow import follow_values
from bnnfx.nn import BINARY_LAYERS, layer_kind
from bnnfx.private_interfaces import LazyModule, has_hooks
from bnnfx.schemes import get_scheme, schemes
from bnnfx.schemes.scheme import Options

_NORM = "put a batch norm between '{}' and it"


class SelectLayers(Pass[ConvertContext, fx.Node, Options]):
    """Changes nothing in the graph: it fills `context.binary`, and its refusals say why a layer stays float."""

    requires = Stage.CANONICAL
    ensures = Stage.CANONICAL
    role = Role.DECIDES

    def __init__(self, gm: fx.GraphModule, context: ConvertContext) -> None:
        super().__init__(gm, context)
        self._boundary = _Boundary(gm)
        self._values = follow_values(gm, context.shapes)
        self._made_for_gates = made_for_gates(gm, self._values, context.shapes)
        self._hidden_gates = hidden_gates(gm, self._values, context.shapes)

    def match(self) -> Iterator[fx.Node]:
        """The first call of every layer with a weight, and calls of their functional forms."""
        seen: set[object] = set()
        for node in list(self.gm.graph.nodes):
            if self._is_functional_layer(node):
                yield node
            if isinstance(module_of(self.gm, node), WEIGHT_LAYERS) and node.target not in seen:
                seen.add(node.target)
                yield node

    def allowed(self, match: fx.Node) -> Options | Refusal:
        """What the user excludes, what the layer and the scheme allow, then what stays float unless the user asks."""
        layer, name = module_of(self.gm, match), str(match.target)
        if layer is None:
            return Refusal(
                f"{getattr(match.target, '__name__', name)} is called as a function",
                "make it a module, nn.Conv2d or nn.Linear, that forward calls",
            )
        chosen = self.context.config.for_layer(name, self.context.type_of(name, layer)).binarize
        binarize = f"Config(layers={{{name!r}: LayerConfig(binarize=True)}})"
        if chosen is False:
            return Refusal("stays float because Config.layers says binarize=False", f"{binarize}, or drop that entry")
        calls = [node for node in self.gm.graph.nodes if node.op == "call_module" and node.target == match.target]
        obstacle = _unsupported(layer, name in self.context.looking) or self._scheme_refuses(layer)
        for call in calls if obstacle is None else ():
            obstacle = obstacle or self._wrong_rank(call) or self._constant_sign(call)
        if obstacle is not None:
            return obstacle
        kept = self._kept_float(calls)
        if chosen or kept is None:
            return self._options(match)
        reason, second = f"the {kept} layer stays float", self._boundary.second_input(match)
        if kept == "first" and second is not None:
            reason = f"it stays float as first layers do: it reads the input '{second.name}', beside what others give"
        return Refusal(reason, f"{binarize}, or leave {kept!r} out of Config.keep_float")

    def rewrite(self, match: fx.Node, plan: Options) -> None:
        """Note the layer and its options."""
        self.context.binary[str(match.target)] = dict(plan)

    def subject(self, match: fx.Node) -> str:
        """The layer's qualified name."""
        return str(match.target) if match.op == "call_module" else match.name

    def finish(self) -> None:
        """Refuse a configuration that cannot be meant, and a model with nothing to binarize; name what was not met."""
        names = {
            str(n.target): self.context.type_of(str(n.target), self.gm.get_submodule(str(n.target)))
            for n in module_calls(self.gm, WEIGHT_LAYERS)
        }
        for field, unmatched in self.context.config.unmatched(names).items():
            raise ValueError(
                f"Config.{field} selects no layer with {', '.join(map(repr, unmatched))}; "
                f"the layers are: {', '.join(names)}."
            )
        for key, layer in self.context.config.layers.items():
            misplaced = sorted(set(layer.options) & set(self.context.scheme.network_options))
            if misplaced:
                raise ValueError(
                    f"Config.layers[{key!r}] gives {', '.join(map(repr, misplaced))}, which is an option of the whole "
                    "network; give it in Config.options."
                )
        if not self.context.binary:
            raise ConversionError(
                "Nothing in this model can be binarized. "
                + (
                    self._most_frequent_reason()
                    if self.report.refused
                    else "torch.fx found no Conv1d, Conv2d or Linear in it; a module kept as a leaf hides its layers: "
                    + (" ".join(f"'{r.subject}' is {r.reason}" for r in self.context.leaves) or "there is none here.")
                )
            )
        for node in filter(self._is_functional_layer, self.gm.graph.nodes):
            self.context.layers[node.name] = getattr(node.target, "__name__", str(node.target))
        met = {*self.context.binary, *(remark.subject for remark in self.report.refused)}
        for name in self.context.layers:
            if name not in met:
                refusal = self._never_met(name)
                self.report.refused.append(Remark(name, refusal.reason, refusal.remedy))

    def _most_frequent_reason(self) -> str:
        """Of all refusals, with one of the layers that have it, and what would change it there."""
        reasons = Counter(remark.reason for remark in self.report.refused)
        reason, count = reasons.most_common(1)[0]
        remark = next(remark for remark in self.report.refused if remark.reason == reason)
        share = f"{count} of them as" if count > 1 else "the first is"
        remedy = f" The remedy: {remark.remedy}." if remark.remedy else ""
        return f"{len(self.report.refused)} layer(s) stay float, {share} '{remark.subject}': {reason}.{remedy}"

    def _never_met(self, name: str) -> Refusal:
        """Why no node of the graph calls this layer of the user's model."""
        for leaf in self.context.leaves:
            if name.startswith(f"{leaf.subject}."):
                return Refusal(f"it is inside '{leaf.subject}', which is {leaf.reason}", leaf.remedy)
        for node in module_calls(self.gm, nn.Module):
            if name.startswith(f"{node.target}."):
                kind = type(module_of(self.gm, node)).__name__
                return Refusal(
                    f"it is inside '{node.target}', a {kind}, which is called as a whole",
                    f"write what {kind} does as a module of your own that calls its layers",
                )
        for node in self.gm.graph.nodes:
            if node.op == "get_attr" and str(node.target).rpartition(".")[0] == name and node.users:
                user = next(iter(node.users))
                return Refusal(
                    f"forward does not call it, but gives its {str(node.target).rpartition('.')[2]} to '{user.name}'",
                    "let forward call the module itself",
                )
        mode = "train" if self.gm.training else "eval"
        return Refusal(
            f"forward does not call it in {mode}()",
            "let forward call it; or, if it does so in the other mode only, move what follows self.training into a "
            "submodule of its own, or convert the model in that mode",
        )

    def _options(self, match: fx.Node) -> dict[str, Any]:
        name = str(match.target)
        kind = self.context.type_of(name, self.gm.get_submodule(name))
        options = self.context.config.for_layer(name, kind).options
        return self.context.scheme.resolve_layer(options)

    def _kept_float(self, calls: list[fx.Node]) -> str | None:
        tests: dict[str, Callable[[fx.Node], bool]] = {
            "first": self._boundary.first,
            "last": self._boundary.last,
            "downsample": lambda node: _is_downsample(self.gm, node),
            "depthwise": lambda node: _is_depthwise(self.gm, node),
            "gate": lambda node: node in self._made_for_gates,
        }
        for word in self.context.config.keep_float:
            if any(tests[word](node) for node in calls):
                return word
        return None

    def _scheme_refuses(self, layer: nn.Module) -> Refusal | None:
        reason = self.context.scheme.refuses(layer)
        if reason is None:
            return None
        others = [name for name in schemes() if get_scheme(name).refuses(layer) is None]
        return Refusal(reason, f"convert with scheme {' or '.join(map(repr, others))}" if others else "")

    def _constant_sign(self, match: fx.Node) -> Refusal | None:
        source = match.all_input_nodes[0]
        if source in self._hidden_gates and "gates" in self.context.config.adapt:
            return None  # a batch norm is put in front of it
        value = self._values[source]
        sign, culprit = value.without_relus.sign, value.without_relus.culprit
        least, most = self.context.ranges.get(source, (math.nan, math.nan))
        activation = self.context.scheme.activation(self._options(match))
        if activation.absorbs_relu and sign is not Sign.UNKNOWN:
            return None
        if activation.absorbs_relu and not math.isnan(least):
            low, high = activation(torch.tensor([[least], [most]]))
            if not torch.equal(low, high):
                return None
            reason = f"its input, which '{culprit.name}' gives, is {least:.3g} to {most:.3g} on the example inputs"
            return Refusal(
                f"{reason}, of which {type(activation).__name__} makes one value", _NORM.format(culprit.name)
            )
        if sign is Sign.BOTH or (sign is Sign.UNKNOWN and least < 0 <= most):
            return None
        remedy = _NORM.format(culprit.name)
        if sign is Sign.NEVER_NEGATIVE:
            reason = f"its input is never negative, because of '{culprit.name}', so a sign of it would be constant"
            return Refusal(reason, remedy)
        if not math.isnan(least):
            reason = f"its input, which '{culprit.name}' gives, has one sign only on the example inputs"
            return Refusal(f"{reason}, {least:.3g} to {most:.3g}, so a sign of it would be constant", remedy)
        return Refusal(
            f"'{culprit.name}' may give its input one sign only, so that a sign of it would be constant",
            f"{remedy}; or give example_inputs, whose values show both signs",
        )

    def _is_functional_layer(self, node: fx.Node) -> bool:
        """A layer called as a function, or a product of a value with a tensor that does not depend on the input."""
        row = operator_of(self.gm, node)
        if node.op == "call_function" and row.kind is Kind.LAYER:
            return True
        return row.multiplies and len({depends_on_input(operand) for operand in node.all_input_nodes}) == 2

    def _wrong_rank(self, match: fx.Node) -> Refusal | None:
        layer, source = module_of(self.gm, match), match.all_input_nodes[0]
        kind, axes_given = layer_kind(layer), self._values[source].axes
        assert kind is not None
        if kind.takes(axes_given or kind.axes):
            return None
        shape = self.context.shapes.get(source)
        given = f"shape {list(shape)}" if shape is not None else f"{axes_given} {'axis' if axes_given == 1 else 'axes'}"
        return Refusal(
            f"its input has {given}; a binary {type(layer).__name__} takes {kind.layout} only",
            f"reshape its input to {kind.layout}, and its output back",
        )


def _unsupported(layer: nn.Module, only_looked_at: bool) -> Refusal | None:
    if isinstance(layer, LazyModule):
        return Refusal("its weight is not made yet", "run the model once on an input before convert")
    if parametrize.is_parametrized(layer):
        return Refusal(
            "its weight is parametrized",
            "call torch.nn.utils.parametrize.remove_parametrizations on it before convert",
        )
    computed = computed_weight(layer)
    if computed is not None:
        return Refusal(computed.reason, f"{computed.remedy} before convert")
    if has_hooks(layer) and not only_looked_at:
        return Refusal(
            "it has forward hooks, which change what it computes, or may",
            "remove them before convert, and put back what should stay on the result; or, if they only look, give "
            "example_inputs, on which that is seen",
        )
    kind = layer_kind(layer)
    if kind is None:
        return _of_another_type(layer)
    obstacle = kind.refuses(layer)
    if obstacle is not None:
        return obstacle
    if not layer.weight.is_floating_point():  # type: ignore[operator]
        return Refusal(f"its weight is {layer.weight.dtype}", "convert the model with a weight of floats")
    return None


def _of_another_type(layer: nn.Module) -> Refusal:
    *others, last = (f"nn.{kind.__name__}" for kind in BINARY_LAYERS)
    home = "nn" if home_of(layer) == "torch" else type(layer).__module__
    reason = f"{home}.{type(layer).__name__} is not supported; {', '.join(others)} and {last} are"
    for kind in BINARY_LAYERS:
        if isinstance(layer, kind):
            return Refusal(
                reason, f"use nn.{kind.__name__} itself, and do what the subclass adds in a module around it"
            )
    return Refusal(reason)


class _Boundary:
    """Which layers read an input, and which give an output, with no other layer with a weight between."""

    def __init__(self, gm: fx.GraphModule) -> None:
        layers = set(module_calls(gm, WEIGHT_LAYERS))
        self._sees_input: dict[fx.Node, fx.Node] = {}
        self._behind_layers: set[fx.Node] = set()
        self._reaches_output: set[fx.Node] = set()
        for node in gm.graph.nodes:
            sources = [n for n in node.all_input_nodes if not is_kind(gm, n, Kind.SIZE)]
            if any(source in layers or source in self._behind_layers for source in sources):
                self._behind_layers.add(node)
            seen = [self._sees_input[n] for n in sources if n in self._sees_input and n not in layers]
            if node.op == "placeholder" and not node.args:  # else it is an option, which has a default
                seen = [node]
            if seen:
                self._sees_input[node] = seen[0]
        for node in reversed(gm.graph.nodes):
            users = [user for user in node.users if user not in layers]
            if any(user.op == "output" or user in self._reaches_output for user in users):
                self._reaches_output.add(node)

    def first(self, node: fx.Node) -> bool:
        return node in self._sees_input

    def second_input(self, node: fx.Node) -> fx.Node | None:
        """The input that a layer reads beside what other layers give; None where there is none of both."""
        return self._sees_input.get(node) if node in self._behind_layers else None

    def last(self, node: fx.Node) -> bool:
        return node in self._reaches_output


def _is_downsample(gm: fx.GraphModule, node: fx.Node) -> bool:
    """A 1x1 convolution that is the only one on its side of a residual add, while the other side has more or larger."""
    layer = module_of(gm, node)
    if not _is_pointwise(layer):
        return False
    end = node
    while len(end.users) == 1 and not is_add(end):
        end = next(iter(end.users))
    if not is_add(end):
        return False
    sides = [_layers_up_to_fork(gm, operand) for operand in end.all_input_nodes]
    own = next((side for side in sides if node in side), [])
    other = next((side for side in sides if node not in side), [])
    larger = any(not _is_pointwise(module_of(gm, layer)) for layer in other)
    return own == [node] and (len(other) > 1 or larger)


def _is_pointwise(layer: nn.Module | None) -> bool:
    """Whether a layer is a convolution with a kernel of one value."""
    return isinstance(layer, nn.Conv1d | nn.Conv2d) and math.prod(layer.kernel_size) == 1


def _is_depthwise(gm: fx.GraphModule, node: fx.Node) -> bool:
    """A convolution of one channel per group."""
    layer = module_of(gm, node)
    groups = getattr(layer, "groups", 1)
    return bool(groups > 1 and groups == getattr(layer, "in_channels", 0))


def _layers_up_to_fork(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The layers with a weight on the chain that ends at `node`, back to where the value has several readers."""
    found = []
    while len(node.users) == 1 and len(node.all_input_nodes) == 1:
        if isinstance(module_of(gm, node), WEIGHT_LAYERS):
            found.append(node)
        node = node.all_input_nodes[0]
    return found
