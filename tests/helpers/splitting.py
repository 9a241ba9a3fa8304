"""One pass of `split` at a time: its text before and after, its report, and the function unchanged."""

import copy

import torch
from torch import nn

from bnnfx.graph.pass_runner import run_passes
from bnnfx.graph.record import record_of
from bnnfx.pipelines import SPLIT
from helpers import ternary
from helpers.graphs import Ran, text

SIZE = (3, 8, 6)


def run_split_pass(kind, model: nn.Module) -> Ran:
    """Run the passes of `split` in front of `kind`, then `kind` alone; each keeps what the graph computes."""
    gm = copy.deepcopy(ternary.trainable(model))
    record = record_of(gm).continued()  # type: ignore[union-attr]
    x = torch.randn(2, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    run_passes(gm, SPLIT[: SPLIT.index(kind)], None, record)
    before, expected = text(gm), gm(x)
    run_passes(gm, (kind,), None, record)
    expected, given = (y if isinstance(y, tuple) else (y,) for y in (expected, gm(x)))
    for wanted, y in zip(expected, given, strict=True):
        assert wanted.std() > 0
        assert float((y - wanted).detach().abs().max()) <= 1e-12 * max(1.0, float(wanted.detach().abs().max()))
    return Ran(before, text(gm), record.reports[-1], gm, None)  # type: ignore[arg-type]
