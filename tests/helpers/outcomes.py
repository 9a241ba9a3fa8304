"""A model taken through the whole chain, step by step, and what came of it: one of four kinds of outcome."""

import copy
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn

import bnnfx
from bnnfx.errors import BnnfxError, StageError
from bnnfx.graph.constant_bits import REPORT
from bnnfx.graph.pass_runner import watch_passes
from bnnfx.graph.record import Role, record_of
from bnnfx.nn import ActivationBinarizer
from helpers.graphs import lowerable

KINDS = ("right", "refused", "wrong", "raw error")
"""From best to worst: right by value; refused by an error or a remark that names what is refused; wrong without a word;
an error that is not ours, or a stage's broken promise."""


@dataclass(frozen=True)
class Outcome:
    """`kind` is one of `KINDS`."""

    kind: str
    detail: str = ""


class Wrong(Exception):
    """A check found a difference; the message says which."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises `TimeoutError` in what runs longer: a pass that never ends must not end the sweep."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome_of(chain: Callable[[], str], *names: str, seconds: int = 60) -> Outcome:
    """What came of a chain of steps.

    Args:
        chain: runs it; raises `Wrong` at a difference, and gives the recorded refusals as a text, "" for none.
        seconds: how long it may take; more is a raw error.
        names: an error of ours is a refusal if it says one of these, whatever the case, dots and underscores.
    """
    try:
        with time_limit(seconds):
            refused = chain()
    except Wrong as wrong:
        return Outcome("wrong", str(wrong))
    except BnnfxError as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, StageError):
            return Outcome("raw error", text)
        named = any(_plain(name) in _plain(str(error)) for name in names)
        return Outcome("refused", text) if named else Outcome("raw error", f"names nothing of the model: {text}")
    except Exception as error:
        return Outcome("raw error", f"{type(error).__name__}: {error}")
    return Outcome("refused", refused) if refused else Outcome("right")


def worst(outcomes: list[Outcome]) -> Outcome:
    return max(outcomes, key=lambda outcome: KINDS.index(outcome.kind))


def _plain(text: str) -> str:
    return re.sub(r"[_.]", "", text).lower()


@contextmanager
def canonical_graphs() -> Iterator[list[fx.GraphModule]]:
    """Collects, from each `convert` inside the `with` statement, the float graph as its layers were selected."""
    found: list[fx.GraphModule] = []

    def keep(report: Any, gm: fx.GraphModule) -> None:
        if report.name == "SelectLayers":  # it changes nothing itself
            found.append(copy.deepcopy(gm))

    with watch_passes(keep):
        yield found


def run(model: nn.Module, x: Tensor, training: bool) -> Tensor:
    """The first output, always with the same random numbers; the model's buffers may change."""
    torch.manual_seed(1)
    with torch.no_grad():
        y = model.train(training)(x.clone())
    return y if isinstance(y, Tensor) else y[0]  # a classifier with auxiliary outputs gives a named tuple


def equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, but for the payload of a NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def train_one_step(model: nn.Module, x: Tensor) -> bool:
    """Whether all gradients are finite; only then is the step made."""
    torch.manual_seed(1)
    y = model.train()(x.clone())
    if not y.requires_grad:
        return False
    y.square().mean().backward()
    finite = all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    if finite:
        torch.optim.SGD(model.parameters(), 0.01).step()
    return finite


def check_canonical(
    canonical: fx.GraphModule, model: nn.Module, x: Tensor, modes: tuple[bool, ...] = (False, True)
) -> None:
    """The canonical graph gives what the model gives in these modes, whatever the mode that it was converted in."""
    for training in modes:
        if not equal(run(copy.deepcopy(canonical), x, training), run(copy.deepcopy(model), x, training)):
            raise Wrong(f"the canonical graph has other values in {'train' if training else 'eval'}()")


def halves(x: Tensor) -> tuple[Tensor, ...]:
    return x.tensor_split(2)


def check_halves(canonical: fx.GraphModule, model: nn.Module, x: Tensor) -> None:
    """The canonical graph gives for each half of a batch what the model gives for it: no batch size is baked in."""
    for half in halves(x):
        if not equal(run(copy.deepcopy(canonical), half, False), run(copy.deepcopy(model), half, False)):
            raise Wrong("the canonical graph has other values for a half of the batch that it was converted with")


def check_lowered(gm: fx.GraphModule, x: Tensor, *, compare: bool = True, file: Path | None = None) -> None:
    """The graph lowers and exports, the latter where a file is named; the results agree where `compare` asks for it."""
    gm = lowerable(gm)
    packed = bnnfx.lower(gm, (x,))
    if compare and not (verification := bnnfx.verify(gm, packed, (x,))):
        raise Wrong(f"packed graph: {verification}")
    if file is not None:
        bnnfx.export_onnx(packed, file)
        if compare:
            check_file(packed, file, x)


def check_file(packed: fx.GraphModule, file: Path, x: Tensor) -> None:
    """The file computes what the packed graph does, for the batch and for a half of it, and draws no random numbers."""
    for images in (x, halves(x)[0]):
        if not (verification := bnnfx.verify(packed, file, (images,))):
            raise Wrong(f"file: {verification}")
    if drawing := random_operators(onnx.load(file)):
        raise Wrong(f"the file draws random numbers: {', '.join(drawing)}")


def random_operators(model: onnx.ModelProto) -> list[str]:
    """The operators of a file, of its functions too, that have a seed by ONNX's own schemas."""
    seeded = {schema.name for schema in onnx.defs.get_all_schemas() if "seed" in schema.attributes}
    assert {"Bernoulli", "Dropout", "RandomNormalLike", "RandomUniformLike"} <= seeded

    def inside(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
        for node in nodes:
            if node.domain in ("", "ai.onnx") and node.op_type in seeded:
                yield f"{node.op_type} '{node.name}'"
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    yield from inside(graph.node)

    return [*inside(model.graph.node), *(name for function in model.functions for name in inside(function.node))]


def varies(y: Tensor) -> bool:
    """Whether some channel of `[N, C, ...]` has several values."""
    values = y.detach().nan_to_num().transpose(0, 1).flatten(1)
    return bool((values.amax(1) > values.amin(1)).any())


def check_bits_vary(gm: fx.GraphModule, x: Tensor) -> None:
    """No binarizer of a map gives the same to every sample at every position, behind batch norms that saw this batch.

    One value per sample, such as the mean of a map, is left out: noise has much the same mean in every image; so is
    what `convert` warned of by name, as behind a max-pool of a small map.
    """
    record = record_of(gm)
    assert record is not None
    told = [note.reason for report in record.reports if report.name == REPORT for note in report.notes]
    gm, constant = copy.deepcopy(gm), []

    def look(name: str, y: Tensor) -> None:
        if y[0, 0].numel() > 1 and not varies(y):
            constant.append(name)

    for name, module in gm.named_modules():
        if isinstance(module, ActivationBinarizer):
            module.register_forward_hook(lambda m, i, y, name=name: look(name, y))
    run(gm, x, True)
    constant = [name for name in constant if not any(f"'{name.replace('.', '_')}'" in reason for reason in told)]
    if constant:
        raise Wrong(f"constant bits: {', '.join(constant)}")


def refusals(gm: fx.GraphModule, *subjects: str) -> str:
    """What the record says of these subjects, and of whatever was kept as a leaf."""
    record = record_of(gm)
    assert record is not None
    deciding = [remark for report in record.reports if report.role is Role.DECIDES for remark in report.refused]
    return "; ".join(f"{r.subject}: {r.reason}" for r in deciding if r.subject in subjects or "float leaf" in r.reason)
