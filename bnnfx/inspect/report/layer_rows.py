"""The rows of the table of layers: what became of each, what it costs, how well bits stand for its weights."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from bnnfx.analysis import FlipHistory, QuantizationError
from bnnfx.inspect.costs import BATCH_NORM_NUMBERS, Cost, LayerCost
from bnnfx.inspect.explain import Explanation, LayerExplanation
from bnnfx.inspect.summary import Summary

Row = dict[str, Any]


def layer_rows(
    counted: Mapping[str, tuple[Summary, Mapping[str, str]]],
    explanation: Explanation | None,
    error: QuantizationError | None,
    flips: FlipHistory | None,
    milliseconds: Mapping[str, float],
) -> tuple[list[Row], Row, list[str]]:
    """One row per convolution and linear layer of the model.

    Args:
        counted: by stage, the costs of a graph, and the layers that its nodes belong to.
        explanation: what became of the layers.
        error: of their weights.
        flips: the log of training.
        milliseconds: by layer.

    Returns:
        Rows with one value per column (None where it is not known), the costs of the whole model, and what has to be
        said about the figures.
    """
    costs = {stage: _by_layer(found, layers) for stage, (found, layers) in counted.items()}
    totals = {stage: found.totals for stage, (found, _) in counted.items()}
    # maps have the user's axes until the graph is packed
    shown = next((stage for stage in ("trainable", "packed", "ONNX", "float") if stage in costs), "")
    before = "float" if "float" in costs and shown != "float" else ""
    packed = next((stage for stage in ("ONNX", "packed") if stage in costs), shown)
    told = {} if explanation is None else {layer.name: layer for layer in explanation.layers}
    names = list(told) or [name for name, layers in costs.get(shown, {}).items() if layers[0].operands is not None]
    last = flips.records[-1].layers if flips is not None and flips.records else {}
    rows = []
    for order, name in enumerate(names):
        found = costs.get(shown, {}).get(name, [])
        row: Row = {"order": order, "name": name, **_became(told.get(name), found)}
        row |= _shapes(costs.get("float", {}).get(name, found) if shown in ("packed", "ONNX") else found)
        row |= _costs(found, costs.get(before, {}).get(name, []), costs.get(packed, {}).get(name, []))
        used = error.layers[name].used if error is not None and name in error.layers else None
        row |= {"cosine": used.cosine if used else None, "angle": used.angle if used else None}
        row["since_start"] = last[name].since_start if name in last else None
        row["step"] = last[name].step if name in last else None
        row["milliseconds"] = milliseconds.get(name)
        rows.append(row)
    whole = {
        "mbit_before": totals[before].mbit if before else None,
        **(_figures(totals[shown]) if shown else {}),
        "packed_bytes": totals[packed].packed_bytes if packed else None,
    }
    return rows, whole, counted[shown][0].notes() if shown else []


def _by_layer(found: Summary, layers: Mapping[str, str]) -> dict[str, list[LayerCost]]:
    """The calls of every layer."""
    rows = defaultdict(list)
    for call in found.layers:
        rows[layers.get(call.name, call.name)].append(call)
    return dict(rows)


def _became(told: LayerExplanation | None, calls: list[LayerCost]) -> Row:
    operands = {str(call.operands) for call in calls if call.operands is not None}
    row = {"kind": calls[0].kind if calls else "", "operands": ", ".join(sorted(operands))}
    if told is None:
        return row | {"became": "", "why": ""}
    became = "float" if not told.binarized else "packed" if told.packed else "binary"
    return row | {"kind": told.kind, "became": became, "why": " ".join(map(str, told.findings))}


def _shapes(calls: list[LayerCost]) -> Row:
    def text(shapes: list[tuple[int, ...]]) -> str:
        return ", ".join(dict.fromkeys("×".join(map(str, shape)) for shape in shapes))

    return {
        "input": text([call.input_shape for call in calls]),
        "output": text([call.output_shape for call in calls]),
    }


def _costs(calls: list[LayerCost], before: list[LayerCost], packed: list[LayerCost]) -> Row:
    row: Row = dict.fromkeys(("parameters", "mbit", "macs", "mbit_before", "packed_bytes"))
    if calls:
        row |= _figures(Cost.sum(call.cost for call in calls))
    if before:
        row["mbit_before"] = Cost.sum(call.cost for call in before).mbit
    if packed:
        row["packed_bytes"] = Cost.sum(call.cost for call in packed).packed_bytes
    return row


def _figures(cost: Cost) -> Row:
    floats = cost.float_parameters + BATCH_NORM_NUMBERS * cost.batch_norm_channels
    parameters = cost.one_bit_parameters + floats
    return {"parameters": parameters, "mbit": cost.mbit, "macs": cost.binary_macs + cost.float_macs}
