"""Calibration: run unlabeled batches, re-estimate batch-norm statistics, and record what every binarizer sees."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, fx

from bnnfx.arguments import require_flag, shown
from bnnfx.errors import ExampleInputError, first_line
from bnnfx.graph.constant_bits import note_constant_bits, observing
from bnnfx.graph.record import attach, require_stage
from bnnfx.graph.shapes import as_tensors, require_arguments
from bnnfx.graph.stage import Stage
from bnnfx.nn.observer import ChannelStatistics
from bnnfx.private_interfaces import BatchNorm
from bnnfx.tables import as_text


@dataclass(frozen=True)
class Observations:
    """What each binarizer saw, by its qualified name, in the order of the graph; prints as a table."""

    layers: dict[str, ChannelStatistics]

    def __getitem__(self, name: str) -> ChannelStatistics:
        """The statistics of one binarizer."""
        return self.layers[name]

    def __str__(self) -> str:
        """One row per binarizer: mean and spread, share of +1 (lowest to highest channel) and of each level, zeros.

        A constant channel is one that was given a single level all along: its bits say nothing.
        """
        columns = ("mean", "spread", "share of +1", "occupancy of levels", "exact zeros")
        table = Table("binarizer", "channels", "constant", *columns)
        for name, seen in self.layers.items():
            share = seen.share_positive
            table.add_row(
                name,
                str(len(share)),
                str(int(seen.constant.sum())),
                f"{float(seen.mean.mean()):+.3f}",
                f"{float(seen.spread.mean()):.3f}",
                f"{float(share.min()):.2f} .. {float(share.max()):.2f}",
                ", ".join(
                    f"{level:g}: {float(part):.2f}"
                    for level, part in zip(seen.levels, seen.occupancy.mean(dim=1), strict=True)
                ),
                str(int(seen.zeros.sum())),
            )
        return as_text(table)


def calibrate(gm: fx.GraphModule, batches: Iterable[Any], *, batch_norm: bool = True) -> Observations:
    """Observe a trainable graph on unlabeled batches.

    Args:
        gm: a graph module in stage TRAINABLE; its batch-norm statistics are changed, its training mode is kept.
        batches: each a tensor, or a tuple of the arguments of forward. Gone through twice, so an iterator is stored.
        batch_norm: replace the running statistics of batch norms by the average over these batches.

    Returns:
        Per binarizer and channel: mean, spread, share of +1 and of every other level, exact zeros.

    Raises:
        StageError: `gm` is no trainable graph.
        ValueError: there is no batch, or one without values; or `batches` is something else.
        ExampleInputError: a batch does not fit the model; batch norms have their statistics of before.
    """
    require_flag("batch_norm", batch_norm)
    record = require_stage(gm, Stage.TRAINABLE, "calibrate").continued()
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | np.ndarray | str | bytes | Mapping):
        raise ValueError(f"batches is a list of batches or a loader, such as [x]; got {shown(batches)}.")
    repeatable = list(batches) if isinstance(batches, Iterator) else batches
    modes = {module: module.training for module in gm.modules()}
    gm.eval()
    try:
        if batch_norm:
            with _averaging_batch_norms(gm):
                _run(gm, repeatable)
        with observing(gm) as seen:
            _run(gm, repeatable)
    finally:
        for module, training in modes.items():
            module.training = training
    note_constant_bits(gm, record, seen)
    attach(gm, record)
    return Observations(seen)


@torch.no_grad()
def _run(gm: fx.GraphModule, batches: Iterable[Any]) -> None:
    count = 0
    for batch in batches:
        arguments = as_tensors(batch if isinstance(batch, tuple | list) else (batch,), scalars=True)
        if any(x.is_meta for x in arguments):
            raise ValueError("calibrate looks at values, and a tensor on the device meta has none.")
        if any(not x.numel() for x in arguments):
            raise ValueError(f"calibrate looks at values, and batch {count} has none.")
        require_arguments(gm, arguments)
        try:
            gm(*arguments)
        except Exception as error:
            given = ", ".join(f"{x.dtype} {list(x.shape)} on {x.device}" for x in arguments)
            raise ExampleInputError(f"Batch {count} ({given}) does not fit the model: {first_line(error)}") from error
        count += 1
    if not count:
        raise ValueError("calibrate needs at least one batch; the iterable given holds none.")


@contextmanager
def _averaging_batch_norms(gm: fx.GraphModule) -> Iterator[None]:
    """Reset the running statistics and let them become the plain average of what passes through."""
    norms = [m for m in gm.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    before: list[tuple[Tensor, ...]] = [tuple(b.clone() for b in norm.buffers()) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    try:
        yield
    except BaseException:
        for norm, values in zip(norms, before, strict=True):
            for buffer, value in zip(norm.buffers(), values, strict=True):
                buffer.copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
