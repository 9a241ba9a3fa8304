"""Passes of other packages find their place, or are left out by name."""

import itertools
from types import SimpleNamespace

import pytest
from torch import nn

import bnnfx
from bnnfx import Config, pipelines
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal
from bnnfx.graph.stage import Stage
from bnnfx.passes.convert.insert_batchnorm import InsertBatchNorm
from bnnfx.passes.lower.pack_layers import PackLayers


class Follower(Pass):
    """Does nothing, at a place that subclasses name."""

    def match(self):
        return []

    def allowed(self, match):
        return None

    def rewrite(self, match, plan):
        pass

    def subject(self, match):
        return ""


def following(after: type[Pass], name: str = "Follower", **attributes: object) -> type[Pass]:
    stage = getattr(after, "ensures", None)
    return type(name, (Follower,), {"after": after, "requires": stage, "ensures": stage, **attributes})


def install(monkeypatch: pytest.MonkeyPatch, *extensions: object) -> None:
    """Entry points `e0`, `e1` ...; an exception is raised when its entry point is loaded."""

    def load(extension: object) -> object:
        if isinstance(extension, Exception):
            raise extension
        return extension

    entries = [
        SimpleNamespace(name=f"e{i}", value=f"m:{x}", load=lambda x=x: load(x)) for i, x in enumerate(extensions)
    ]
    monkeypatch.setattr(pipelines, "entry_points", lambda group: entries if group == "bnnfx.passes" else [])


def behind(passes: tuple[type[Pass], ...], kind: type[Pass], count: int) -> list[type[Pass]]:
    start = passes.index(kind) + 1
    return list(passes[start : start + count])


def test_extension_follows_the_pass_it_names(monkeypatch):
    mine, late = following(InsertBatchNorm), following(PackLayers)
    install(monkeypatch, mine, late)
    convert = pipelines.with_extensions(pipelines.CONVERT)
    assert behind(convert, InsertBatchNorm, 1) == [mine]
    assert [p for p in convert if p is not mine] == list(pipelines.CONVERT)
    lower = pipelines.with_extensions(pipelines.LOWER)
    assert behind(lower, PackLayers, 1) == [late] and mine not in lower


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_extensions_follow_each_other(monkeypatch, order):
    """Two behind one pass keep their order; one behind another package's pass stands right behind that."""
    first, second = following(InsertBatchNorm, "First"), following(InsertBatchNorm, "Second")
    after_first = following(first, "AfterFirst")
    installed = [first, second, after_first, following(after_first, "Last")]
    install(monkeypatch, *(installed[i] for i in order))
    convert = pipelines.with_extensions(pipelines.CONVERT)
    chain = [first, after_first, installed[3]]
    expected = [*chain, second] if order.index(0) < order.index(1) else [second, *chain]
    assert behind(convert, InsertBatchNorm, 4) == expected
    assert [p for p in convert if p not in installed] == list(pipelines.CONVERT)


def test_extension_runs(monkeypatch):
    """A pass of another package, and one behind it: both do their work in `convert`."""

    class Renames(Follower):
        """Writes the number of its calls into the names of binary layers."""

        after = InsertBatchNorm
        requires = ensures = Stage.CANONICAL

        def match(self):
            yield from [node for node in self.gm.graph.nodes if self.context.is_binary(node)]

        def allowed(self, match):
            return Refusal("is the last", "add one") if match.name.endswith("2") else f"{match.name}_renamed"

        def rewrite(self, match, plan):
            match._rename(plan)

        def subject(self, match):
            return match.name

    class Again(Renames):
        after = Renames

    install(monkeypatch, Again, Renames)
    gm = bnnfx.convert(nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3))), "xnor", config=Config(keep_float=()))
    assert "_1_renamed_renamed" in [node.name for node in gm.graph.nodes]
    log = {entry.name: entry for entry in bnnfx.explain(gm).passes}
    assert log["Again"].applied and [finding.reason for finding in log["Renames"].refused] == ["is the last"]


class _Nowhere(Follower):
    """Says nothing about its place."""


class _Cycle(Follower):
    """Follows itself."""


_Cycle.after = _Cycle


@pytest.mark.parametrize(
    ("extension", "said"),
    [
        (object(), "no subclass of"),
        (int, "no subclass of"),
        (_Nowhere, "`after` leads to none"),
        (_Cycle, "`after` leads to none"),
        (following(_Nowhere), "`after` leads to none"),
        (
            type("Half", (Pass,), {"after": InsertBatchNorm, "match": lambda self: []}),
            "lacks allowed, rewrite, subject",
        ),
        (following(InsertBatchNorm, ensures=Stage.PACKED), "must both be Stage.CANONICAL"),
        (ImportError("no module named gone"), "it raises ImportError: no module named gone"),
    ],
)
def test_extension_without_a_place_is_left_out_and_named(monkeypatch, extension, said):
    good = following(InsertBatchNorm)
    install(monkeypatch, extension, good)
    with pytest.warns(UserWarning, match=rf"entry point 'e0' of group bnnfx\.passes .* is left out: .*{said}"):
        assert behind(pipelines.with_extensions(pipelines.CONVERT), InsertBatchNorm, 1) == [good]


def test_order_is_one_direction():
    for tuple_ in (pipelines.CONVERT, pipelines.SPLIT, pipelines.LOWER):
        assert len(tuple_) > 2
        for earlier, later in itertools.pairwise(tuple_):
            assert earlier.ensures is later.requires
