"""`load` and `Session.run`."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import bnnfx
from bnnfx import Config


class TwoByTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(2, 6, 3)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(left) + self.b(right), left.mean((2, 3))


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 7, 9, generator=generator), torch.randn(2, 2, 7, 9, generator=generator)


@pytest.fixture(scope="module")
def path(inputs: tuple[Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    gm = bnnfx.convert(TwoByTwo(), "bireal", config=Config(keep_float=()))
    return bnnfx.export_onnx(gm, tmp_path_factory.mktemp("session") / "m.onnx", example_inputs=inputs)


@pytest.fixture(scope="module")
def session(path: Path) -> bnnfx.Session:
    return bnnfx.load(path, threads=1)


def test_numpy_and_torch(session: bnnfx.Session, inputs: tuple[Tensor, Tensor]) -> None:
    from_torch = session.run(*inputs)
    from_numpy = session.run(*(x.numpy() for x in inputs))
    mixed = session.run(inputs[0].clone().requires_grad_(), inputs[1].numpy())
    assert isinstance(from_torch, tuple) and len(from_torch) == 2
    for other in (from_numpy, mixed):
        assert all(isinstance(a, np.ndarray) and np.array_equal(a, b) for a, b in zip(from_torch, other, strict=True))


def test_memory_layout_does_not_matter(session: bnnfx.Session, inputs: tuple[Tensor, Tensor]) -> None:
    expected = session.run(*inputs)
    strided = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    assert all(np.array_equal(a, b) for a, b in zip(session.run(*strided), expected, strict=True))


def test_one_output_is_an_array(tmp_path: Path) -> None:
    gm = bnnfx.convert(nn.Sequential(nn.Conv2d(3, 4, 3)), "xnor", config=Config(keep_float=()))
    path = bnnfx.export_onnx(gm, tmp_path / "m.onnx", example_inputs=(torch.zeros(1, 3, 5, 5),))
    assert isinstance(bnnfx.load(str(path)).run(torch.zeros(3, 3, 5, 5)), np.ndarray)


def test_ort_is_the_session_itself(session: bnnfx.Session) -> None:
    assert isinstance(session.ort, onnxruntime.InferenceSession)
    assert session.ort.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("kernels", [False, True])
def test_results_do_not_depend_on_the_options(
    path: Path, session: bnnfx.Session, inputs: tuple[Tensor, Tensor], threads: int, kernels: bool
) -> None:
    given = bnnfx.load(path, threads=threads, kernels=kernels).run(*inputs)
    assert np.array_equal(given[0], session.run(*inputs)[0])


def test_wrong_count(session: bnnfx.Session, inputs: tuple[Tensor, Tensor]) -> None:
    for given in ((), inputs[:1], (*inputs, inputs[0])):
        with pytest.raises(ValueError, match=rf"takes 2 input\(s\) \(left, right\); got {len(given)}"):
            session.run(*given)


def test_wrong_shape_or_type_names_the_input(session: bnnfx.Session, inputs: tuple[Tensor, Tensor]) -> None:
    left, right = inputs
    for wrong in (right[:, :1], right[..., :3], right[0], right.double(), right.int()):
        with pytest.raises(ValueError, match=r"right tensor\(float\) \['batch', 2, 7, 9\]; got"):
            session.run(left, wrong)


def test_bytes_of_an_array(session: bnnfx.Session, inputs: tuple[Tensor, Tensor]) -> None:
    """Their order, alignment and direction do not matter; nor does a view that negates what it shows."""
    expected = session.run(*inputs)
    left, right = (x.numpy() for x in inputs)
    raw = b"." + right.tobytes()
    forms = [
        right.astype(">f4"),
        right.astype("<f4"),
        np.frombuffer(raw, np.float32, offset=1).reshape(right.shape),
        right[..., ::-1].copy()[..., ::-1],
        np.asfortranarray(right),
        torch.complex(torch.zeros_like(inputs[1]), -inputs[1]).conj().imag,
    ]
    assert forms[-1].is_neg()
    for form in forms:
        assert all(np.array_equal(a, b) for a, b in zip(session.run(left, form), expected, strict=True))


OTHER_TYPES = ["float64", "float16", "int64", "uint8", "bool", "complex64", "object", "str", "datetime64[s]", "f4,f4"]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", OTHER_TYPES)
def test_other_types_are_refused(session: bnnfx.Session, inputs: tuple[Tensor, Tensor], name: str, order: str) -> None:
    wrong = np.zeros(inputs[1].shape, np.dtype(name).newbyteorder(order))
    with pytest.raises(ValueError, match=r"right tensor\(float\) \['batch', 2, 7, 9\]; got"):
        session.run(inputs[0], wrong)


def test_lists_of_numbers(session: bnnfx.Session, inputs: tuple[Tensor, Tensor]) -> None:
    """They are float64 for numpy."""
    with pytest.raises(ValueError, match=r"got float32 .* float64"):
        session.run(inputs[0], inputs[1].tolist())


class Streams(nn.Module):
    """Our operators alone, and behind them a mean, which is the runtime's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 70, 3), nn.Conv2d(70, 64, 3), nn.Conv2d(64, 64, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (70, 64, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norms[1](self.b(self.norms[0](self.a(x))))
        x = x + self.norms[2](self.c(x))
        return x, x.mean((2, 3))


def test_what_is_equal_to_the_last_bit(tmp_path: Path) -> None:
    """Outputs of our operators, whatever computes them; a mean within the rounding of its sum."""
    torch.manual_seed(0)
    x = torch.randn(3, 3, 15, 17)
    gm = bnnfx.convert(Streams(), "bireal", config=Config(keep_float=()))
    path = bnnfx.export_onnx(gm, tmp_path / "m.onnx", example_inputs=(x,))
    runs = [bnnfx.load(path, threads=n, kernels=k).run(x) for n in (1, 2, 3) for k in (True, False)]
    for stream, mean in runs[1:]:
        assert stream.tobytes() == runs[0][0].tobytes()
        pixels = stream.shape[2] * stream.shape[3]
        assert np.abs(mean - runs[0][1]).max() <= pixels * 2.0**-23 * np.abs(stream).max()
