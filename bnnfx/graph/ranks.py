"""How many axes a value has, where the graph itself or example inputs tell."""

import operator
from collections.abc import Mapping

import torch
from torch import fx, nn

from bnnfx.graph.dataflow import BATCH_NORMS, DROPOUTS, ELEMENTWISE, POOLS, calls, constant, module_of

_MAPS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, *POOLS)
_KEEPING = (
    *(*ELEMENTWISE, *DROPOUTS, *BATCH_NORMS, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Identity),
    *(nn.Sigmoid, nn.Softmax),
)
_ELEMENTWISE = (operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul)


def ranks_of(gm: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size]) -> dict[fx.Node, int]:
    """The number of axes of each value of which it is known; a map of a 2-D layer counts as batched.

    >>> gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()))
    >>> {node.name: rank for node, rank in ranks_of(gm, {}).items()}
    {'_0': 4, '_1': 4}
    """
    ranks: dict[fx.Node, int] = {}
    for node in gm.graph.nodes:
        rank = len(shapes[node]) if node in shapes else _rank(gm, node, ranks)
        if rank is not None:
            ranks[node] = rank
    return ranks


def _rank(gm: fx.GraphModule, node: fx.Node, ranks: Mapping[fx.Node, int]) -> int | None:
    if node.op == "get_attr":
        return constant(gm, node).ndim
    module, known = module_of(gm, node), [ranks[source] for source in node.all_input_nodes if source in ranks]
    if isinstance(module, _MAPS):
        return 4
    if module is not None:
        return known[0] if known and isinstance(module, _KEEPING) else None
    if node.target in (torch.reshape, "view", "reshape", "permute", torch.permute):
        axes = node.args[1:] if len(node.args) != 2 else node.args[1]
        return len(axes) if isinstance(axes, list | tuple) else None
    if not known:
        return None
    if node.target in _ELEMENTWISE:
        return max(known)  # of an operand that is not known, broadcasting makes no less
    if calls(node, torch.cat):
        return known[0]
    if calls(node, torch.flatten):
        arguments = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
        start, end = arguments.get("start_dim", 0), arguments.get("end_dim", -1)
        if isinstance(start, int) and isinstance(end, int):
            return known[0] - (end % known[0] - start % known[0])
    return None
