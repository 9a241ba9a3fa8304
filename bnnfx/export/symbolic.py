"""Packed operators as the nodes that torch's exporter writes through unchanged."""

from typing import Any

import torch
from torch import Tensor, fx

from bnnfx.core.dataflow import packed_op
from bnnfx.ops import OPSET_VERSION, PACKED_OPS
from bnnfx.ops.registry import ONNX_DOMAIN

NAME_KEY = "bnnfx.node"
"""Node metadata: the name of the packed graph's node, which becomes the name of the ONNX node and of its result."""

_BY_ONNX_NAME = {op.onnx_name: op for op in PACKED_OPS}


def to_onnx(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a packed operator as its ONNX node spells them: pads are top, left, bottom, right."""
    return attributes | {"pads": [*attributes["pads"]] * 2} if "pads" in attributes else attributes


def from_onnx(attributes: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `to_onnx`."""
    return attributes | {"pads": attributes["pads"][:2]} if "pads" in attributes else attributes


def emit(onnx_name: str, node_name: str, tensors: tuple[Tensor, ...], attributes: dict[str, Any]) -> Tensor:
    """One ONNX node of our domain, with the element type and shape that the operator's shape function gives."""
    like = _BY_ONNX_NAME[onnx_name].shape(*tensors, *attributes.values())
    return torch.onnx.ops.symbolic(
        f"{ONNX_DOMAIN}::{onnx_name}",
        tensors,
        to_onnx(attributes),
        dtype=like.dtype,
        shape=like.shape,
        version=OPSET_VERSION,
        metadata_props={NAME_KEY: node_name},
    )


def replace_packed_ops(gm: fx.GraphModule) -> None:
    """Let every packed operator of `gm` be called through `emit`, in place."""
    for node in gm.graph.nodes:
        op = packed_op(node)
        if op is not None:
            tensors, values = node.args[: op.inputs], node.args[op.inputs :]
            node.args = (op.onnx_name, node.name, tuple(tensors), dict(zip(op.attributes, values, strict=True)))
            node.target = emit
    gm.recompile()
