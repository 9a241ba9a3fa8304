"""What writes into its input: every form is found, made functional where that is safe, and else not touched."""

import operator
from collections.abc import Callable

import pytest
import torch
from helpers.graphs import run_pass
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnnfx
from bnnfx import ConversionError
from bnnfx.frontend.trace import trace
from bnnfx.passes.convert.functionalize_inplace import FunctionalizeInplace


@fx.wrap
def double_(y: Tensor) -> Tensor:
    """A user's own function, named like those that write in place."""
    return y.mul_(2.0)


@fx.wrap
def quietly(y: Tensor) -> None:
    """A user's own function that writes, and says so nowhere."""
    y.mul_(2.0)


class Unused(nn.Module):
    """An in-place call whose result nobody reads."""

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.write(y)
        return self.last(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "write",
    [
        lambda y: y.mul_(-3.0),
        lambda y: F.elu_(y),
        lambda y: F.relu(y, True),
        lambda y: F.leaky_relu(y, 0.1, inplace=True),
        lambda y: torch.sigmoid_(y),
        lambda y: torch.add(y, 1.0, out=y),
        lambda y: y.add_(1).mul_(2).clamp_(-1, 1),
        lambda y: y.transpose_(2, 3),
        lambda y: operator.iadd(y, 1.0),
        lambda y: y.__imul__(2.0),
        lambda y: y.zero_(),
        lambda y: y.fill_(2.0),
        lambda y: operator.setitem(y, (slice(None), 0), 0.0),
        lambda y: operator.setitem(y, (0, [0, 2]), y[0, :2] * 2),
        lambda y: operator.setitem(y, y > 0, 0.5),
        lambda y: operator.setitem(y, (..., slice(None, 2)), y[..., 2:4]),
        lambda y: y[:, :2].mul_(2.0),
        lambda y: operator.setitem(y, 1, operator.iadd(y[1], 1.0)),
    ],
)
def test_result_that_is_not_read(write: Callable[[Tensor], object]) -> None:
    torch.manual_seed(0)
    model = Unused(write).eval()
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        ran = run_pass(FunctionalizeInplace, model)
        assert torch.equal(ran.gm(x), model(x))
    assert "_(" not in ran.after.replace("__", "")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda y: y[:, :2][:, 1:].mul_(2.0), "memory that"),
        (lambda y: y[:, [0, 2]].mul_(2.0), "memory that"),
        (lambda y: y[0].mul_(2.0).add_(1.0), "memory that"),
        (lambda y: y.flatten(2).neg_(), "memory that"),
        (lambda y: y.chunk(2, 1)[0].relu_(), "memory that"),
        (lambda y: y.detach().mul_(2.0), "memory that"),
        (lambda y: y.to(torch.float32).mul_(2.0), "memory that"),
        (lambda y: torch.positive(y).mul_(2.0), "memory that"),
        (lambda y: F.dropout(y, 0.5, training=False).mul_(2.0), "memory that"),
        (lambda y: double_(y), "no function gives the same"),
        (lambda y: quietly(y), "gives nothing that is read"),
        (lambda y: y.uniform_(-1, 1), "no function gives the same"),
    ],
)
def test_what_has_no_twin_or_another_name_for_its_memory(write: Callable[[Tensor], object], reason: str) -> None:
    with pytest.raises(ConversionError, match=reason):
        trace(Unused(write))
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), Unused(write), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    with pytest.warns(UserWarning, match="kept as a float leaf"):
        gm = bnnfx.convert(inner.eval(), "xnor")
    assert type(gm.get_submodule("1")) is Unused


class Parts(nn.Module):
    """Parts of a tensor, written and read under several names."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.write = nn.Conv2d(3, 4, 3), write

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.conv(x))


def read_behind(y: Tensor) -> Tensor:
    part = y[:, 1:3]
    part.mul_(2.0)
    return y[:, :2] * part


def two_parts(y: Tensor) -> Tensor:
    y[:, 0] += 1.0
    y[:, 1:] *= y[:, :1]
    return y


def assigned_and_added(y: Tensor) -> Tensor:
    y[:, 0] = y[:, 1]
    y += 1.0
    return y


def other_part(y: Tensor) -> Tensor:
    before, part = y[:, :2], y[:, 1:3]
    part.mul_(2.0)
    return y[:, :2] * before


def part_of_what_is_written_later(y: Tensor) -> Tensor:
    part = y[:, 1:3]
    part.mul_(2.0)
    y.add_(1.0)
    return y[:, :2] * part


def part_before_an_assignment(y: Tensor) -> Tensor:
    part = y[:, 0]
    y[:, 0] = 3.0
    return y[:, 1] * part


@pytest.mark.parametrize("write", [read_behind, two_parts, assigned_and_added])
def test_parts_that_are_written(write: Callable[[Tensor], Tensor]) -> None:
    model, x = Parts(write).eval(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(run_pass(FunctionalizeInplace, model).gm(x), model(x))


@pytest.mark.parametrize("write", [other_part, part_of_what_is_written_later, part_before_an_assignment])
def test_other_names_of_parts_that_are_written(write: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ConversionError, match="memory that"):
        trace(Parts(write))


def test_other_names_of_a_tensor_see_what_is_added_to_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = z = self.conv(x)
            y += 1.0
            y *= 2.0
            n = m = x.shape[0]
            n += 1
            return self.last(z) * m + n  # type: ignore[no-any-return]

    model, x = Net().eval(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(run_pass(FunctionalizeInplace, model).gm(x), model(x.clone()))


def test_buffers_are_not_written() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.scale = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.scale.mul_(2.0)  # type: ignore[no-any-return]

    model = Counts().requires_grad_(False)
    with pytest.raises(ConversionError, match="'scale', which belongs to the model"):
        trace(model)
    assert model.scale.eq(1).all()


def test_copies_are_written_without_harm() -> None:
    model = Unused(lambda y: y.clone().mul_(2.0)).eval()
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(run_pass(FunctionalizeInplace, model).gm(x), model(x))


def test_views_made_behind_the_call_are_fine() -> None:
    def write(y: Tensor) -> Tensor:
        y.mul_(2.0)
        return y[:, :2]

    model = Unused(write).eval()
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(run_pass(FunctionalizeInplace, model).gm(x), model(x))


def test_module_that_is_called_for_what_it_writes() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> None:
            if x.sum() > -1e9:
                x.mul_(2.0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.odd, self.bn = nn.Conv2d(3, 4, 1), Odd(), nn.BatchNorm2d(4)
            self.second, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            self.odd(y)
            return self.last(self.second(self.bn(y)))  # type: ignore[no-any-return]

    with pytest.raises(ConversionError, match=r"'odd' .* called for what it writes into its input"):
        bnnfx.convert(Net().eval(), "xnor")
    layers = (Net(), nn.BatchNorm2d(2), *(nn.Conv2d(2, 2, 1) for _ in range(3)))
    with pytest.warns(UserWarning, match="'0' is kept as a float leaf"):
        gm = bnnfx.convert(nn.Sequential(*layers), "xnor")
    assert type(gm.get_submodule("0")) is Net
