"""The benchmark of several models: a row for each."""

from dataclasses import dataclass

from bnnfx.bench.contenders import FP32, INT8, WITH_KERNELS, Field
from bnnfx.bench.model_forms import Files
from bnnfx.bench.timing import Spread
from bnnfx.bench.whole_models import Row, Table

COMPARED = (FP32, INT8, WITH_KERNELS)
"""The contenders that take part, where they can."""


@dataclass(frozen=True)
class ModelRow:
    """One model, at one number of threads and one batch size.

    Attributes:
        source: the model, as it was named.
        threads: of each contender.
        batch: images per run.
        fp32: milliseconds per image of the float model.
        int8: how many times as fast as that the model in int8 is; None where it cannot be made.
        ours: milliseconds per image of our file with kernels.
        ratio: how many times as fast as the float model ours is, taken round by round.
        binary_share: of the multiply-accumulates of layers, those that are binary.
        file_bytes: size of our file.
        float_bytes: size of the float file.
    """

    source: str
    threads: int
    batch: int
    fp32: Spread
    int8: Spread | None
    ours: Spread
    ratio: Spread
    binary_share: float
    file_bytes: int
    float_bytes: int


def narrow(field: Field) -> Field:
    """The contenders of a row."""
    return Field({name: engine for name, engine in field.engines.items() if name in COMPARED}, field.notes)


def row_of(source: str, files: Files, table: Table) -> ModelRow:
    """A row from what was measured of a model."""
    rows: dict[str, Row] = {row.name: row for row in table.rows}
    assert files.ours is not None and files.original is not None and files.binary_share is not None
    return ModelRow(
        source,
        table.threads,
        table.batch,
        rows[FP32].milliseconds,
        rows[INT8].ratio if INT8 in rows else None,
        rows[WITH_KERNELS].milliseconds,
        rows[WITH_KERNELS].ratio,
        files.binary_share,
        files.ours.stat().st_size,
        files.original.stat().st_size,
    )
