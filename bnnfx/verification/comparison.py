"""Comparing two forms of one model bit by bit: trainable graph, packed graph, ONNX file."""

from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx

from bnnfx.errors import quoted
from bnnfx.graph.shapes import as_tensors
from bnnfx.verification.bit_trace import Bits, BitTrace, trace_bits

Model = fx.GraphModule | str | Path
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class NodeComparison:
    """The bits of one binarizer in both models, each computed from the same inputs.

    Attributes:
        name: of the binarizer.
        total: how many bits were compared.
        differing: how many differ.
        unexplained: how many of these rounding of the value that was compared does not explain.
        margin: of the bits that differ, how far apart the values that were compared are at most, as a share of what
            rounding explains there: above 1 it does not, and where integers decide it is infinite. 0.0 if none differs.
    """

    name: str
    total: int
    differing: int
    unexplained: int
    margin: float


@dataclass(frozen=True)
class OutputComparison:
    """One output of both models, computed from the same bits, in all samples.

    Attributes:
        difference: of the value that comes closest to what rounding explains, or is farthest beyond it: how much it
            differs.
        bound: what rounding explains there.
        predictions: in how many samples the largest value along axis 1 is another one.
    """

    difference: float
    bound: float
    predictions: int


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify`; true if nothing is left unexplained.

    `nodes` and `outputs` are judged locally: every node of the second model is given the bits that the first one
    computed, so that what differs at one node excuses nothing behind it. What `moved` and `diverged` count is seen end
    to end, where each model goes on with its own bits, and is held against neither.

    Attributes:
        nodes: one comparison per binarizer that both models have, in order of execution.
        outputs: one comparison per output.
        faults: packed nodes with constants of their own, or a result that is not the reference operator's on the same
            inputs, and in how many bytes.
        missing: the binarizers that one model has and the other has not, and that no pass says to have merged.
        samples: how many samples were compared.
        moved: how many bits differ end to end.
        diverged: in how many samples some bit does.
        predictions: for each output, in how many samples the largest value along axis 1 is another one, end to end.
    """

    nodes: tuple[NodeComparison, ...]
    outputs: tuple[OutputComparison, ...]
    faults: dict[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    samples: int = 0
    moved: int = 0
    diverged: int = 0
    predictions: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        """Nothing is at fault: no packed node, no bit and no output but by rounding, no binarizer missing."""
        within = all(output.difference <= output.bound for output in self.outputs)
        return within and not (self.faults or self.missing or any(node.unexplained for node in self.nodes))

    @property
    def differing_bits(self) -> int:
        """How many bits differ in all, each node given the same inputs in both models."""
        return sum(node.differing for node in self.nodes)

    @property
    def first_difference(self) -> NodeComparison | None:
        """The first node, in order of execution, at which a bit differs."""
        return next((node for node in self.nodes if node.differing), None)

    @property
    def objection(self) -> str:
        """What is held against the models, the first of it in order of execution; empty if nothing is."""
        for node in self.nodes:
            if node.unexplained:
                return (
                    f"'{node.name}' gives {node.unexplained} of {node.total} bits otherwise, from the same inputs, "
                    "and rounding does not explain it"
                )
        if self.missing:
            return f"only one of the two has {quoted(self.missing)}"
        if self.faults:
            name, count = next(iter(self.faults.items()))
            return _fault(name, count)
        for number, output in enumerate(self.outputs):
            if not output.difference <= output.bound:
                return (
                    f"output {number} differs by {output.difference:.2g} where the bits are the same, and rounding "
                    f"explains {output.bound:.2g}"
                )
        return ""

    def __str__(self) -> str:
        """A summary, and one row per node with a difference."""
        from rich.table import Table

        from bnnfx.tables import as_text

        total = sum(node.total for node in self.nodes)
        unexplained = sum(node.unexplained for node in self.nodes)
        lines = [
            f"{'equal' if self else 'NOT EQUAL'}: {self.differing_bits} of {total} bits differ, "
            f"at {len(self.nodes)} nodes with the same inputs; rounding does not explain {unexplained}"
        ]
        for number, output in enumerate(self.outputs):
            lines.append(
                f"output {number}: from the same bits, {output.predictions} predictions differ; difference "
                f"{output.difference:.2g} (rounding bound {output.bound:.2g})"
            )
        lines += [f"only one of the two has '{name}', and nothing says why" for name in self.missing]
        lines += [_fault(name, count) for name, count in self.faults.items()]
        if self.moved:
            predictions = ", ".join(map(str, self.predictions))
            lines.append(
                f"end to end, {self.moved} bits differ in {self.diverged} of {self.samples} samples, "
                f"and {predictions} predictions"
            )
            if self.diverged == self.samples:
                lines.append("no output compared end to end: some bit differs in every sample")
        if not self.differing_bits:
            return "\n".join(lines)
        table = Table("node", "bits", "differ", "unexplained", "margin")
        for node in self.nodes:
            if node.differing:
                counts = (str(node.total), str(node.differing), str(node.unexplained))
                table.add_row(node.name, *counts, f"{node.margin:.1e}")
        return "\n".join([*lines, as_text(table)])


def _fault(name: str, count: int) -> str:
    return f"'{name}' has {count} wrong bytes, in its constants or in its result on its own inputs"


def verify(gm: Model, other: Model, inputs: tuple[Any, ...], *, kernels: bool = True) -> Verification:
    """Run two forms of one model on the same inputs and compare every bit.

    The first model runs as it is. In the second one every bit is replaced, once it is recorded, by that of the first,
    so that each node is judged on the same inputs, in every sample. Integers are held to equality: the constants of
    packed nodes must agree to the byte, a packed ONNX node must give the reference operator's result on its own inputs,
    and a bit that integers decide must agree. A bit that a float comparison decides in both models may differ if the
    values compared are no farther apart than rounding can move them (float convolutions, batch norms and means round
    differently in torch and in ONNX Runtime), and so may outputs. How far that is follows, value by value, from the
    magnitudes of the terms that it is the sum of, see `bnnfx.verification.rounding`; where neither model is a graph,
    from the values of the other node's sample.

    What is equal where nothing rounds: every output of the operators of `ai.bnnfx`, floats included, on every
    instruction set and number of threads. Whole files can differ by ONNX Runtime's own float operators (convolutions,
    pools, means), which sum in another order from one machine, layout or number of threads to the next.

    Every binarizer of one model must be in the other one, under its name or under that of the one whose bits it shares.
    What differs end to end, where the second model goes on with its own bits, is counted.

    Args:
        gm: a trainable or packed graph, or the path of an exported file.
        other: likewise.
        inputs: a tuple of batched tensors, the arguments of forward.
        kernels: run files with the kernel library; without, through the functions stored in them.

    Returns:
        Counts per node; its `bool()` is the verdict.

    Raises:
        ExampleInputError: the inputs do not fit a graph.
        StageError: one of the two is no such graph.
        ModelFileError: a file cannot be run.
        ValueError: there is no sample, or one without values (on the device `meta`); or the two have no binarizer in
            common. (Of a file without packed nodes, which records no bits, the outputs alone are compared.)
    """
    return verify_runs((gm, kernels), (other, kernels), inputs)


def verify_runs(first: tuple[Model, bool], second: tuple[Model, bool], inputs: tuple[Any, ...]) -> Verification:
    """As `verify`, of models each with its own say whether the kernel library runs it."""
    tensors = as_tensors(inputs, scalars=True)
    if not tensors or any(x.numel() == 0 or x.is_meta for x in tensors):
        given = ", ".join(f"{list(x.shape)} on {x.device}" for x in tensors) or "no tensor"
        raise ValueError(f"verify compares what the models make of one sample or more, and needs values; got {given}.")

    def run(model: tuple[Model, bool], given: BitTrace | None = None) -> BitTrace:
        copies = tuple(x.detach().cpu().clone() for x in tensors)  # a model may write into its input
        return trace_bits(model[0], copies, kernels=model[1], given=given)

    a = run(first)
    b = run(second, a)
    found = compare(a, b)
    # without a difference the bits given to it were its own
    return compare(a, b, run(second)) if found.differing_bits else found


def compare(a: BitTrace, b: BitTrace, free: BitTrace | None = None) -> Verification:
    """Compare two runs on the same inputs.

    Args:
        a: a run.
        b: another one, which was given the bits of `a`.
        free: that of the same model with its own bits; `b` if not given.

    Raises:
        ValueError: they are not two forms of one model.
    """
    pairs, missing = _pairs(a, b)
    if (not pairs and a.bits and b.bits) or len(a.outputs) != len(b.outputs):
        raise ValueError(
            f"The two models have {len(pairs)} binarizers in common, and {len(a.outputs)} and {len(b.outputs)} "
            "outputs: they are not two forms of one model."
        )
    for name, x, y in pairs:
        if x.bits.shape != y.bits.shape:
            raise ValueError(
                f"The two models give {x.bits.shape[1]} and {y.bits.shape[1]} bits per sample at '{name}': they are "
                "not two forms of one model."
            )
    nodes = tuple(_compare_bits(name, x, y) for name, x, y in pairs)
    errors = [_sum_of_errors(*pair) for pair in zip_longest(a.errors or (), b.errors or ())] or [None] * len(a.outputs)
    outputs = tuple(_compare_outputs(*each) for each in zip(a.outputs, b.outputs, errors, strict=True))
    faults = {name: count for record in (a, b) for name, count in record.faults.items() if count}
    for name in a.constants.keys() & b.constants.keys():
        constants = zip_longest(a.constants[name], b.constants[name], fillvalue=np.empty(0, np.uint8))
        wrong = sum(_differing_bytes(x, y) for x, y in constants)
        if wrong:
            faults[name] = faults.get(name, 0) + wrong
    free = b if free is None else free
    differ = [x.bits != y.bits for _, x, y in _pairs(a, free)[0]]
    samples = max(map(len, differ), default=len(a.outputs[0]))  # what no input goes into has one row for all
    diverged = np.zeros(samples, dtype=bool)
    for bits in differ:
        diverged |= bits.any(axis=1)
    return Verification(
        nodes,
        outputs,
        faults,
        missing,
        samples,
        moved=sum(int(bits.sum()) for bits in differ),
        diverged=int(diverged.sum()),
        predictions=tuple(_predictions(x, y) for x, y in zip(a.outputs, free.outputs, strict=True)),
    )


def _pairs(a: BitTrace, b: BitTrace) -> tuple[list[tuple[str, Bits, Bits]], tuple[str, ...]]:
    """The binarizers of both, in order of execution, and the names of those that one lacks without a reason.

    The reasons: another one's bits are the same, and it is there; the bits are on their way to a binarizer's, as those
    in front of a max-pool; float layers alone read them, so that a file has none of them.
    """
    same = a.same | b.same
    pairs, missing = [], []
    for name in dict.fromkeys([*a.bits, *b.bits]):
        x, y = a.bits_of(name, same), b.bits_of(name, same)
        if x is not None and y is not None:
            pairs.append((name, x, y))
        elif (a if x is None else b).of_file and name in a.as_floats | b.as_floats:
            continue
        elif name not in a.inner | b.inner:
            missing.append(name)
    return pairs, tuple(missing)


def _compare_bits(name: str, a: Bits, b: Bits) -> NodeComparison:
    differs = a.bits != b.bits
    differing = int(differs.sum())
    if not differing:
        return NodeComparison(name, differs.size, 0, 0, 0.0)
    if a.compared is None or b.compared is None:
        return NodeComparison(name, differs.size, differing, differing, np.inf)
    error = _sum_of_errors(a.error, b.error)
    if error is None:
        error = np.maximum(_guess(a.compared), _guess(b.compared))
    shares = _shares(a.compared[differs], b.compared[differs], error[differs])
    return NodeComparison(name, differs.size, differing, int((~(shares <= 1)).sum()), float(shares.max()))


def _sum_of_errors(a: Array | None, b: Array | None) -> Array | None:
    """What two approximations of one value may differ by; one that does not tell is taken to be as the other."""
    if a is None or b is None:
        known = b if a is None else a
        return None if known is None else 2 * known
    return a + b


def _shares(a: Array, b: Array, error: Array) -> Array:
    """How far apart values are, as a share of what explains it; what is no number explains nothing."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        apart = np.abs(a.astype(np.float64) - b)
        shares = np.where(apart == 0, 0.0, apart / np.where(np.isfinite(error), error, 0.0))
    return np.nan_to_num(shares, nan=np.inf)


def _differing_bytes(a: Array, b: Array) -> int:
    if a.shape != b.shape or a.dtype != b.dtype:
        return max(a.nbytes, b.nbytes)
    return int((np.ascontiguousarray(a).view(np.uint8) != np.ascontiguousarray(b).view(np.uint8)).sum())


def _predictions(a: Array, b: Array) -> int:
    alike = a.ndim == 2 and a.shape == b.shape and a.size > 0
    return int((a.argmax(axis=1) != b.argmax(axis=1)).sum()) if alike else 0


def _compare_outputs(a: Array, b: Array, error: Array | None) -> OutputComparison:
    predictions = _predictions(a, b)
    if a.shape != b.shape:
        return OutputComparison(np.inf, 0.0, predictions)
    error = _guess(a) if error is None else error
    same = (a == b) | ((a != a) & (b != b))  # NaN is equal to itself here
    if same.all():
        return OutputComparison(0.0, float(error.max(initial=0.0)), predictions)
    x, y, bound = a[~same].astype(np.float64), b[~same].astype(np.float64), error[~same]
    shares = _shares(x, y, bound)
    worst = int(shares.argmax())
    with np.errstate(invalid="ignore"):
        difference = float(np.nan_to_num(np.abs(x - y)[worst], nan=np.inf, posinf=np.inf))
    explained = float(bound[worst]) if np.isfinite(bound[worst]) else 0.0
    return OutputComparison(difference, explained, predictions)


def _guess(values: Array) -> Array:
    """Where no form tells the terms of its values: a few hundred roundings of the largest value."""
    finite = np.abs(values[np.isfinite(values)])
    return np.full(values.shape, 2.0**-24 * 256 * float(finite.max(initial=0.0)))
