"""The quickstart runs from end to end on few images; its data module reads what it says it reads."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def images(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import images

    return images


@pytest.mark.parametrize("scheme", ["rbnn", "binaryduo"])
def test_quickstart_prints_its_table_and_leaves_a_file(tmp_path, scheme):
    output = tmp_path / "q.onnx"
    command = [
        sys.executable,
        str(EXAMPLES / "quickstart.py"),
        "--scheme",
        scheme,
        "--limit",
        "500",
        "--epochs",
        "1",
        "--float-epochs",
        "1",
    ]
    done = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    packed = next(line for line in done.stdout.splitlines() if line.startswith("│ packed"))
    onnx = next(line for line in done.stdout.splitlines() if line.startswith("│ onnxruntime"))
    assert "0 of 500" in onnx and packed.split("│")[2] == onnx.split("│")[2]
    assert f"{output.stat().st_size:,}" in onnx
    assert "\nequal: " in done.stdout


def test_idx_files_are_read_as_written(images, tmp_path):
    pixels = np.arange(2 * 28 * 28, dtype=np.uint8)
    for split in ("train", "t10k"):
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + bytes([3, 9])))
    x, y = images._fashion_mnist(tmp_path, "made up").test
    assert y.tolist() == [3, 9]
    raw = torch.from_numpy(pixels.reshape(2, 1, 28, 28).astype(np.float32))
    expected = (raw - raw.mean()) / raw.std()
    # a mean of 1568 numbers, a division and a scale: a handful of roundings of numbers below 2
    torch.testing.assert_close(x, expected, rtol=0, atol=2 * 1568**0.5 * 2.0**-24)


def test_without_fashion_mnist_it_says_so_and_takes_digits(images, monkeypatch, tmp_path):
    def refuse() -> Path:
        raise OSError("no network")

    monkeypatch.setattr(images, "DEBIAN_FOLDER", tmp_path)
    monkeypatch.setattr(images, "_download", refuse)
    data = images.load_images()
    assert "digits" in data.name and "OSError" in data.name
    assert data.train[0].shape == (1500, 1, 28, 28) and data.test[1].unique().tolist() == list(range(10))
