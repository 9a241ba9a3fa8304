"""Multiply-accumulates of a call, for the whole batch, from the shapes of its tensors and of its result."""

import math
from collections.abc import Sequence
from typing import Any

from bnnfx.graph.operators.facts import Shape


def layer_macs(module: Any, inputs: Sequence[Shape], output: Shape) -> int:
    """Every filter once per position of the result."""
    width = module.out_channels if hasattr(module, "out_channels") else module.out_features
    return math.prod(output) // int(width) * int(module.weight.numel())


def transposed_macs(module: Any, inputs: Sequence[Shape], output: Shape) -> int:
    """Every weight of a channel once per position of the input."""
    return math.prod(inputs[0]) // int(module.in_channels) * int(module.weight.numel())


def bilinear_macs(module: Any, inputs: Sequence[Shape], output: Shape) -> int:
    """`x1^T W x2`: the weight with one input, and the result of that with the other."""
    rows = math.prod(output) // int(module.out_features)
    return rows * (int(module.weight.numel()) + int(module.out_features) * int(module.in2_features))


def recurrent_macs(module: Any, inputs: Sequence[Shape], output: Shape) -> int:
    """Every weight matrix once per step of each sequence."""
    steps = math.prod(inputs[0][:-1])
    return steps * sum(int(weight.numel()) for name, weight in module.named_parameters() if name.startswith("weight"))


def attention_macs(module: Any, inputs: Sequence[Shape], output: Shape) -> int:
    """The four projections, scores of every query with every key, and their products with the values."""
    query, key, value = inputs[:3]
    width, batched = int(module.embed_dim), len(query) == 3
    axis = 1 if batched and module.batch_first else 0
    batch = query[1 - axis] if batched else 1
    queries, keys = query[axis], key[axis]
    attended = keys + (module.bias_k is not None) + int(module.add_zero_attn)
    projections = queries * width * 2 * width + keys * width * (key[-1] + value[-1])
    return batch * (projections + 2 * queries * attended * width)
