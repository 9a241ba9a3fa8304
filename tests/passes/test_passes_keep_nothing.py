"""No pass hides anything: `match` and `allowed` change nothing at all, `rewrite` nothing of the pass itself."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.models import Residual, conv3x3
from helpers.refusals import CASES, Around, SamePadded
from torch import Tensor, fx, nn

import bnnfx
from bnnfx import Config
from bnnfx.graph import pass_runner
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.passes.convert.insert_batchnorm import InsertBatchNorm
from bnnfx.passes.lower.fold_epilogue_to_threshold import FoldEpilogueToThreshold
from bnnfx.pipelines import CONVERT, LOWER, SPLIT

GIVEN = ("gm", "context", "report")  # what a pass is given and may change when it rewrites


def content(value: object) -> object:
    """A value that is equal as long as nothing in an object of ours, a container or a tensor changes."""
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, dict):
        return "dict", tuple((content(key), content(item)) for key, item in value.items())
    if isinstance(value, set | frozenset):
        return "set", frozenset(map(content, value))
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(content, value))
    if isinstance(value, fx.Node | nn.Module) or not type(value).__module__.startswith("bnnfx"):
        return id(value) if isinstance(value, fx.Node | nn.Module) or callable(value) else repr(value)
    return type(value).__name__, content(vars(value))


def own(pass_: Pass[Any, Any, Any]) -> object:
    """What a pass holds besides what it is given."""
    return content({name: value for name, value in vars(pass_).items() if name not in GIVEN})


def everything(pass_: Pass[Any, Any, Any]) -> object:
    """What a pass holds and what it could reach: graph, modules, tensors, shapes, report."""
    tensors = [*pass_.gm.named_parameters(), *pass_.gm.named_buffers()]
    world = pass_runner._fingerprint(pass_.gm), content(tensors)
    return own(pass_), world, content(pass_.context), content(dataclasses.asdict(pass_.report))


@contextmanager
def unchanged(pass_: Pass[Any, Any, Any], step: str, state: Callable[[Any], object]) -> Iterator[None]:
    before = state(pass_)
    yield
    assert state(pass_) == before, f"{type(pass_).__name__}.{step} changes something"


def watch(monkeypatch: pytest.MonkeyPatch, kind: type[Pass[Any, Any, Any]], met: Counter[tuple[str, bool]]) -> None:
    """Look at a pass around every step that it takes."""
    match, allowed, rewrite, finish = kind.match, kind.allowed, kind.rewrite, kind.finish

    def watched_match(self: Any) -> Iterator[Any]:
        with unchanged(self, "match", everything):
            matches = iter(match(self))
        while True:
            with unchanged(self, "match", everything):
                found = next(matches, None)
            if found is None:
                return
            yield found

    def watched_allowed(self: Any, match: Any) -> Any:
        with unchanged(self, "allowed", everything):
            plan = allowed(self, match)
        met[kind.__name__, isinstance(plan, Refusal)] += 1
        return plan

    def watched_rewrite(self: Any, match: Any, plan: Any) -> None:
        with unchanged(self, "rewrite", own):
            rewrite(self, match, plan)

    def watched_finish(self: Any) -> None:
        with unchanged(self, "finish", own):
            finish(self)

    monkeypatch.setattr(kind, "match", watched_match)
    monkeypatch.setattr(kind, "allowed", watched_allowed)
    monkeypatch.setattr(kind, "rewrite", watched_rewrite)
    monkeypatch.setattr(kind, "finish", watched_finish)


def split_and_lower(scheme: str, config: Config) -> None:
    """Through all three pipelines, with what the cases of refusals do not have: pools that move, a dropout, copies."""
    block, pool = Residual().block, nn.MaxPool2d(2)
    model = nn.Sequential(conv3x3(3, 8), nn.BatchNorm2d(8), nn.ReLU(), block, conv3x3(8, 8), pool, conv3x3(8, 8))
    model.append(nn.Dropout())
    model.append(Around(nn.Linear(8, 8), lambda x: x.permute(0, 2, 3, 1)))
    bnn = bnnfx.convert(model, scheme, config=config)
    bnnfx.lower(bnnfx.api.split_if_ternary(bnn), (torch.randn(1, 3, 16, 16),))


class ByHand(nn.Module):
    """A scale computed of a parameter, a function that follows the mode, and an assertion about a size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3) for _ in range(3))
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == 8
        x = self.layers[1](self.layers[0](x) * self.scale.square())
        x = self.layers[2](x * (2.0 if self.training else 3.0))
        return nn.functional.linear(x, self.linear.weight, self.linear.bias)


def lower_constants_and_modes() -> None:
    bnn = bnnfx.convert(ByHand(), "xnor", example_inputs=(torch.randn(2, 8, 9, 9),))
    bnnfx.lower(bnn, (torch.randn(2, 8, 9, 9),))


def convert_subclass() -> None:
    model = nn.Sequential(*(SamePadded(8, 8, 3, stride=2) for _ in range(3)))
    bnnfx.convert(model, "xnor", example_inputs=(torch.randn(2, 8, 16, 16),))


def test_passes_keep_nothing(monkeypatch):
    met: Counter[tuple[str, bool]] = Counter()
    passes = (*CONVERT, *SPLIT, *LOWER)
    for kind in passes:
        watch(monkeypatch, kind, met)
    for case in CASES.values():
        case.explain()
    split_and_lower("bireal", Config(keep_float=()))
    lower_constants_and_modes()
    convert_subclass()
    split_and_lower("binaryduo", Config())
    split_and_lower("binaryduo", Config(options={"weight_bits": 32}))
    assert [kind.__name__ for kind in passes if not met[kind.__name__, False]] == []
    assert sum(refused for _, refused in met) > 10


def run_watched(monkeypatch, kind: type[Pass[Any, Any, Any]]) -> None:
    with monkeypatch.context() as patched:
        watch(patched, kind, Counter())
        model = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3)))
        bnn = bnnfx.convert(model, "xnor", config=Config(keep_float=()))
        bnnfx.lower(bnn, (torch.randn(1, 8, 9, 9),))


@pytest.mark.parametrize("step", ["match", "allowed", "rewrite"])
def test_state_of_a_pass_is_noticed(monkeypatch, step):
    run_watched(monkeypatch, InsertBatchNorm)
    honest = getattr(InsertBatchNorm, step)

    def hides(self, *arguments):
        self._found = self._values[next(iter(self._values))] = len(self.gm.graph.nodes)
        return honest(self, *arguments)

    monkeypatch.setattr(InsertBatchNorm, step, hides)
    with pytest.raises(AssertionError, match=f"InsertBatchNorm.{step} changes something"):
        run_watched(monkeypatch, InsertBatchNorm)


@pytest.mark.parametrize(
    "edits",
    [
        lambda pass_: pass_.note("x", "noted"),
        lambda pass_: pass_.context.shapes.clear(),
        lambda pass_: pass_.context.packed.update(x="x"),
        lambda pass_: next(iter(pass_.gm.buffers())).add_(1),
        lambda pass_: next(iter(pass_.gm.graph.nodes))._rename("renamed"),
    ],
)
@pytest.mark.parametrize("step", ["match", "allowed"])
def test_edit_of_a_predicate_is_noticed(monkeypatch, step, edits):
    honest = getattr(FoldEpilogueToThreshold, step)

    def changes(self, *arguments):
        edits(self)
        return honest(self, *arguments)

    monkeypatch.setattr(FoldEpilogueToThreshold, step, changes)
    with pytest.raises(AssertionError, match=f"FoldEpilogueToThreshold.{step} changes something"):
        run_watched(monkeypatch, FoldEpilogueToThreshold)
