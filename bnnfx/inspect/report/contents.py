"""The data of the page, as plain values that JSON keeps."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from bnnfx.analysis import FlipHistory
from bnnfx.graph.record import Record
from bnnfx.graph.stage import Stage
from bnnfx.inspect.report.layer_rows import layer_rows
from bnnfx.inspect.report.shown import Model, Owners


def contents(models: Sequence[Model], flips: FlipHistory | None, bench: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything that the page shows besides the pictures."""
    told = [(model, explanation) for model in models if (explanation := model.explanation()) is not None]
    measured = [(model, error) for model in models if (error := model.quantization_error()) is not None]
    owners = Owners(models, [layer.name for _, explanation in told for layer in explanation.layers])
    counted = {model.stage: (costs, owners.layers(model)) for model in models if (costs := model.summary()) is not None}
    packed = next((owners.layers(model) for model in models if model.stage == Stage.PACKED.value), {})
    rows, totals, notes = layer_rows(
        counted,
        told[-1][1] if told else None,
        measured[-1][1] if measured else None,
        flips,
        _milliseconds(bench, owners.modules | packed),
    )
    last = [
        (model, explanation)
        for index, (model, explanation) in enumerate(told)
        if not any(_continues(model.record, other.record) for other, _ in told[index + 1 :])
    ]
    return {
        "pictures": [_picture(model, owners) for model in models],
        "layers": rows,
        "totals": totals,
        "notes": notes,
        "weights": [{"title": model.view.title, **error.to_dict()} for model, error in measured],
        "flips": _flips(flips),
        "passes": [
            {"title": model.view.title, "passes": explanation.to_dict()["passes"]} for model, explanation in last
        ],
        "bench": None if bench is None else _bench(bench),
    }


def _continues(record: Record | None, other: Record | None) -> bool:
    """Whether the log of `other` begins with that of `record`."""
    if record is None or other is None or (record.scheme, record.options) != (other.scheme, other.options):
        return False
    return other.reports[: len(record.reports)] == record.reports


def _picture(model: Model, owners: Owners) -> dict[str, Any]:
    nodes = [
        {
            "name": node.name,
            "lines": list(node.lines),
            "block": node.block,
            "details": dict(node.details),
            "keys": owners.keys(node),
        }
        for node in model.view.nodes
    ]
    edges = [
        {"source": edge.source, "target": edge.target, "label": edge.label, "bytes": edge.bytes}
        for edge in model.view.edges
    ]
    return {"title": model.view.title, "prefix": model.prefix, "nodes": nodes, "edges": edges}


def _flips(history: FlipHistory | None) -> dict[str, Any] | None:
    """By layer, one figure per record; None where a record lacks the layer."""
    if history is None or not history.records:
        return None
    names = dict.fromkeys(name for record in history.records for name in record.layers)
    shares = {
        name: [record.layers[name].step if name in record.layers else None for record in history.records]
        for name in names
    }
    return {
        "updates": [record.update for record in history.records],
        "layers": {name: {"step": steps} for name, steps in shares.items()},
    }


def _bench(bench: Mapping[str, Any]) -> dict[str, Any]:
    machine = bench["machine"]
    return {
        "machine": f"{machine['processor']}, {machine['system']}, kernels for {machine['isa']}",
        "notes": bench["notes"],
        "models": [
            {key: table[key] for key in ("threads", "batch", "rounds", "reference")}
            | {"rows": [{key: value for key, value in row.items() if key != "samples"} for row in table["rows"]]}
            for table in bench["models"]
        ],
    }


def _milliseconds(bench: Mapping[str, Any] | None, layers: Mapping[str, str]) -> dict[str, float]:
    """What each layer takes per run, by the first table that has the nodes of our file."""
    tables = [table for table in (bench or {}).get("models", ()) if table["nodes"]]
    times: dict[str, float] = defaultdict(float)
    for node in tables[0]["nodes"] if tables else ():
        times[layers.get(node["name"], node["name"])] += node["milliseconds"]["median"]
    return dict(times)
