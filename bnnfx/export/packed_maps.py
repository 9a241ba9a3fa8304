"""Which values of an exported file hold packed bits: kept in its metadata, as its standard form cannot tell."""

import json
from dataclasses import asdict, dataclass

import onnx
import torch
from torch import fx

from bnnfx.core.dataflow import packed_op

_KEY = "bnnfx.packed_maps"


@dataclass(frozen=True)
class PackedMap:
    """One value that holds bits.

    Attributes:
        name: of the value, which is that of the binarizer whose bits it holds.
        channels: how many bits a row has; its bytes do not say.
        compared: the float map and the threshold that were compared, or nothing where the bits came from integers.
    """

    name: str
    channels: int
    compared: tuple[str, ...] = ()


def packed_channels(node: fx.Node) -> int:
    """How many channels a packed map has, which only its readers know."""
    user = next(iter(node.users))
    target = torch.ops.bnnfx.max_pool2d.default
    return packed_channels(user) if user.target is target else int(user.args[4])  # type: ignore[arg-type]


def write_packed_maps(model: onnx.ModelProto, gm: fx.GraphModule) -> None:
    """Store the packed maps of `gm`, whose nodes `model` holds under their names.

    The exporter merges nodes that compute the same from the same; the name of one of them is gone then.
    """
    by_name = {node.name: node for node in model.graph.node}
    maps = []
    for source in gm.graph.nodes:
        op, node = packed_op(source), by_name.get(source.name)
        if op is not None and op.bits_out and node is not None:
            compared = () if op.bits_in else tuple(node.input[:2])
            maps.append(PackedMap(node.output[0], packed_channels(source), compared))
    model.metadata_props.add(key=_KEY, value=json.dumps([asdict(packed) for packed in maps]))


def packed_maps(model: onnx.ModelProto) -> list[PackedMap]:
    """The packed maps of a file that `export_onnx` wrote."""
    text = next((entry.value for entry in model.metadata_props if entry.key == _KEY), "[]")
    return [PackedMap(m["name"], m["channels"], tuple(m["compared"])) for m in json.loads(text)]
