"""Python decisions about sizes are made while a model is traced, and hold in the graph; others are not made."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnnfx
from bnnfx import ConversionError
from bnnfx.graph.dataflow import calls
from bnnfx.private_interfaces import assertion

Forward = Callable[..., Any]


class Net(nn.Module):
    """A stem `a`, binary layers `b`, `many` and `chain`, and a last layer `c`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 3)
        self.many = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.chain = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)))


def if_size(m: Any, x: Tensor) -> Any:
    x = m.b(m.a(x))
    return m.c(F.max_pool2d(x, 2) if x.shape[-1] > 7 else x)


def else_size(m: Any, x: Tensor) -> Any:
    x = m.b(m.a(x))
    return m.c(F.max_pool2d(x, 2) if x.shape[-1] > 70 else x)


def assert_sizes(m: Any, x: Tensor) -> Any:
    assert x.shape[1] == 3 and x.dim() == 4, f"got {x.shape}"
    _, _, h, _ = x.shape
    assert h % 2 == 0
    return m.c(m.b(m.a(x)))


def torch_asserts(m: Any, x: Tensor) -> Any:
    assertion(x.shape[-1] == 12, "sizes")
    return m.c(m.b(m.a(x)))


def optional(m: Any, x: Tensor, mask: Tensor | None = None, scale: float = 0.5) -> Any:
    x = m.b(m.a(x))
    return m.c((x if mask is None else x * mask) * scale)


def keyword_only(m: Any, x: Tensor, *, features: bool = False) -> Any:
    x = m.b(m.a(x))
    return (m.c(x), x) if features else m.c(x)


def slice_of_layers(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    for layer in m.many[1:3]:
        x = layer(x)
    return m.c(m.chain[:2](x))


def loop(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    return m.c(torch.cat([m.b(x)[:, 8 * i : 8 * i + 8] for i in range(x.size(1) // 8)], 1))


def windows(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    n, c, h, w = x.shape
    pad = (4 - h % 4) % 4
    if pad > 0:
        x = F.pad(x, (0, pad, 0, pad))
    x = m.b(x)
    x = x.view(n, c, (h + pad) // 4, 4, (w + pad) // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)
    return m.c(m.many[0](x).reshape(n, -1, c, 4, 4).mean(1))


def starred(m: Any, x: Tensor) -> Any:
    x = m.b(m.a(x))
    return m.c(x.new_ones(*x.shape[1:]) + x)


def lengths(m: Any, x: Tensor) -> Any:
    x = m.b(m.a(x))
    parts = x.chunk(2, 1)
    return m.c(torch.cat([parts[i] for i in range(len(parts))][::-1], 1) + len(x.shape))


def builtin_max(m: Any, x: Tensor) -> Any:
    x = m.b(m.a(x))
    return m.c(x[:, :, : max(x.shape[2] - 3, 1)])


def arange(m: Any, x: Tensor) -> Any:
    x = m.b(m.a(x))
    return m.c(x + torch.arange(x.shape[-1]) / 10)


def integer(m: Any, x: Tensor) -> Any:
    x = m.b(m.a(x))
    n = int(x.shape[2] * 0.5)
    return m.c(F.interpolate(x, size=(n, n)))


def made_for_the_call(m: Any, x: Tensor) -> Any:
    return m.c(nn.Softmax(dim=1)(m.b(m.a(x))) * 5)


def iterated(m: Any, x: Tensor) -> Any:
    return m.c(torch.stack([y * i for i, y in enumerate(m.b(m.a(x)).unbind(1))], 1))


SIZES = (if_size, else_size, assert_sizes, torch_asserts, optional, keyword_only, slice_of_layers, loop, windows)
SIZES += (starred, lengths, builtin_max, arange, integer, made_for_the_call, iterated)


def network(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    return type(forward.__name__, (Net,), {"forward": forward})()  # type: ignore[no-any-return]


def images(size: int = 12, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("forward", SIZES)
def test_decisions_about_sizes(forward: Forward, tmp_path: Path) -> None:
    """The whole chain, without a leaf, and for another batch than that of the examples."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = bnnfx.convert(network(forward), "xnor", example_inputs=(images(),)).eval()
    packed = bnnfx.lower(gm, (images(),))
    bnnfx.export_onnx(packed, tmp_path / "m.onnx")
    assert bnnfx.verify(gm, tmp_path / "m.onnx", (images(batch=3),))
    assert bnnfx.verify(gm, tmp_path / "m.onnx", (images(batch=1),))
    assert not any(calls(node, assertion) for node in packed.graph.nodes)


@pytest.mark.parametrize(("forward", "size"), [(if_size, 6), (else_size, 80), (assert_sizes, 11), (windows, 14)])
def test_inputs_for_which_a_decision_is_another(forward: Forward, size: int) -> None:
    gm = bnnfx.convert(network(forward), "xnor", example_inputs=(images(),))
    with pytest.raises(AssertionError, match="which a decision in forward was made for when it was traced"):
        gm(images(size))


@pytest.mark.parametrize("forward", [if_size, windows])
def test_other_sizes_for_which_it_is_the_same(forward: Forward) -> None:
    gm = bnnfx.convert(network(forward), "xnor", example_inputs=(images(),))
    for size in (16, 20):
        x = images(size)
        torch.testing.assert_close(gm(x), bnnfx.convert(network(forward), "xnor", example_inputs=(x,))(x))


def test_sizes_that_nothing_decides_by_stay_free() -> None:
    class Upsampling(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x))
            return F.interpolate(self.c(y), size=x.shape[2:])  # type: ignore[no-any-return]

    gm = bnnfx.convert(Upsampling(), "xnor", example_inputs=(images(),))
    assert not any(calls(node, assertion) for node in gm.graph.nodes)
    assert gm(images(20)).shape == (2, 4, 20, 20)


def by_batch(m: Any, x: Tensor) -> Any:
    x = m.b(m.a(x))
    return m.c(x * 2 if x.shape[0] > 1 else x)


def by_half_a_batch(m: Any, x: Tensor) -> Any:
    x = m.b(m.a(x))
    return m.c(x * 2 if x.shape[0] % 2 == 0 else x)


def by_what_is_left(m: Any, x: Tensor) -> Any:
    """Of a batch of any size it is 1, or 0: `divmod` of what depends on the batch does, too."""
    x = m.b(m.a(x))
    return m.c(x * 2 if x.shape[0] // 1000 == 0 else x)


def along_the_batch(m: Any, x: Tensor) -> Any:
    return m.c(torch.stack([y * i for i, y in enumerate(m.b(m.a(x)))], 0))


def by_value(m: Any, x: Tensor) -> Any:
    x = m.b(m.a(x))
    return m.c(x * 2 if x.sum() > 0 else x)


def by_element_type(m: Any, x: Tensor) -> Any:
    """Which another one may be in use: autocast."""
    x = m.b(m.a(x))
    return m.c(x.float() if x.dtype == torch.bfloat16 else x)


def by_item(m: Any, x: Tensor) -> Any:
    x = m.b(m.a(x))
    return m.c(x[:, :, : int(x.abs().mean()) + 5])


OTHERS = (by_batch, by_half_a_batch, by_what_is_left, along_the_batch, by_value, by_item, by_element_type)


@pytest.mark.parametrize("forward", OTHERS)
def test_decisions_that_are_refused(forward: Forward) -> None:
    with pytest.raises(ConversionError, match=r"it decides by values, .* or by the size of the batch, which stays"):
        bnnfx.convert(network(forward), "xnor", example_inputs=(images(),))


def test_without_examples_nothing_is_known() -> None:
    with pytest.raises(ConversionError, match="it decides by a value that is not known; example_inputs tell sizes"):
        bnnfx.convert(network(if_size), "xnor")


def test_nothing_of_the_model_is_changed() -> None:
    """Fakes go through copies of its modules, and draw no random numbers."""

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.shape)
            return x * 2 if bool((x.sum() * 0 == 0).item()) else x

    class Root(Net):
        def __init__(self) -> None:
            super().__init__()
            self.keeping, self.drop, self.bn = Keeping(), nn.Dropout(), nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(self.bn(self.b(self.keeping(self.a(x)))))
            return self.c(x)  # type: ignore[no-any-return]

    model = Root()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="'keeping' is kept as a float leaf"):
        gm = bnnfx.convert(model, "bireal", example_inputs=(images(),))
    assert torch.equal(torch.get_rng_state(), state) and not model.keeping.seen
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(type(shape) is torch.Size for shape in gm.get_submodule("keeping").seen)  # type: ignore[union-attr]


def test_names_that_methods_have() -> None:
    """An argument called size is an input though nothing reads it, and a module called dim gives a tensor."""

    class Named(Net):
        def __init__(self) -> None:
            super().__init__()
            self.dim = nn.Sigmoid()

        def forward(self, x: Tensor, size: Tensor) -> Tensor:
            y = self.a(x)
            z = self.dim(y)
            w = z.view(-1)
            w.mul_(2.0)
            return self.c(self.b(y + z))  # type: ignore[no-any-return]

    with pytest.raises(ConversionError, match=r"writes into memory that 'add' reads as 'dim'"):
        bnnfx.convert(Named(), "xnor", example_inputs=(images(), images()))

    class Unread(Net):
        def forward(self, x: Tensor, size: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)))  # type: ignore[no-any-return]

    gm = bnnfx.convert(Unread(), "xnor", example_inputs=(images(), images()))
    assert [node.name for node in gm.graph.nodes if node.op == "placeholder"] == ["x", "size"]


def test_a_size_is_held_to_once() -> None:
    class Often(Net):
        def forward(self, x: Tensor) -> Tensor:
            parts = self.b(self.a(x)).unbind(1)
            for _ in range(3):
                assert len(parts) == 16 and x.shape[2] == 12
            return self.c(torch.stack(list(parts), 1))  # type: ignore[no-any-return]

    gm = bnnfx.convert(Often(), "xnor", example_inputs=(images(),))
    assert sum(calls(node, assertion) for node in gm.graph.nodes) == 4  # the length; a comparison for each of three
