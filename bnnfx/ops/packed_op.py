"""What a packed operator is: a row of `bnnfx.ops.signatures`, a torch operator, and the ONNX node that it becomes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnnfx.ops.signatures import ONNX_DOMAIN, OPSET_VERSION, Signature

__all__ = ["BY_ONNX_NAME", "BY_TARGET", "ONNX_DOMAIN", "OPSET_VERSION", "PackedOp", "define"]

_LIBRARY: Any = torch.library.Library("bnnfx", "DEF")  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class PackedOp:
    """One operator.

    Attributes:
        signature: its row of the table.
        target: the torch operator, `torch.ops.bnnfx.<name>.default`.
        shape: the shape function: empty results of the right shape and type.
        compared: from the same arguments, where its bits come from a float comparison: the value minus the threshold,
            `float[N, H, W, C]`.
    """

    signature: Signature
    target: Callable[..., Any]
    shape: Callable[..., Any]
    compared: Callable[..., Tensor] | None = None

    @property
    def onnx_name(self) -> str | None:
        """Op type in domain `ai.bnnfx`; None for an operator that no lowered graph holds."""
        return self.signature.onnx_name

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of its leading arguments, which are tensors: the inputs of the ONNX node, in order."""
        return tuple(tensor.name for tensor in self.signature.inputs)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the remaining arguments: the attributes of the ONNX node, in order."""
        return tuple(self.signature.attributes)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What it gives, in order: "float" for a float map, "bits" for packed bits."""
        return self.signature.outputs

    @property
    def inputs(self) -> int:
        """How many of its leading arguments are tensors."""
        return len(self.signature.inputs)

    @property
    def bits_in(self) -> bool:
        """Whether its first input is packed bits (otherwise float)."""
        return self.signature.inputs[0].type == "uint8"


BY_TARGET: dict[object, PackedOp] = {}
"""All operators that are defined, by what a node of a graph calls."""

BY_ONNX_NAME: dict[str, PackedOp] = {}
"""Those of them that ONNX files hold."""


def define(
    signature: Signature,
    reference: Callable[..., Any],
    shape: Callable[..., Any],
    compared: Callable[..., Tensor] | None = None,
) -> PackedOp:
    """Register `torch.ops.bnnfx.<name>` with its numpy reference and shape function.

    Not with `torch.library.custom_op`, which takes ten times as long and adds what only training needs.

    Raises:
        ValueError: the name is taken.
    """
    if hasattr(torch.ops.bnnfx, signature.name):
        raise ValueError(f"There is a packed operator {signature.name} already; give the new one another name.")

    def without_gradient(*arguments: Any) -> Any:
        return reference(*(a.detach() if isinstance(a, Tensor) else a for a in arguments))

    _LIBRARY.define(signature.name + signature.schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(signature.name, without_gradient, "CompositeExplicitAutograd")
    torch.library.register_fake(f"bnnfx::{signature.name}", shape, lib=_LIBRARY)
    op = PackedOp(signature, getattr(torch.ops.bnnfx, signature.name).default, shape, compared)
    BY_TARGET[op.target] = op
    if op.onnx_name is not None:
        BY_ONNX_NAME[op.onnx_name] = op
    return op
