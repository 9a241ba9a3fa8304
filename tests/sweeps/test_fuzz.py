"""A few cases of `fuzz.py`, and that each of its parts can fail; `make fuzz N=...` runs more."""

from pathlib import Path
from typing import Any

import fuzz
import onnx
import pytest
from helpers.random_networks import KINDS, random_network

from bnnfx.api import content_of

NETWORKS, FILES = (0, 5), 40
MANY = 100


@pytest.mark.parametrize("seed", NETWORKS)
def test_random_networks(seed: int) -> None:
    outcome = fuzz.network_case(seed)
    assert outcome.kind == "right", outcome.detail


def test_mutated_files() -> None:
    said: list[str] = []
    counts = fuzz.fuzz("files", list(range(FILES)), said.append)
    assert said == []
    assert counts.total() == FILES and min(counts["right"], counts["refused"]) > 0


def test_every_kind_is_written_with_its_shapes() -> None:
    """What an entry says of its result is so: a layer behind it, or a sum, would not fit else."""
    written = dict.fromkeys(KINDS, 0)
    for seed in range(MANY):
        network = random_network(seed)
        for name in network.kinds:
            written[name] += 1
        network.build(seed).eval()(*network.inputs(2, seed))
    assert min(written.values()) > 0, written


def test_a_network_that_raises_is_a_raw_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise KeyError("k")

    monkeypatch.setattr(fuzz, "run_network", fail)
    outcome = fuzz.network_case(0)
    assert outcome.kind == "raw error" and "class Net(nn.Module)" in outcome.detail


def test_a_wrong_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of a weight is another one."""

    def spoiled(*arguments: Any, **options: Any) -> bytes:
        model = onnx.load_from_string(content_of(*arguments, **options))
        weight = next(t for t in model.graph.initializer if "weight_bits" in t.name)
        weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
        return bytes(model.SerializeToString())

    monkeypatch.setattr(fuzz, "content_of", spoiled)
    outcome = fuzz.network_case(NETWORKS[0])
    assert outcome.kind == "wrong" and "class Net(nn.Module)" in outcome.detail


def test_a_process_that_ends_is_found(tmp_path: Path) -> None:
    runner = fuzz.Worker()
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert runner.run(tmp_path / "empty.onnx").kind == "refused"
    assert runner.process is not None
    runner.process.kill()
    assert runner.run(tmp_path / "empty.onnx").kind == "wrong"
    runner.close()
