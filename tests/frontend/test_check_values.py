"""What is traced wrongly is found by value, and kept whole or refused."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnnfx
from bnnfx import ConversionError
from bnnfx.frontend.check_values import first_difference
from bnnfx.frontend.trace import trace


class Block(nn.Module):
    """Something that tracing does not see, between a binary layer and its norm."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.does = forward
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.does(self, x)


class Net(nn.Module):
    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.conv, self.bn, self.last = (
            *(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)),
        )
        self.block = nn.Sequential(nn.ReLU(), Block(forward))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.block(self.conv(self.stem(x)))))  # type: ignore[no-any-return]


def by_type(block: nn.Module, x: Tensor) -> Tensor:
    """A proxy is no tensor."""
    return x * 2.0 if isinstance(x, Tensor) else x * 3.0


def counting(block: nn.Module, x: Tensor) -> Tensor:
    """Python state that changes at each call: tracing calls forward, too."""
    block.calls += 1
    return x * float(block.calls)


def numbered(block: nn.Module, x: Tensor) -> Tensor:
    """A constant made while tracing."""
    return x + torch.rand(8, 1, 1)


CASES = {"by type": by_type, "counting": counting, "numbered": numbered}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_submodule_that_is_traced_wrongly_is_kept_whole(name: str, training: bool) -> None:
    model = Net(CASES[name]).train(training)
    x = torch.randn(2, 3, 10, 10)
    with pytest.warns(UserWarning, match=r"'block\.1' is kept as a float leaf, it"):
        gm = bnnfx.convert(model, "xnor", example_inputs=(x,))
    assert type(gm.get_submodule("block.1")) is Block
    assert gm(x).shape == (2, 4, 6, 6)


def test_forward_of_the_model_itself_is_refused() -> None:
    class Root(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if isinstance(y, Tensor) else -y  # type: ignore[unreachable]

    x = torch.randn(2, 3, 10, 10)
    with pytest.raises(ConversionError, match=r"'Root' computes something else in train\(\) once it is traced"):
        bnnfx.convert(Root(lambda block, x: x), "xnor", example_inputs=(x,))
    gm = bnnfx.convert(Root(lambda block, x: x), "xnor", example_inputs=(x,), check=False)
    assert gm(x).shape == (2, 4, 6, 6)


@pytest.mark.parametrize(
    "forward",
    [
        lambda block, x: F.dropout2d(x, 0.5, block.training),
        lambda block, x: F.dropout(x, 0.5, training=block.training) + torch.rand_like(x),
        lambda block, x: x * 2.0 if block.training else x,
        lambda block, x: F.batch_norm(x, None, None, training=True),
        lambda block, x: F.gumbel_softmax(x, dim=1),
        lambda block, x: F.rrelu(x, training=block.training),
        lambda block, x: x.mul_(2.0),
    ],
)
def test_right_graphs_pass(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Both modes, with random numbers: the same are drawn in the same order."""
    model = Net(forward)
    x = torch.randn(2, 3, 10, 10)
    state, drawn = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gm, _, modes = trace(model)
    assert modes == (False, True)
    assert first_difference(model, gm, (x,)) is None
    assert torch.equal(drawn, torch.random.get_rng_state()) and model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_mode_in_which_the_model_does_not_run_is_left_out() -> None:
    """The first batch norm has moved when the second, with one value per channel, fails."""
    norms = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    layers = (nn.Conv2d(3, 8, 3), norms[0], nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 6), norms[1], nn.Conv2d(8, 4, 1))
    gm = bnnfx.convert(nn.Sequential(*layers), "xnor", example_inputs=(torch.randn(1, 3, 10, 10),))
    assert gm.training
