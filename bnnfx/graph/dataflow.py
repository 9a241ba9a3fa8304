"""Questions about a graph: which module a node calls, what reads a value, what can flow where."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from bnnfx.nn.halves import shift_halves
from bnnfx.ops import BY_TARGET, PackedOp

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHT_LAYERS = (*CONVOLUTIONS, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Modules whose weight could be binarized in principle; the ones we binarize are `bnnfx.nn.BINARY_LAYERS`."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
RELUS = (nn.ReLU, nn.ReLU6)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
ELEMENTWISE = (*RELUS, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Hardswish)
"""Activation functions: value by value (PReLU: with a slope per channel)."""

_NEVER_NEGATIVE = (*RELUS, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Softmax)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_KEEPS_SIGN = (*POOLS, *DROPOUTS, *ELEMENTWISE, nn.Identity)  # never negative in, never negative out
_KEEPS_BITS = (*DROPOUTS, nn.Identity)
_REARRANGING = {
    *("view", "reshape", "flatten", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "chunk", "split"),
    *(torch.reshape, torch.flatten, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze),
    *(torch.chunk, torch.split, operator.getitem),
}


def module_of(gm: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that a node calls, or None if it calls none."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return gm.get_submodule(str(node.target))
    return None


def calls(node: object, function: Callable[..., Any]) -> bool:
    """Whether a node calls this very function."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is function


def packed_op(node: object) -> PackedOp | None:
    """The packed operator that a node calls, or None if it calls none."""
    if isinstance(node, fx.Node) and node.op == "call_function":
        return BY_TARGET.get(node.target)
    return None


@dataclass(frozen=True)
class PackedResult:
    """What a value of a packed graph is.

    Attributes:
        op: the packed operator that computes it.
        output: which of its outputs it is, "float" or "bits".
    """

    op: PackedOp
    output: str


def packed_result(node: object) -> PackedResult | None:
    """Which result of a packed operator a node holds, or None if it holds none, or all of several."""
    op, index = packed_op(node), 0
    if calls(node, operator.getitem):
        assert isinstance(node, fx.Node)
        op, index = packed_op(node.args[0]), node.args[1]  # type: ignore[assignment]
        if op is not None and len(op.outputs) == 1:
            return None  # a slice of its only result
    elif op is not None and len(op.outputs) > 1:
        return None
    return None if op is None else PackedResult(op, op.outputs[index])


def weight_bits(node: object) -> str | None:
    """The buffer that holds the weight bits of a packed convolution; None for any other node."""
    op = packed_op(node)
    if op is None or "weight" not in op.tensors:
        return None
    weight = node.args[op.tensors.index("weight")]  # type: ignore[attr-defined]
    return str(weight.target)


def is_view(node: object) -> bool:
    """Whether a node only gives its values another shape, in the spellings that are left in a packed graph."""
    return calls(node, torch.flatten) or calls(node, torch.reshape)


def is_freezable(module: nn.Module | None) -> bool:
    """Whether this is a batch norm with running statistics: constant in evaluation."""
    return isinstance(module, BATCH_NORMS) and module.running_mean is not None


def rearranges(node: object) -> bool:
    """Whether a node only moves values of its first argument, or picks some of them: a view, a permutation, a slice."""
    return isinstance(node, fx.Node) and node.op in ("call_function", "call_method") and node.target in _REARRANGING


def is_add(node: object) -> bool:
    """Whether a node adds two tensors of the graph (not a constant)."""
    return isinstance(node, fx.Node) and calls(node, operator.add) and len(node.all_input_nodes) == 2


def module_calls(gm: fx.GraphModule, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> Iterator[fx.Node]:
    """The nodes that call a module of these kinds, in graph order."""
    for node in list(gm.graph.nodes):
        if isinstance(module_of(gm, node), kinds):
            yield node


def is_replication(node: object) -> bool:
    """Whether a node puts two copies of one map side by side on the axis of the channels."""
    if not isinstance(node, fx.Node) or not calls(node, torch.cat):
        return False
    parts = node.args[0]
    return isinstance(parts, list | tuple) and len(parts) == 2 and parts[0] is parts[1] and node.args[1:] == (1,)


def sole_user(node: fx.Node) -> fx.Node | None:
    """The only reader of a value, or None if there are none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def depends_on_input(node: fx.Node) -> bool:
    """Whether a value is computed from an input of the graph, and so has its batch; else it is a constant."""
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        if current.op == "placeholder":
            return True
        waiting += [source for source in current.all_input_nodes if source not in seen]
        seen.update(current.all_input_nodes)
    return False


def bits_source(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Walk back over what keeps +-1 values in evaluation (dropout, identity)."""
    while isinstance(module_of(gm, node), _KEEPS_BITS):
        node = node.all_input_nodes[0]
    return node


def never_negative(gm: fx.GraphModule, node: fx.Node, ignoring: tuple[type[nn.Module], ...] = ()) -> fx.Node | None:
    """The node because of which this value cannot be negative, or None if it can.

    A sum or a concatenation is never negative if all its operands are. Modules of the kinds `ignoring` count as if
    they passed their input on.
    """
    module = module_of(gm, node)
    if isinstance(module, _NEVER_NEGATIVE) or (isinstance(module, nn.Hardtanh) and module.min_val >= 0):
        return never_negative(gm, node.all_input_nodes[0], ignoring) if isinstance(module, ignoring) else node
    if isinstance(module, _KEEPS_SIGN) or rearranges(node) or _is_mean(node):
        return never_negative(gm, node.all_input_nodes[0], ignoring)
    if _is_sum(node) or calls(node, torch.cat):
        culprits = [never_negative(gm, operand, ignoring) for operand in node.all_input_nodes]
        return culprits[0] if all(culprits) else None
    return None


def relus_reaching(gm: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """The ReLU nodes whose output reaches `node` through what keeps non-negative values so."""
    module = module_of(gm, node)
    if isinstance(module, RELUS):
        yield node
    if isinstance(module, _KEEPS_SIGN) or rearranges(node) or _is_mean(node):
        yield from relus_reaching(gm, node.all_input_nodes[0])
    elif _is_sum(node) or calls(node, torch.cat):
        for operand in node.all_input_nodes:
            yield from relus_reaching(gm, operand)


def _is_passage(gm: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(module_of(gm, node), _KEEPS_SIGN) or rearranges(node)


def _is_sum(node: fx.Node) -> bool:
    """`is_add`, or a tensor plus itself."""
    return calls(node, operator.add) and all(isinstance(operand, fx.Node) for operand in node.args)


def _is_mean(node: fx.Node) -> bool:
    return calls(node, torch.mean) or (node.op == "call_method" and node.target == "mean")


def is_normalized(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether every reader of a layer's output meets a batch norm, behind pooling, activations and concat only."""

    def met(user: fx.Node) -> bool:
        passage = _is_passage(gm, user) or calls(user, torch.cat)
        return isinstance(module_of(gm, user), BATCH_NORMS) or (passage and is_normalized(gm, user))

    return bool(node.users) and all(met(user) for user in node.users)


def producer(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Walk back over pooling, activations, dropout and flatten to what produced the values."""
    while _is_passage(gm, node):
        node = node.all_input_nodes[0]
    return node


def monotone_directions(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    """How a node's value moves with its input, per channel: +1 up, -1 down, 0 constant; None if that is not known.

    Returns a scalar where all channels agree. Rounding keeps monotone: a product, a sum and a clamp each round
    monotonely.
    """
    module = module_of(gm, node)
    if isinstance(module, nn.LeakyReLU | nn.PReLU):
        slope = module.weight.detach() if isinstance(module, nn.PReLU) else torch.tensor(module.negative_slope)
        return torch.tensor(1.0) if bool((slope >= 0).all()) else None
    if isinstance(module, (*RELUS, nn.Hardtanh, nn.MaxPool2d)) or is_view(node) or calls(node, shift_halves):
        return torch.tensor(1.0)
    if calls(node, F.batch_norm):
        gamma = node.args[3]
        return torch.tensor(1.0) if gamma is None else constant(gm, gamma).sign()
    return None


def constant(gm: fx.GraphModule, node: object) -> torch.Tensor:
    """The tensor that a `get_attr` node reads."""
    assert isinstance(node, fx.Node) and node.op == "get_attr"
    value: torch.Tensor = operator.attrgetter(str(node.target))(gm)
    return value.detach()
