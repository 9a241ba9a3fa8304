"""Comparing two forms of one model bit by bit: trainable graph, packed graph, ONNX file."""

from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from torch import fx

from bnnfx.graph.shapes import as_tensors
from bnnfx.inspect.bit_trace import Bits, BitTrace, trace_bits
from bnnfx.tables import as_text

Model = fx.GraphModule | str | Path


@dataclass(frozen=True)
class NodeComparison:
    """The bits of one binarizer in both models.

    Attributes:
        name: of the binarizer.
        total: how many bits were compared.
        differing: how many differ.
        unexplained: how many of these neither rounding nor an earlier difference in the same sample explains.
        margin: the largest distance from the threshold at which a bit differs for the first time in its sample, as a
            share of the largest value compared there; 0.0 if there is none.
    """

    name: str
    total: int
    differing: int
    unexplained: int
    margin: float


@dataclass(frozen=True)
class OutputComparison:
    """One output of both models.

    Attributes:
        difference: largest difference in samples whose bits all agree.
        bound: what rounding can explain there.
        predictions: in how many samples (of all) the largest value along axis 1 is another one.
    """

    difference: float
    bound: float
    predictions: int


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify`; true if nothing is left unexplained.

    Attributes:
        nodes: one comparison per binarizer that both models have, in order of execution.
        outputs: one comparison per output.
        faults: packed nodes with constants of their own, or a result that is not the reference operator's on the same
            inputs, and in how many bytes.
        samples: how many samples were compared.
        diverged: in how many of them some bit differs.
    """

    nodes: tuple[NodeComparison, ...]
    outputs: tuple[OutputComparison, ...]
    faults: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    diverged: int = 0

    def __bool__(self) -> bool:
        """No packed node at fault, no bit unexplained, outputs within rounding where the bits agree."""
        within = all(output.difference <= output.bound for output in self.outputs)
        return within and not self.faults and not any(node.unexplained for node in self.nodes)

    @property
    def differing_bits(self) -> int:
        """How many bits differ in all."""
        return sum(node.differing for node in self.nodes)

    @property
    def first_difference(self) -> NodeComparison | None:
        """The first node, in order of execution, at which a bit differs."""
        return next((node for node in self.nodes if node.differing), None)

    def __str__(self) -> str:
        """A summary, and one row per node with a difference."""
        total = sum(node.total for node in self.nodes)
        lines = [
            f"{'equal' if self else 'NOT EQUAL'}: {self.differing_bits} of {total} bits differ, "
            f"at {len(self.nodes)} nodes and in {self.diverged} of {self.samples} samples"
        ]
        for number, output in enumerate(self.outputs):
            lines.append(
                f"output {number}: {output.predictions} predictions differ; largest difference where the bits agree "
                f"{output.difference:.2g} (rounding bound {output.bound:.2g})"
            )
        lines += [
            f"'{name}' has {count} wrong bytes, in its constants or in its result on its own inputs"
            for name, count in self.faults.items()
        ]
        if not self.differing_bits:
            return "\n".join(lines)
        table = Table("node", "bits", "differ", "unexplained", "margin")
        for node in self.nodes:
            if node.differing:
                counts = (str(node.total), str(node.differing), str(node.unexplained))
                table.add_row(node.name, *counts, f"{node.margin:.1e}")
        return "\n".join([*lines, as_text(table)])


def verify(gm: Model, other: Model, inputs: tuple[Any, ...], *, kernels: bool = True) -> Verification:
    """Run two forms of one model on the same inputs and compare every bit.

    Integers are held to equality: the constants of packed nodes must agree to the byte, a packed ONNX node must give
    the reference operator's result on its own inputs, and a bit that integers decide must agree. A bit that a float
    comparison decides in both models may differ if its value is within rounding of the threshold (float convolutions,
    batch norms and means round differently in torch and in ONNX Runtime); what follows from it in that sample is not
    held against either. The rounding bound of a tensor is
    `2**-23 * terms * largest magnitude`, terms being the length of the longest float sum of the model.

    Args:
        gm: a trainable or packed graph, or the path of an exported file.
        other: likewise.
        inputs: a tuple of batched tensors, the arguments of forward.
        kernels: run files with the kernel library; without, through the functions stored in them.

    Returns:
        Counts per node; its `bool()` is the verdict.

    Raises:
        StageError: one of the two is no such graph.
        ModelFileError: a file cannot be run.
        ValueError: there is no sample, or one without values (on the device `meta`); or the two have no binarizer in
            common. (Of a file without packed nodes, which records no bits, the outputs alone are compared.)
    """
    return compare(*(trace(model, inputs, kernels=kernels) for model in (gm, other)))


def trace(model: Model, inputs: tuple[Any, ...], *, kernels: bool = True) -> BitTrace:
    """Run one form of a model, for `compare`; of its outputs, what is no tensor is left out.

    Args:
        model: a trainable or packed graph, or the path of an exported file.
        inputs: a tuple of batched tensors, the arguments of forward.
        kernels: run a file with the kernel library.

    Raises:
        StageError: it is no such graph.
        ModelFileError: the file cannot be run.
        ValueError: there is no sample, or one without values.
    """
    tensors = as_tensors(inputs)
    if not tensors or any(len(x) == 0 or x.is_meta for x in tensors):
        given = ", ".join(f"{list(x.shape)} on {x.device}" for x in tensors) or "no tensor"
        raise ValueError(f"verify compares what the models make of one sample or more, and needs values; got {given}.")
    copies = tuple(x.detach().cpu().clone() for x in tensors)  # a model may write into its input
    return trace_bits(model, copies, kernels=kernels)


def compare(a: BitTrace, b: BitTrace) -> Verification:
    """Compare two records of the same inputs."""
    names = [name for name in a.bits if name in b.bits]
    if (not names and a.bits and b.bits) or len(a.outputs) != len(b.outputs):
        raise ValueError(
            f"The two models have {len(names)} binarizers in common, and {len(a.outputs)} and {len(b.outputs)} "
            "outputs: they are not two forms of one model."
        )
    for name in names:
        if a.bits[name].bits.shape != b.bits[name].bits.shape:
            raise ValueError(
                f"The two models give {a.bits[name].bits.shape[1]} and {b.bits[name].bits.shape[1]} bits per sample at "
                f"'{name}': they are not two forms of one model."
            )
    share = 2.0**-23 * max(a.terms, b.terms)
    samples = len(a.bits[names[0]].bits) if names else len(a.outputs[0])
    diverged = np.zeros(samples, dtype=bool)
    nodes = []
    for name in names:
        nodes.append(_compare_bits(name, a.bits[name], b.bits[name], share, diverged))
        diverged |= (a.bits[name].bits != b.bits[name].bits).any(axis=1)
    outputs = tuple(_compare_outputs(x, y, share, diverged) for x, y in zip(a.outputs, b.outputs, strict=True))
    faults = {name: count for record in (a, b) for name, count in record.faults.items() if count}
    for name in a.constants.keys() & b.constants.keys():
        pairs = zip_longest(a.constants[name], b.constants[name], fillvalue=np.empty(0, np.uint8))
        wrong = sum(_differing_bytes(x, y) for x, y in pairs)
        if wrong:
            faults[name] = faults.get(name, 0) + wrong
    return Verification(tuple(nodes), outputs, faults, samples, int(diverged.sum()))


def _compare_bits(name: str, a: Bits, b: Bits, share: float, diverged: npt.NDArray[np.bool_]) -> NodeComparison:
    differs = a.bits != b.bits
    first = differs & ~diverged[:, None]
    unexplained, margin = int(first.sum()), 0.0
    if unexplained and a.compared is not None and b.compared is not None:
        scale = max(_scale(a.compared), float(np.finfo(np.float32).tiny))
        margins = np.maximum(np.abs(a.compared), np.abs(b.compared))[first] / scale
        unexplained, margin = int((~(margins <= share)).sum()), float(margins.max())
    return NodeComparison(name, differs.size, int(differs.sum()), unexplained, margin)


def _differing_bytes(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> int:
    if a.shape != b.shape or a.dtype != b.dtype:
        return max(a.nbytes, b.nbytes)
    return int((np.ascontiguousarray(a).view(np.uint8) != np.ascontiguousarray(b).view(np.uint8)).sum())


def _compare_outputs(
    a: npt.NDArray[Any], b: npt.NDArray[Any], share: float, diverged: npt.NDArray[np.bool_]
) -> OutputComparison:
    predictions = int((a.argmax(axis=1) != b.argmax(axis=1)).sum()) if a.ndim == 2 else 0
    same = ~diverged if len(a) == len(diverged) else np.ones(len(a), dtype=bool)
    x, y = a[same].astype(np.float64), b[same].astype(np.float64)
    differs = ~((x == y) | (np.isnan(x) & np.isnan(y)))
    if not differs.any():
        return OutputComparison(0.0, share * _scale(x), predictions)
    # an infinity or NaN on one side only is no rounding: it makes the difference infinite
    with np.errstate(invalid="ignore"):
        difference = float(np.nan_to_num(np.abs(x - y)[differs], nan=np.inf, posinf=np.inf).max())
    return OutputComparison(difference, share * _scale(x), predictions)


def _scale(values: npt.NDArray[Any]) -> float:
    """The largest finite magnitude."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0
