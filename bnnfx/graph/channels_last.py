"""The two layouts of a float map in a packed graph, and the permutations between them."""

import torch
from torch import fx

from bnnfx.graph.dataflow import calls

TO_NHWC = [0, 2, 3, 1]
TO_NCHW = [0, 3, 1, 2]


def permute(node: fx.Node, order: list[int]) -> fx.Node:
    """A node that permutes the axes of `node`, at the insert point."""
    return node.graph.call_function(torch.permute, (node, order))


def permutes(node: object, order: list[int]) -> bool:
    """Whether a node permutes axes in this order."""
    return isinstance(node, fx.Node) and calls(node, torch.permute) and node.args[1] == order
