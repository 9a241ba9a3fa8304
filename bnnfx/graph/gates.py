"""Gates: factors that are never negative, as of squeeze-and-excite, which a sign behind the product does not show."""

from collections.abc import Mapping

import torch
from torch import fx

from bnnfx.graph.operators import Kind, Sign, operator_of
from bnnfx.graph.value_flow import PASSAGES, Value


def gate_of(
    gm: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Value], shapes: Mapping[fx.Node, torch.Size]
) -> fx.Node | None:
    """The factor of a product that is never negative; of two of them the smaller one, or that without ReLUs.

    None if there is none. What is a function of one value, as `x * sigmoid(x)`, is an activation function.
    """
    sources = [source for source in node.all_input_nodes if source in values and values[source].origin is not None]
    if not operator_of(gm, node).scales or len(sources) != 2:
        return None
    if values[sources[0]].origin is values[sources[1]].origin and values[node].signs.curve is not None:
        return None
    positive = [source for source in sources if values[source].signs.sign is Sign.NEVER_NEGATIVE]
    if len(positive) == 2:
        sizes = [shapes[source].numel() if source in shapes else 0 for source in sources]
        smaller = [source for source, size in zip(sources, sizes, strict=True) if size < max(sizes)]
        bare = [source for source in sources if values[source].without_relus.sign is Sign.NEVER_NEGATIVE]
        positive = smaller if len(smaller) == 1 and all(sizes) else bare
    return positive[0] if len(positive) == 1 else None


def hidden_gates(
    gm: fx.GraphModule, values: Mapping[fx.Node, Value], shapes: Mapping[fx.Node, torch.Size]
) -> dict[fx.Node, fx.Node]:
    """The values of which a sign does not show a gate, as `sign(x * gate)` is `sign(x)`; each with the product.

    Pooling, activation functions, views and factors behind the product do not change that; sums and norms do.
    """
    found: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        row = operator_of(gm, node)
        if gate_of(gm, node, values, shapes) is not None or (row.scales and row.kind is Kind.OPAQUE):
            found[node] = node
        elif row.kind in PASSAGES or row.kind is Kind.CONCAT or row.scales:
            carried = [found[source] for source in node.all_input_nodes if source in found]
            if carried:
                found[node] = carried[0]
    return found


def made_for_gates(
    gm: fx.GraphModule, values: Mapping[fx.Node, Value], shapes: Mapping[fx.Node, torch.Size]
) -> set[fx.Node]:
    """The values of which nothing is made but gates that are broadcast, so that they are few; where shapes tell."""
    gates = {}
    for node in gm.graph.nodes:
        gate = gate_of(gm, node, values, shapes)
        if gate is not None and (not {gate, node} <= shapes.keys() or shapes[gate].numel() < shapes[node].numel()):
            gates[gate] = node
    found: set[fx.Node] = set()
    for node in reversed(gm.graph.nodes):
        if node.users and all(user is gates.get(node) or user in found for user in node.users):
            found.add(node)
    return found
