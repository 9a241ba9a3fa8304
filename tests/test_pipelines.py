"""Passes of other packages find their place, or are refused."""

import itertools
from types import SimpleNamespace

import pytest

from bnnfx import pipelines
from bnnfx.graph.pass_runner import Pass
from bnnfx.passes.convert.insert_batchnorm import InsertBatchNorm
from bnnfx.passes.lower.pack_layers import PackLayers


def _install(monkeypatch: pytest.MonkeyPatch, *extensions: object) -> None:
    entries = [SimpleNamespace(name=f"e{i}", value=f"m:{x}", load=lambda x=x: x) for i, x in enumerate(extensions)]
    monkeypatch.setattr(pipelines, "entry_points", lambda group: entries if group == "bnnfx.passes" else [])


def test_extension_follows_the_pass_it_names(monkeypatch):
    class Mine(Pass):
        after = InsertBatchNorm

    class Late(Pass):
        after = PackLayers

    _install(monkeypatch, Mine, Late)
    convert = pipelines.with_extensions(pipelines.CONVERT)
    assert convert[convert.index(InsertBatchNorm) + 1] is Mine
    assert [p for p in convert if p is not Mine] == list(pipelines.CONVERT)
    lower = pipelines.with_extensions(pipelines.LOWER)
    assert lower[lower.index(PackLayers) + 1] is Late and Mine not in lower


class _Nowhere(Pass):
    """Says nothing about its place."""


@pytest.mark.parametrize("extension", [object(), int, _Nowhere])
def test_extension_without_a_place_is_refused(monkeypatch, extension):
    _install(monkeypatch, extension)
    with pytest.raises(ValueError, match=r"entry point 'e0' of group bnnfx\.passes"):
        pipelines.with_extensions(pipelines.CONVERT)


def test_order_is_one_direction():
    for tuple_ in (pipelines.CONVERT, pipelines.SPLIT, pipelines.LOWER):
        assert len(tuple_) > 2
        for earlier, later in itertools.pairwise(tuple_):
            assert earlier.ensures is later.requires
