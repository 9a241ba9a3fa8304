"""Real images for the examples: Fashion-MNIST where it can be had, else the small digits that scikit-learn ships."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
DOWNLOAD_FOLDER = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Images:
    """A data set in memory: images `float32[N, 1, H, W]`, standardized, and labels `int64[N]`."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load_images() -> Images:
    """Fashion-MNIST from Debian's package, else downloaded by torchvision, else scikit-learn's digits."""
    if (DEBIAN_FOLDER / "train-images-idx3-ubyte.gz").is_file():
        return _fashion_mnist(DEBIAN_FOLDER, "Fashion-MNIST (Debian's dataset-fashion-mnist)")
    try:
        return _fashion_mnist(_download(), "Fashion-MNIST (downloaded by torchvision)")
    except (ImportError, OSError, RuntimeError) as error:
        return _digits(f"scikit-learn's digits, as Fashion-MNIST could not be had ({type(error).__name__})")


def _download() -> Path:
    from bnnfx._torchvision import import_torchvision

    import_torchvision()
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(DOWNLOAD_FOLDER), download=True)
    return DOWNLOAD_FOLDER / "FashionMNIST" / "raw"


def _fashion_mnist(folder: Path, name: str) -> Images:
    parts = []
    for split in ("train", "t10k"):
        pixels = _read_idx(folder / f"{split}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
        labels = _read_idx(folder / f"{split}-labels-idx1-ubyte.gz", header=8)
        parts.append((_standardize(torch.from_numpy(pixels / np.float32(255))), torch.from_numpy(labels).long()))
    return Images(name, *parts)


def _read_idx(path: Path, header: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header).copy()


def _digits(name: str) -> Images:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    images = _standardize(torch.nn.functional.interpolate(images, size=(28, 28), mode="bilinear"))
    labels = torch.from_numpy(data.target).long()
    return Images(name, (images[:1500], labels[:1500]), (images[1500:], labels[1500:]))


def _standardize(images: Tensor) -> Tensor:
    return (images - images.mean()) / images.std()
