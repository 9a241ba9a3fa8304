"""Where the time goes inside a model: the engines' own profiles, and how much work a binary convolution is."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import onnx

from bnnfx.bench.engines import Array, Engine, onnxruntime_session, openvino_compile
from bnnfx.bench.timing import Spread, timed_only
from bnnfx.ops.packed_op import ONNX_DOMAIN

_OURS = "BinaryConv2d"  # how the op types of our convolutions begin


@dataclass
class NodeTimes:
    """One node as it was run.

    Attributes:
        name: of the node.
        op_type: its operator, after the engine's own rewriting.
        implementation: what the engine says it ran; empty where it does not.
        input_shape: of its first input; empty where the engine does not say.
        seconds: one figure per run.
    """

    name: str
    op_type: str
    implementation: str = ""
    input_shape: tuple[int, ...] = ()
    seconds: list[float] = field(default_factory=list)

    @property
    def is_convolution(self) -> bool:
        """Whether it is one, whatever the engine calls it."""
        return "Conv" in self.op_type

    @property
    def is_product(self) -> bool:
        """Whether it is a convolution or a matrix product, which is where a quantized model saves its time."""
        return self.is_convolution or any(word in self.op_type for word in ("Gemm", "MatMul", "FullyConnected"))

    @property
    def on_integers(self) -> bool:
        """Whether it is one of ONNX Runtime's products of integers."""
        return self.op_type.startswith(("QLinear", "QGemm")) or "Integer" in self.op_type


class Profile(Protocol):
    """A model that is run under its engine's profiler."""

    def __call__(self) -> object:
        """Run once."""

    def nodes(self) -> list[NodeTimes]:
        """End it: the nodes in order of execution, with all their runs."""


class OnnxRuntimeProfile:
    """A session of ONNX Runtime that profiles; it resolves microseconds."""

    def __init__(self, engine: Engine, threads: int, feeds: Sequence[Array]) -> None:
        self._folder = TemporaryDirectory()
        self._session = onnxruntime_session(engine, threads, str(Path(self._folder.name) / "profile"))
        self._feeds = {x.name: feed for x, feed in zip(self._session.get_inputs(), feeds, strict=True)}

    def __call__(self) -> object:
        """Run once."""
        return self._session.run(None, self._feeds)

    def nodes(self) -> list[NodeTimes]:
        """The events of each node's kernel."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        self._folder.cleanup()
        found: dict[str, NodeTimes] = {}
        for event in events:
            name = str(event["name"])
            if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
                continue
            arguments = event["args"]
            shapes = [shape for entry in arguments["input_type_shape"] for shape in entry.values()]
            node = found.setdefault(
                arguments["node_index"],  # the name need not be there
                NodeTimes(
                    name.removesuffix("_kernel_time"), arguments["op_name"], "", tuple(shapes[0]) if shapes else ()
                ),
            )
            node.seconds.append(event["dur"] * 1e-6)
        return list(found.values())


class OpenVinoProfile:
    """A request of OpenVINO that counts; it resolves microseconds."""

    def __init__(self, model: Any, threads: int, precision: str | None, feeds: Sequence[Array]) -> None:
        self._request = openvino_compile(model, threads, precision, profile=True).create_infer_request()
        self._feeds = list(feeds)
        self._found: dict[str, NodeTimes] = {}
        self._runs = 0

    def __call__(self) -> object:
        """Run once and read the counters; a node that was not executed this time took no time."""
        self._request.infer(self._feeds, share_inputs=True, share_outputs=True)
        for node in self._found.values():
            node.seconds.append(0.0)
        for info in self._request.get_profiling_info():
            if "EXECUTED" in str(info.status):
                fresh = NodeTimes(info.node_name, info.node_type, info.exec_type, seconds=[0.0] * (self._runs + 1))
                node = self._found.setdefault(info.node_name, fresh)
                node.seconds[-1] += info.real_time.total_seconds()
        self._runs += 1
        return None

    def nodes(self) -> list[NodeTimes]:
        """Every node that did something."""
        return list(self._found.values())


def timed_runs(nodes: Iterable[NodeTimes]) -> list[NodeTimes]:
    """The nodes with those of their runs that `alternate` timed."""
    return [replace(node, seconds=timed_only(node.seconds)) for node in nodes]


def binary_macs(model: onnx.ModelProto) -> Callable[[NodeTimes], int | None]:
    """A function that gives the binary multiply-accumulates of one run of a node; None if it is no binary convolution.

    Taps that fall on the padding count, as they do in the usual figures for a network.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    ours = {
        node.name: node
        for node in model.graph.node
        if node.domain == ONNX_DOMAIN and node.op_type.startswith(_OURS) and node.input[1] in weights
    }

    def macs(run: NodeTimes) -> int | None:
        node = ours.get(run.name)
        return None if node is None else convolution_macs(node, weights[node.input[1]], run.input_shape)

    return macs


def convolution_macs(node: onnx.NodeProto, weight: tuple[int, ...], x: tuple[int, ...]) -> int:
    """Multiply-accumulates of a node with weight `uint8[O, kh, kw, bytes]` on packed bits `uint8[N, H, W, bytes]`."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    outputs, *kernel, _ = weight
    images, *size, _ = x
    total = images * outputs * kernel[0] * kernel[1] * (attributes["channels"] // attributes["groups"])
    pads = attributes["pads"]  # top, left, bottom, right
    for axis in range(2):
        padded = size[axis] + pads[axis] + pads[axis + 2]
        reach = attributes["dilations"][axis] * (kernel[axis] - 1) + 1
        total *= (padded - reach) // attributes["strides"][axis] + 1
    return int(total)


@dataclass(frozen=True)
class NodeRow:
    """One of our nodes in the table.

    Attributes:
        name: of the node.
        op_type: its operator.
        milliseconds: of a run, all images of the batch.
        share: of the time of all nodes, from 0 to 1.
        macs: binary multiply-accumulates, where it is a binary convolution.
        of_ceiling: their rate as a share of what the processor can do, where known.
    """

    name: str
    op_type: str
    milliseconds: Spread
    share: float
    macs: int | None
    of_ceiling: float | None


@dataclass(frozen=True)
class GroupRow:
    """All other nodes of one operator: how many they are, and the sum of their medians."""

    op_type: str
    count: int
    milliseconds: float
    share: float


def tabulate(
    nodes: Sequence[NodeTimes], model: onnx.ModelProto, ceiling: float | None
) -> tuple[list[NodeRow], list[GroupRow]]:
    """Our nodes one by one in order of execution, then the others by operator, slowest first.

    Args:
        nodes: the profile.
        model: the file that was profiled.
        ceiling: binary multiply-accumulates per second of all threads together, if known.
    """
    ours = {node.name for node in model.graph.node if node.domain == ONNX_DOMAIN}
    macs = binary_macs(model)
    spreads = [Spread.of([1e3 * second for second in node.seconds]) for node in nodes]
    total = sum(spread.median for spread in spreads)
    rows, groups = [], defaultdict(list)
    for node, spread in zip(nodes, spreads, strict=True):
        if node.name not in ours:
            groups[node.op_type].append(spread.median)
            continue
        work = macs(node)
        share = work / (spread.median * 1e-3) / ceiling if work and ceiling and spread.median else None
        rows.append(NodeRow(node.name, node.op_type, spread, spread.median / total, work, share))
    others = [GroupRow(name, len(times), sum(times), sum(times) / total) for name, times in groups.items()]
    return rows, sorted(others, key=lambda row: -row.milliseconds)
