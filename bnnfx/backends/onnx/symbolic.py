"""Packed operators as the nodes that torch's exporter writes through unchanged."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from bnnfx.graph.dataflow import packed_op
from bnnfx.ops import BY_ONNX_NAME, OPSET_VERSION, PackedOp
from bnnfx.ops.packed_op import ONNX_DOMAIN

NAMES_KEY = "bnnfx.names"
"""Node metadata: the name of the packed graph's node, then those of its results, as JSON; ONNX takes them over."""


def to_onnx(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a packed operator as its ONNX node spells them: pads are top, left, bottom, right."""
    return attributes | {"pads": [*attributes["pads"]] * 2} if "pads" in attributes else attributes


def from_onnx(attributes: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `to_onnx`."""
    return attributes | {"pads": attributes["pads"][:2]} if "pads" in attributes else attributes


def emit(
    onnx_name: str, names: tuple[str, ...], tensors: tuple[Tensor, ...], attributes: dict[str, Any]
) -> Tensor | Sequence[Tensor]:
    """One ONNX node of our domain, with the element types and shapes that the operator's shape function gives.

    Args:
        onnx_name: the operator.
        names: of the node, then of its results.
        tensors: its inputs.
        attributes: its attributes, as torch spells them.
    """
    like = BY_ONNX_NAME[onnx_name].shape(*tensors, *attributes.values())
    results = (like,) if isinstance(like, Tensor) else like
    outputs = torch.onnx.ops.symbolic_multi_out(
        f"{ONNX_DOMAIN}::{onnx_name}",
        tensors,
        to_onnx(attributes),
        dtypes=[result.dtype for result in results],
        shapes=[result.shape for result in results],
        version=OPSET_VERSION,
        metadata_props={NAMES_KEY: json.dumps(names)},
    )
    return outputs[0] if isinstance(like, Tensor) else outputs


def replace_packed_ops(gm: fx.GraphModule) -> None:
    """Let every packed operator of `gm` be called through `emit`, in place."""
    for node in gm.graph.nodes:
        op = packed_op(node)
        if op is not None:
            tensors, values = node.args[: op.inputs], node.args[op.inputs :]
            names = (node.name, *result_names(node, op))
            node.args = (op.onnx_name, names, tuple(tensors), dict(zip(op.attributes, values, strict=True)))
            node.target = emit
    gm.recompile()


def result_names(node: fx.Node, op: PackedOp) -> tuple[str, ...]:
    """The names of an operator's results: its own, or those of the nodes that pick them."""
    if len(op.outputs) == 1:
        return (node.name,)
    picked = {user.args[1]: user.name for user in node.users}
    return tuple(picked.get(index, f"{node.name}_{output}") for index, output in enumerate(op.outputs))
