"""Which values of an exported file hold bits: metadata that `verify` and other readers of the file need."""

import json
import operator
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx
import torch
from torch import fx

from bnnfx.graph.dataflow import is_inner, packed_channels, packed_result
from bnnfx.graph.record import record_of

_KEY = "bnnfx.packed_maps"
_COMPARISON = "GreaterOrEqual"  # what the bodies of our operators make bits with


@dataclass(frozen=True)
class PackedMap:
    """One value that holds bits.

    Attributes:
        name: of the value, which is that of the binarizer whose bits it holds.
        channels: how many bits a row has; its bytes do not say.
        integers: whether the bits came from integers alone.
        compared: the float map and the threshold that were compared, where the file computes both as values of their
            own; it does where our operators are written out as standard ones.
        channels_last: whether that map is `[N, H, W, C]`, not `[N, C, H, W]`.
        inner: whether no binarizer has these bits, as those that are pooled before they are used.
        also: the other binarizers whose bits it holds.
    """

    name: str
    channels: int
    integers: bool
    compared: tuple[str, ...] = ()
    channels_last: bool = False
    inner: bool = False
    also: tuple[str, ...] = ()


def packed_maps_of(model: onnx.ModelProto, gm: fx.GraphModule) -> list[PackedMap]:
    """The packed maps of `gm`, whose nodes `model` holds under their names.

    The exporter merges nodes that compute the same from the same; the name of one of them is gone then, and the other
    stands for it.
    """
    record = record_of(gm)
    names = {name for node in model.graph.node for name in node.output}
    numbers = _numbers(gm)
    nodes = [node for node in gm.graph.nodes if (made := packed_result(node)) is not None and made.output == "bits"]
    holders = {numbers[node]: node.name for node in nodes if node.name in names}
    stand = {node.name: holders[numbers[node]] for node in nodes if numbers[node] in holders}
    for name, other in ({} if record is None else record.same_bits).items():
        if other in stand:
            stand[name] = stand[other]
    maps = []
    for node in nodes:
        source = packed_result(node)
        assert source is not None
        if node.name not in names:
            continue
        maps.append(
            PackedMap(
                node.name,
                packed_channels(node),
                integers=source.op.compared is None,
                channels_last=source.op.signature.channels_last,
                inner=is_inner(node),
                also=tuple(name for name, holder in stand.items() if holder == node.name and name not in names),
            )
        )
    return maps


def _numbers(gm: fx.GraphModule) -> dict[fx.Node, int]:
    """One number for each value of a graph: of two that are computed alike from the same, the same one."""
    numbers: dict[fx.Node, int] = {}
    known: dict[object, int] = {}
    for node in gm.graph.nodes:
        key: object = (node.op, str(node.target))
        if node.op == "get_attr" and isinstance(value := operator.attrgetter(str(node.target))(gm), torch.Tensor):
            key = (str(value.dtype), tuple(value.shape), value.detach().cpu().numpy().tobytes())
        elif node.op not in ("placeholder", "output"):
            key = (node.op, node.target, repr(fx.node.map_arg((node.args, dict(node.kwargs)), numbers.__getitem__)))
        numbers[node] = known.setdefault(key, len(known))
    return numbers


def write_packed_maps(model: onnx.ModelProto, maps: list[PackedMap]) -> None:
    """Store `maps` in the metadata of `model`, with what is compared where `model` spells that out."""
    producers = {name: node for node in model.graph.node for name in node.output}
    described = [
        packed if packed.integers else replace(packed, compared=_compared(packed.name, producers)) for packed in maps
    ]
    model.metadata_props.add(key=_KEY, value=json.dumps([asdict(packed) for packed in described]))


def _compared(name: str, producers: dict[str, onnx.NodeProto]) -> tuple[str, ...]:
    """The operands of the comparison that a packed map was made with; nothing where a node of ours holds it."""
    level = [name]
    while level:
        nodes = [producers[value] for value in level if value in producers]
        for node in nodes:
            if node.domain != "":
                return ()
            if node.op_type == _COMPARISON:
                return tuple(node.input)
        level = [value for node in nodes for value in node.input]
    return ()


def packed_maps(model: onnx.ModelProto) -> list[PackedMap]:
    """The packed maps of a file that `export_onnx` wrote."""
    text = next((entry.value for entry in model.metadata_props if entry.key == _KEY), "[]")
    return [_read(fields) for fields in json.loads(text)]


def _read(fields: dict[str, Any]) -> PackedMap:
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return PackedMap(**(fields | lists))
