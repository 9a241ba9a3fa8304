"""For all tests; its place puts tests/ on the import path, so that any folder can `from models import ...`."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the test runner has a process per core


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
