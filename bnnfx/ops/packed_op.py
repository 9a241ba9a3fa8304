"""What a packed operator is: a torch operator, and the ONNX node that it becomes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bnnfx.private_interfaces import overload_of

ONNX_DOMAIN = "ai.bnnfx"
OPSET_VERSION = 1
"""Version of the operator definitions, in torch and in ONNX; a change of any operator's meaning raises it."""


@dataclass(frozen=True)
class PackedOp:
    """One operator.

    Attributes:
        target: the torch operator, `torch.ops.bnnfx.<name>.default`.
        shape: the shape function: empty results of the right shape and type.
        onnx_name: op type in domain `ai.bnnfx`; None for an operator that no lowered graph holds.
        tensors: the names of its leading arguments, which are tensors; they are the inputs of the ONNX node, in order.
        attributes: the names of the remaining arguments; they are the attributes of the ONNX node, in order.
        outputs: what it gives, in order: "float" for a float map, "bits" for packed bits.
        bits_in: whether its first input is packed bits (otherwise float).
        compared: from the same arguments, where its bits come from a float comparison: the value minus the threshold,
            `float[N, H, W, C]`.
    """

    target: Callable[..., Any]
    shape: Callable[..., Any]
    onnx_name: str | None
    tensors: tuple[str, ...]
    attributes: tuple[str, ...]
    outputs: tuple[str, ...]
    bits_in: bool
    compared: Callable[..., torch.Tensor] | None = None

    @property
    def inputs(self) -> int:
        """How many of its leading arguments are tensors."""
        return len(self.tensors)


def define(
    name: str,
    onnx_name: str | None,
    reference: Callable[..., Any],
    shape: Callable[..., Any],
    *,
    outputs: tuple[str, ...],
    bits_in: bool,
    compared: Callable[..., torch.Tensor] | None = None,
    schema: str | None = None,
) -> PackedOp:
    """Register `torch.ops.bnnfx.<name>` with its numpy reference and shape function.

    The signature of the reference is the schema, unless one is given.
    """
    op = torch.library.custom_op(f"bnnfx::{name}", reference, mutates_args=(), schema=schema)
    op.register_fake(shape)
    target, tensors, attributes = overload_of(op)
    return PackedOp(target, shape, onnx_name, tensors, attributes, outputs, bits_in, compared)
