"""What other packages register by entry points: it is there, or left out with one warning."""

import warnings
from collections.abc import Iterator

import pytest
from helpers.models import Chain
from helpers.plugins import install

import bnnfx
from bnnfx.backends.target import TARGETS
from bnnfx.schemes.scheme import SCHEMES

SCHEME = """
import bnnfx
from bnnfx.schemes import get_scheme
xnor = get_scheme("xnor")
own = bnnfx.Scheme("own", "one of another package", "here", xnor.activation, xnor.weight, xnor.options)
"""


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries whose entry points are read when something is asked for, and that forget them behind the test."""
    monkeypatch.setattr("bnnfx.registry._said", set())
    for registry in (SCHEMES, TARGETS):
        monkeypatch.setattr(registry, "_things", registry.known())
        monkeypatch.setattr(registry, "_complete", False)
    yield


@pytest.mark.parametrize("behind", ["", "bnnfx.register_scheme(own)"])
def test_scheme(monkeypatch, tmp_path, behind):
    """Also one that its module registers by itself."""
    install(monkeypatch, tmp_path, "other", "bnnfx.schemes", {"own": "other:own"}, SCHEME + behind)
    assert bnnfx.schemes() == ["binaryduo", "bireal", "own", "rbnn", "xnor"]
    bnnfx.convert(Chain(), "own")


@pytest.mark.parametrize(
    ("group", "source", "reason"),
    [
        ("schemes", "import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("schemes", "own = dict", "TypeError: it must be an instance of bnnfx.Scheme, and is <class 'dict'>"),
        ("schemes", SCHEME.replace('"own"', '"bireal"'), "ValueError: A scheme named 'bireal' is registered already"),
        ("targets", "own = (", "SyntaxError: "),
        ("targets", "", "AttributeError: module 'broken' has no attribute 'own'"),
        ("targets", "own = 3", "TypeError: it must be an instance of bnnfx.Target, and is 3"),
    ],
)
def test_broken_entry_point_is_left_out(monkeypatch, tmp_path, group, source, reason):
    install(monkeypatch, tmp_path, "broken", f"bnnfx.{group}", {"mine": "broken:own"}, source)
    install(monkeypatch, tmp_path, "other", "bnnfx.schemes", {"own": "other:own"}, SCHEME)
    with pytest.warns(UserWarning) as caught:
        known = bnnfx.schemes(), bnnfx.targets()
    (text,) = [str(w.message) for w in caught]
    assert text.startswith(f"The entry point 'mine' of group bnnfx.{group} (broken:own) is left out: {reason}")
    assert text.endswith("Update or uninstall broken.")
    assert known == (["binaryduo", "bireal", "own", "rbnn", "xnor"], ["bnnfx", "standard"])
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        bnnfx.convert(Chain(), "own")
        assert (bnnfx.schemes(), bnnfx.targets()) == known
