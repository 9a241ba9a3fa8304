"""Passes of other packages find their place, are refused, or are left out."""

import itertools
import warnings
from pathlib import Path

import pytest
from helpers.models import Chain
from helpers.plugins import install

import bnnfx
from bnnfx import pipelines
from bnnfx.graph.pass_runner import watch_passes
from bnnfx.passes.convert.insert_batchnorm import InsertBatchNorm

HEAD = """
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.stage import Stage
from bnnfx.passes.convert.insert_batchnorm import InsertBatchNorm
from bnnfx.passes.lower.pack_layers import PackLayers

class Nothing(Pass):
    def __init_subclass__(cls):
        if cls.after is not None:
            cls.requires = cls.ensures = getattr(cls.after, "ensures", None)
    def match(self):
        return []
    def allowed(self, match):
        return None
    def rewrite(self, match, plan):
        pass
    def subject(self, match):
        return ""
"""


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Install a package of passes: its name, and classes, each with the source of what it follows, in order."""

    def make(name: str, *, before: str = "", behind: str = "", **passes: str) -> None:
        bodies = [f"class {key}(Nothing):\n    after = {after}\n" for key, after in passes.items()]
        entries = {key.lower(): f"{name}:{key}" for key in passes}
        install(monkeypatch, tmp_path, name, "bnnfx.passes", entries, "\n".join([HEAD, before, *bodies, behind]))

    return make


def names(passes) -> list[str]:
    return [kind.__name__ for kind in passes]


def ours_then(*extensions: str) -> list[str]:
    """The names of `CONVERT` with these behind the batch norms."""
    place = pipelines.CONVERT.index(InsertBatchNorm) + 1
    return [*names(pipelines.CONVERT[:place]), *extensions, *names(pipelines.CONVERT[place:])]


def test_extension_follows_the_pass_it_names(package):
    package("mine", Mine="InsertBatchNorm", Late="PackLayers")
    assert names(pipelines.with_extensions(pipelines.CONVERT)) == ours_then("Mine")
    lower = names(pipelines.with_extensions(pipelines.LOWER))
    assert lower[lower.index("PackLayers") + 1] == "Late" and "Mine" not in lower
    seen = []
    with watch_passes(lambda report, gm: seen.append(report.name)):
        bnnfx.convert(Chain(), "xnor")
    assert seen == ours_then("Mine")


def test_extensions_of_the_same_pass_stand_in_order(package):
    """By the names of their packages, however they lie on the path; within one, as listed."""
    package("b_package", Z="InsertBatchNorm", Y="InsertBatchNorm")
    package("c_package", W="InsertBatchNorm")
    package("a_package", X="InsertBatchNorm")
    assert names(pipelines.with_extensions(pipelines.CONVERT)) == ours_then("X", "Z", "Y", "W")


def test_extension_of_an_extension(package):
    package("z_anchors", First="InsertBatchNorm", Second="InsertBatchNorm")
    package("a_follower", before="import z_anchors", Follower="z_anchors.First", Last="Follower")
    assert names(pipelines.with_extensions(pipelines.CONVERT)) == ours_then("First", "Follower", "Last", "Second")


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ({"Lost": "None"}, r"'lost' of group bnnfx\.passes \(odd:Lost\) has no place: Lost follows no pass\. Set the "),
        ({"Lost": "Nothing"}, r"'lost' .* Lost follows <class 'odd\.Nothing'>, which is in no pipeline\. Set the attr"),
        ({"A": "None", "B": "A"}, r"'a' .* has no place: A follows no pass\. Set the attribute `after` of A to one of"),
        ({"A": "None", "B": "A", "C": "B", "behind": "A.after = C"}, "'a' .* circle: A after C after B after A. Set"),
        ({"A": "PackLayers", "behind": "A.ensures = Stage.CANONICAL"}, "'a' .* follows PackLayers, behind which a gra"),
        ({"A": "PackLayers", "behind": "A.requires = None"}, "Set the attributes .* of A to Stage.PACKED"),
        ({"A": "None", "behind": "A.after = A"}, "'a' .* circle: A after A. Set the attribute `after` of A to one"),
        ({"A": "None", "B": "A", "behind": "A.after = A"}, "'a' .* circle: A after A. Set the attribute `after`"),
    ],
)
def test_extension_without_a_place_is_refused(package, passes, message):
    package("odd", **passes)
    with pytest.raises(ValueError, match=message):
        bnnfx.convert(Chain(), "xnor")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise RuntimeError('not on Tuesdays')", "RuntimeError: not on Tuesdays"),
        ("", "AttributeError: module 'broken' has no attribute 'Mine'"),
        ("Mine = int", "TypeError: it must be a subclass of bnnfx.graph.pass_runner.Pass, and is <class 'int'>"),
        (
            "from bnnfx.graph.pass_runner import Pass as Mine",
            "TypeError: Pass does not define allowed, match, rewrite, subject",
        ),
        ("Mine = 3", "TypeError: it must be a subclass of bnnfx.graph.pass_runner.Pass, and is 3"),
    ],
)
def test_broken_entry_point_is_left_out(package, monkeypatch, tmp_path, source, reason):
    monkeypatch.setattr("bnnfx.registry._said", set())
    install(monkeypatch, tmp_path, "broken", "bnnfx.passes", {"mine": "broken:Mine"}, source)
    package("fine", Mine="InsertBatchNorm")
    with pytest.warns(UserWarning) as caught:
        gm = bnnfx.convert(Chain(), "xnor")
    (text,) = [str(w.message) for w in caught if "entry point" in str(w.message)]
    assert text.startswith(f"The entry point 'mine' of group bnnfx.passes (broken:Mine) is left out: {reason}")
    assert text.endswith("Update or uninstall broken.")
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        bnnfx.lower(gm, Chain().inputs())
    assert names(pipelines.with_extensions(pipelines.CONVERT)) == ours_then("Mine")


def test_order_is_one_direction():
    for tuple_ in (pipelines.CONVERT, pipelines.SPLIT, pipelines.LOWER):
        assert len(tuple_) > 2
        for earlier, later in itertools.pairwise(tuple_):
            assert earlier.ensures is later.requires
