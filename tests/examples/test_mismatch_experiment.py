"""The experiment runs from end to end on tiny networks; its activation and its verdicts are what they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "gradient_mismatch", raising=False)
    import gradient_mismatch

    return gradient_mismatch


def test_prints_its_table_and_draws_it(tmp_path):
    command = [sys.executable, str(EXAMPLES / "gradient_mismatch.py"), "--seeds", "2", "--width", "8", "--batch", "64"]
    command += ["--coordinates", "10", "--epsilon", "0.2", "--output", "r.md", "--plot", "r.svg"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.md").read_text() == done.stdout
    rows = re.findall(r"^\| 0\.2 \| (layer \d) \| ([\w ]+) \|", done.stdout, re.MULTILINE)
    assert len(rows) == len(set(rows)) == 3 * 5
    assert "--width 8" in done.stdout and "nan" not in done.stdout
    assert "ternary against binary:" in done.stdout
    assert "<svg" in (tmp_path / "r.svg").read_text()


@pytest.mark.parametrize("arguments", [["--seeds", "1"], ["--output", "nowhere/r.md"], ["--plot", "r.txt"]])
def test_wrong_arguments_are_noticed_before_anything_runs(experiment, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gradient_mismatch.py", *arguments])
    monkeypatch.setattr(experiment, "measure", lambda *given: pytest.fail("it ran"))
    with pytest.raises(SystemExit, match="2"):
        experiment.main()
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_activation_rounds_and_its_clipped_identity_is_hardtanh(experiment, steps):
    activation = experiment.UniformActivation(steps)
    x = torch.linspace(-1, 2, 601, dtype=torch.float64) + 1e-4  # away from the ties and from the joints of the steps
    x.requires_grad_()
    y = activation(x)
    expected = torch.floor(x.detach().clamp(0, 1) * steps + 0.5) / steps
    assert torch.equal(y, expected)
    assert set(y.tolist()) == set(activation.levels)
    y.sum().backward()
    inside = (x > 0) & (x < 1)
    assert torch.equal(x.grad, inside.double())


def test_area_under_every_approximator_is_the_rise(experiment):
    """From 0 to 1, however many steps; the identity has no end. A Riemann sum over steps of 1e-4."""
    x = torch.linspace(-20, 21, 410_001, dtype=torch.float64, requires_grad=True)
    seen = 0
    for name, approximator in experiment.APPROXIMATORS.items():
        for steps in experiment.KINDS.values():
            (gradient,) = torch.autograd.grad(experiment.UniformActivation(steps, approximator)(x).sum(), x)
            if name == "identity":
                assert torch.allclose(gradient, torch.ones_like(x), rtol=0, atol=1e-15)
            else:
                # a box has two ends per step, at which the sum may be off by a height of 1 times 1e-4
                assert float(gradient.sum()) * 1e-4 == pytest.approx(1, abs=1e-3)
            seen += 1
    assert seen == 15


def test_verdicts(experiment):
    assert experiment.difference([1.0, 1.1], [0.0, 0.1])[2] == "higher"
    assert experiment.difference([0.0, 0.1], [1.0, 1.3])[2] == "lower"
    assert experiment.difference([1.0, 0.0], [0.5, 0.5])[2] == "not resolved"
    assert experiment.tally(["higher", "higher"]) == "higher in all of 2"
    assert (
        experiment.tally(["higher", "lower", "not resolved"])
        == "higher in 1 of 3, lower in 1 of 3, not resolved in 1 of 3"
    )
