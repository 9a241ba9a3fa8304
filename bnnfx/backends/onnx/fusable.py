"""Standard operators in an order that ONNX Runtime fuses."""

import math

import numpy as np
import onnx_ir as ir


def scale_last(model: ir.Model) -> None:
    """`x * (2^k * y)` becomes `(x * y) * 2^k`, in place, where nothing else reads the product in brackets.

    That is the order in which ONNX Runtime looks for `Gelu`, which torch's exporter spells `x * (0.5 * (1 + erf(...)))`
    below opset 20. Scaling by a power of two is exact, wherever it stands, but for what lies below the smallest normal
    number or above the largest.
    """
    for node in list(model.graph.all_nodes()):
        if not _multiplies(node):
            continue
        for place, value in enumerate(node.inputs):
            scaling = None if value is None else value.producer()
            if value is None or scaling is None or not _multiplies(scaling) or scaling.graph is not node.graph:
                continue
            if len(value.uses()) != 1 or value.is_graph_output():
                continue
            factor = next((at for at, operand in enumerate(scaling.inputs) if _is_power_of_two(operand)), None)
            if factor is not None:
                _swap(node, place, scaling, factor)
                break


def _swap(node: ir.Node, place: int, scaling: ir.Node, factor: int) -> None:
    """Let `scaling` multiply what `node` does, without the factor, and `node` the result by it."""
    other, scaled, by = node.inputs[1 - place], scaling.inputs[1 - factor], scaling.inputs[factor]
    (product,) = scaling.outputs
    product.shape = node.outputs[0].shape
    scaling.replace_input_with(1 - factor, scaled)
    scaling.replace_input_with(factor, other)
    node.replace_input_with(1 - place, by)
    assert node.graph is not None
    node.graph.remove(scaling)  # what it reads now may be computed behind it
    node.graph.insert_before(node, scaling)


def _multiplies(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "Mul")


def _is_power_of_two(value: ir.Value | None) -> bool:
    constant = None if value is None or value.const_value is None else value.const_value.numpy()
    if constant is None or constant.ndim or not np.issubdtype(constant.dtype, np.floating):
        return False
    return bool(np.isfinite(constant)) and math.frexp(float(constant))[0] == 0.5
