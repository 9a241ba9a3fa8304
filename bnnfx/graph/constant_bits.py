"""Bits that are the same at every position of every sample: they say nothing.

What a binarizer gives is counted while data goes through, by channel; `convert` does so with its example inputs, and
`calibrate` with its batches. The last count stands in the record, where `explain` finds it.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from bnnfx.graph.dataflow import channel_axis, module_of
from bnnfx.graph.record import PassReport, Record, Remark
from bnnfx.graph.shapes import copies
from bnnfx.graph.value_flow import follow_values
from bnnfx.nn import ActivationBinarizer
from bnnfx.nn.observer import ChannelStatistics

REPORT = "CountBits"
"""Name of the report of the last count."""


@contextmanager
def observing(gm: fx.GraphModule) -> Iterator[dict[str, ChannelStatistics]]:
    """Let every binarizer count what it sees inside the `with` statement; by qualified name, in the graph's order."""
    binarizers: dict[str, ActivationBinarizer] = {}
    seen: dict[str, ChannelStatistics] = {}
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if isinstance(module, ActivationBinarizer):
            binarizers[str(node.target)] = module
            seen[str(node.target)] = ChannelStatistics(module.levels, channel_axis(gm, node))
    for name, binarizer in binarizers.items():
        binarizer.statistics = seen[name]
    try:
        yield seen
    finally:
        for binarizer in binarizers.values():
            binarizer.statistics = None


def count_bits(gm: fx.GraphModule, example_inputs: tuple[Any, ...]) -> dict[str, ChannelStatistics]:
    """What the binarizers of a graph see in evaluation; where a channel has one bit only, what they see in training.

    A batch norm that was only just inserted has the statistics of no data: it normalizes in training alone. The graph
    is not changed.
    """
    copied = copy.deepcopy(gm).eval()
    with torch.no_grad(), observing(copied) as seen:
        copied(*copies(example_inputs))
    if not any(bool(statistics.constant.any()) for statistics in seen.values() if statistics.count):
        return seen
    with torch.no_grad(), observing(copied.train()) as seen_in_training:
        try:
            copied(*copies(example_inputs))
        except Exception:  # one value per channel, say: then evaluation is all that there is
            return seen
    return {
        name: seen_in_training[name] if counted.count and bool(counted.constant.any()) else counted
        for name, counted in seen.items()
    }


def note_constant_bits(gm: fx.GraphModule, record: Record, seen: Mapping[str, ChannelStatistics]) -> list[Remark]:
    """Put into the record which channels were constant, in place of an earlier count.

    Returns:
        The remarks on binarizers all of whose bits were one and the same.
    """
    report, dead = PassReport(REPORT), []
    values = follow_values(gm)
    for node in gm.graph.nodes:
        counted = seen.get(str(node.target)) if node.op == "call_module" else None
        if counted is None or not counted.count:
            continue
        constant, channels = int(counted.constant.sum()), len(counted.constant)
        if not constant:
            continue
        source = node.all_input_nodes[0]
        culprit = values[source].signs.culprit
        because = f"'{source.name}'" if culprit is source else f"'{source.name}', after '{culprit.name}'"
        readers = tuple(str(user.target) for user in node.users if user.op == "call_module")
        which = "all bits" if _is_constant(counted) else f"the bits of {constant} of {channels} channels"
        remark = Remark(
            readers[0] if readers else node.name,
            f"{which} that it reads were the same everywhere on the data seen; '{node.name}' makes them of {because}",
            f"put a batch norm in front of '{node.name}', or train and calibrate: the count is of these weights",
            readers,
        )
        report.notes.append(remark)
        if _is_constant(counted):
            dead.append(remark)
    record.reports[:] = [other for other in record.reports if other.name != REPORT] + [report]
    return dead


def _is_constant(counted: ChannelStatistics) -> bool:
    """Whether every channel was given one and the same level."""
    return bool((counted.occupied.sum(dim=-1) == counted.occupied.sum()).any()) if counted.count else False
