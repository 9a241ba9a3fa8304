"""The record that travels with a graph: its stage, the scheme that made it, and what every pass did and refused.

It survives `deepcopy`, `pickle` and `torch.save`. Besides the signature that a graph was lowered for, it holds
history for people; what a later stage needs of a node is an argument or a buffer of it.
"""

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from bnnfx.errors import Refusal as Refusal
from bnnfx.errors import StageError
from bnnfx.graph.given_models import obstacle
from bnnfx.graph.graph_module import BinaryGraphModule
from bnnfx.nn import ActivationBinarizer, BinaryLayer

if TYPE_CHECKING:
    from bnnfx.graph.stage import Stage

_KEY = "record"


@dataclass(frozen=True)
class Remark:
    """A pass's word on one node or layer: why it was left as it is, or what was noticed there.

    Attributes:
        subject: the layer's qualified name where there is one, else the node's.
        reason: why, or what.
        remedy: the edit that would change it; empty where none is known, or none is needed.
        layers: the layers of the float model that it concerns, by qualified name.
    """

    subject: str
    reason: str
    remedy: str = ""
    layers: tuple[str, ...] = ()


class Role(enum.Enum):
    """What a report says of the layers that it names; `explain` goes by it."""

    DECIDES = "what it refuses stays float"
    BINARIZES = "what it is applied to is binary, but for the weight where it notes that"
    FUSES = "what it refuses or notes leaves a node of its own behind a layer"


@dataclass
class PassReport:
    """What one pass did.

    Attributes:
        name: class name of the pass.
        applied: the subjects that were rewritten.
        refused: the subjects that matched but were left as they are, with the reason.
        notes: what was noticed and needs no rewrite.
        changed: whether graph or modules differ afterwards, as measured by the runner.
        role: see `Role`; None for a pass that says nothing of the kind.
    """

    name: str
    applied: list[str] = field(default_factory=list)
    refused: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)
    changed: bool = False
    role: Role | None = None


@dataclass
class Record:
    """History of a graph.

    Attributes:
        stage: where it is on its way.
        scheme: name of the scheme that binarized it.
        options: the scheme's options, for all layers.
        reports: one per pass, in order.
        inputs: shape and element type of each argument of forward that it was lowered for; axis 0 is the free batch.
        layers: the layers with a weight of the float model and the names of their types, by qualified name, and the
            calls of their functional forms, by the node's name.
        packed: the buffers of a packed graph that hold weight bits, and the layer that each comes from.
        same_bits: binarizers and comparisons of a packed graph whose bits are those of another node, by the names that
            their nodes have in the trainable graph.
    """

    stage: "Stage"
    scheme: str = ""
    options: dict[str, object] = field(default_factory=dict)
    reports: list[PassReport] = field(default_factory=list)
    inputs: tuple[tuple[torch.Size, torch.dtype], ...] = ()
    layers: dict[str, str] = field(default_factory=dict)
    packed: dict[str, str] = field(default_factory=dict)
    same_bits: dict[str, str] = field(default_factory=dict)

    def refusals(self) -> list[Remark]:
        """Every refusal, in the order of the passes."""
        return [remark for report in self.reports for remark in report.refused]

    def continued(self) -> "Record":
        """A copy to go on writing in, so that the graph it came from keeps its own history."""
        return dataclasses.replace(
            self, reports=list(self.reports), packed=dict(self.packed), same_bits=dict(self.same_bits)
        )


def attach(gm: fx.GraphModule, record: Record) -> None:
    """Store the record where copies and pickles keep it; see `bnnfx.graph.graph_module`."""
    assert isinstance(gm, BinaryGraphModule)
    gm.kept[_KEY] = record


def record_of(gm: fx.GraphModule) -> Record | None:
    """The record of a graph, or None if it was not made here."""
    return gm.kept.get(_KEY) if isinstance(gm, BinaryGraphModule) else None


def require_stage(gm: object, stage: "Stage", function: str) -> Record:
    """The record of a graph that must be in `stage`.

    Raises:
        StageError: it is not; the message says which call gives such a graph.
    """
    record = record_of(gm) if isinstance(gm, fx.GraphModule) else None
    if record is not None and record.stage is stage:
        return record
    given = f"a graph in stage {record.stage.value}" if record is not None else f"a {type(gm).__name__}"
    maker = {"trainable": "bnnfx.convert", "packed": "bnnfx.lower"}[stage.value]
    refusal = obstacle(gm) if record is None else None
    why = "" if refusal is None else f", which {refusal.reason}. The remedy: {refusal.remedy}"
    if refusal is None and record is None and isinstance(gm, nn.Module):
        why = f". {_LOST if any(isinstance(part, _OURS) for part in gm.modules()) else _FLOAT}"
    raise StageError(f"{function} takes a graph in stage {stage.value}, which {maker} returns; got {given}{why}.")


_OURS = (ActivationBinarizer, BinaryLayer)
_FLOAT = "Call bnnfx.convert first"
_LOST = (
    "It has binary layers, but is no graph of bnnfx any more: what was made of one, or around one, does not keep what "
    "bnnfx knows of it. Do that to the float model, and convert the result; or pass the graph inside"
)
