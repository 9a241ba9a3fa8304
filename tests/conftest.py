"""For all tests; its place puts tests/ on the import path, so that any folder can `from models import ...`."""

from collections import Counter
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the test runner has a process per core


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-operators", action="store_true", help="sweep over all operators, not over a share of them")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the sweeps met, in numbers: their tests record a `Counter` of outcomes as the property "operators"."""
    counts: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", None) == "call":
            counts.update(dict(report.user_properties).get("operators", {}))
    if counts:
        text = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
        terminalreporter.write_line(f"operators in their places: {text}")


@pytest.fixture(scope="session")
def chain_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `original.onnx`, a small float network, and `chain.onnx`, its binary form."""
    from helpers.models import Chain

    import bnnfx
    from bnnfx.bench.model_forms import export_float

    folder = tmp_path_factory.mktemp("chain")
    torch.manual_seed(0)
    model = Chain().eval()
    export_float(model, model.inputs()[0], folder)
    bnnfx.export_onnx(bnnfx.convert(model, "bireal"), folder / "chain.onnx", example_inputs=model.inputs())
    return folder
