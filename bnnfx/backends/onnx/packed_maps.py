"""Which values of an exported file hold bits: metadata that `verify` and other readers of the file need."""

import json
from dataclasses import asdict, dataclass, replace

import onnx
from torch import fx

from bnnfx.graph.dataflow import packed_op, packed_result

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
    """

    name: str
    channels: int
    integers: bool
    compared: tuple[str, ...] = ()
    channels_last: bool = False


def packed_channels(node: fx.Node) -> int:
    """How many channels a packed map has, which only its readers know."""
    user = next(iter(node.users))
    op = packed_op(user)
    assert op is not None
    if "channels" not in op.attributes:  # it works on bits as they come, and gives as many
        return packed_channels(user)
    return int(user.args[op.inputs + op.attributes.index("channels")])  # type: ignore[arg-type]


def packed_maps_of(model: onnx.ModelProto, gm: fx.GraphModule) -> list[PackedMap]:
    """The packed maps of `gm`, whose nodes `model` holds under their names.

    The exporter merges nodes that compute the same from the same; the name of one of them is gone then.
    """
    names = {name for node in model.graph.node for name in node.output}
    maps = []
    for node in gm.graph.nodes:
        source = packed_result(node)
        if source is None or source.output != "bits" or node.name not in names:
            continue
        integers = source.op.compared is None
        channels_last = source.op.signature.channels_last
        maps.append(PackedMap(node.name, packed_channels(node), integers, channels_last=channels_last))
    return maps


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
    return [PackedMap(**(m | {"compared": tuple(m["compared"])})) for m in json.loads(text)]
