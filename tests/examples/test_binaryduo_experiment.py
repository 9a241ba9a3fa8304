"""The experiment of BinaryDuo's two stages runs, and its page says what its numbers say."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bnnfx.schemes.scheme import SCHEMES

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def binaryduo():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        patch.setattr(SCHEMES, "_things", SCHEMES.known())  # the baseline's scheme is for here only
        import binaryduo

        yield binaryduo


def runs(binaryduo, gains, split_gain=0.0):
    """Runs whose fine-tuned network is better than the baseline by `gains` (shares)."""
    made = []
    for gain in gains:
        values = (0.5, 0.6, 0.6 + split_gain, 0.5 + gain)
        run = binaryduo.Run(dict(zip(binaryduo.STAGES, values, strict=True)))
        run.weights = dict.fromkeys(binaryduo.STAGES, 10)
        made.append(run)
    return made


@pytest.mark.parametrize(
    ("gains", "text"),
    [
        ([0.01, 0.02, 0.03], "+2.00 ± 1.00 percentage points: higher"),
        ([-0.01, -0.02, -0.03], "-2.00 ± 1.00 percentage points: lower"),
        ([-0.01, 0.02, 0.01], "+0.67 ± 1.53 percentage points: not resolved"),
        ([0.05], "+5.00 ± inf percentage points: not resolved"),
    ],
)
def test_reading_follows_from_the_numbers(binaryduo, gains, text):
    page = binaryduo.report(
        runs(binaryduo, gains, split_gain=-0.005),
        SimpleNamespace(epochs=3, coupled_epochs=2, train_images=1, test_images=1),
        "made up",
        "command",
    )
    assert f"* Split, fine-tuned against baseline: {text}." in page
    assert "at most 0.50 percentage points" in page
    assert "| split, fine-tuned | {0, 1} | 2 + 1 | 10 |" in page


def test_runs_from_end_to_end(binaryduo, monkeypatch, tmp_path, capsys):
    images = torch.randn(300, 1, 28, 28)
    labels = torch.randint(0, 10, (300,))
    data = SimpleNamespace(name="random images", train=(images, labels), test=(images[:50], labels[:50]))
    monkeypatch.setattr(binaryduo, "load_images", lambda: data)
    page = tmp_path / "new" / "page.md"
    arguments = ["--epochs", "2", "--coupled-epochs", "1", "--seeds", "1", "--limit", "256", "--output", str(page)]
    monkeypatch.setattr(sys, "argv", ["binaryduo.py", *arguments])
    binaryduo.main()
    text = page.read_text()
    assert text.strip() in capsys.readouterr().out
    assert [p.name for p in page.parent.iterdir()] == ["page.md"]
    weights = [int(line.split("|")[4].replace(",", "")) for line in text.splitlines() if line.startswith("| split")]
    baseline = next(line for line in text.splitlines() if line.startswith("| baseline"))
    assert 0 < weights[0] <= int(baseline.split("|")[4].replace(",", ""))
    assert "256 training and 50 test images" in text


def test_stages_need_an_epoch_each(binaryduo, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["binaryduo.py", "--epochs", "3", "--coupled-epochs", "3"])
    with pytest.raises(SystemExit) as refused:
        binaryduo.main()
    assert refused.value.code == 2
