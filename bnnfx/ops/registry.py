"""What a packed operator is: a torch operator, and the ONNX node that it becomes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

ONNX_DOMAIN = "ai.bnnfx"
OPSET_VERSION = 1
"""Version of the operator definitions, in torch and in ONNX; a change of any operator's meaning raises it."""


@dataclass(frozen=True)
class PackedOp:
    """One operator.

    Attributes:
        target: the torch operator, `torch.ops.bnnfx.<name>.default`.
        shape: the shape function: an empty result of the right shape and type.
        onnx_name: op type in domain `ai.bnnfx`.
        inputs: how many of its leading arguments are tensors; they are the inputs of the ONNX node, in order.
        attributes: the names of the remaining arguments; they are the attributes of the ONNX node, in order.
        bits_in: whether its first input is packed bits (otherwise float).
        bits_out: whether the result is packed bits (otherwise float).
    """

    target: Callable[..., Any]
    shape: Callable[..., torch.Tensor]
    onnx_name: str
    inputs: int
    attributes: tuple[str, ...]
    bits_in: bool
    bits_out: bool


def define(
    name: str,
    onnx_name: str,
    reference: Callable[..., torch.Tensor],
    shape: Callable[..., torch.Tensor],
    *,
    bits_in: bool,
    bits_out: bool,
) -> PackedOp:
    """Register `torch.ops.bnnfx.<name>` with its numpy reference and shape function; the signature is the schema."""
    op = torch.library.custom_op(f"bnnfx::{name}", reference, mutates_args=())
    op.register_fake(shape)
    arguments = op._opoverload._schema.arguments
    tensors = [a.name for a in arguments if isinstance(a.type, torch.TensorType)]
    attributes = tuple(a.name for a in arguments[len(tensors) :])
    return PackedOp(op._opoverload, shape, onnx_name, len(tensors), attributes, bits_in, bits_out)
