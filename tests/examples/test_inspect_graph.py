"""The example runs for every scheme, and its guide shows what it prints and draws."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bnnfx
from bnnfx import pipelines

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURES = ("float.svg", "trainable.svg", "packed.svg")


@pytest.fixture(scope="module", params=bnnfx.schemes())
def run(request, tmp_path_factory):
    """Scheme, what the example prints, and its folder."""
    pytest.importorskip("fast_sugiyama", reason="drawing is an extra")
    folder = tmp_path_factory.mktemp("example")
    command = [sys.executable, str(EXAMPLES / "inspect_graph.py"), "--scheme", request.param, "--output", "pictures"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # the test runner has a process per core
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=one_thread, check=False)
    assert done.returncode == 0, done.stderr
    return request.param, done.stdout, folder / "pictures"


def test_it_shows_every_pass_and_writes_its_files(run):
    scheme, printed, folder = run
    told = re.findall(r"^(\w+): \d+ applied", printed, re.MULTILINE)
    passes = pipelines.CONVERT + (pipelines.SPLIT if scheme == "binaryduo" else ()) + pipelines.LOWER
    assert told == [kind.__name__ for kind in passes]
    assert "\nequal: " in printed
    assert {path.name for path in folder.iterdir()} == {*PICTURES, "report.html"}
    assert all((folder / name).read_text().startswith("<svg") for name in PICTURES)


@pytest.mark.parametrize("run", ["rbnn"], indirect=True)
def test_guide_quotes_what_it_prints(run):
    _, printed, _ = run
    lines = set(printed.splitlines())
    quoted = re.findall(r"```diff\n(.*?)```", (EXAMPLES / "inspect_graph.md").read_text(), re.DOTALL)
    assert len(quoted) == 6
    for block in quoted:
        assert set(block.splitlines()) <= lines


@pytest.mark.parametrize("run", ["rbnn"], indirect=True)
def test_pictures_of_the_guide_are_those_of_the_example(run):
    """Up to coordinates, which may move with the library that ranks the nodes."""
    _, _, folder = run
    for name in PICTURES:
        ids = [
            sorted(re.findall(r' id="([^"]+)"', (at / name).read_text())) for at in (folder, EXAMPLES / "inspect_graph")
        ]
        assert ids[0] == ids[1] and len(ids[0]) > 20
