"""`split_optimizer_state`: what is kept of every parameter, and the chain rule that the factors come from."""

import copy

import pytest
import torch
from helpers import ternary
from torch import Tensor, fx, nn

import bnnfx

FACTORS = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "square_avg": 2, "sum": 2}
OPTIMIZERS = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW, amsgrad": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
}


def images(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model(images(seed)).square().mean().backward()
    optimizer.step()


def trained(make, network=lambda: ternary.Resnet(each=True)) -> tuple[fx.GraphModule, torch.optim.Optimizer]:
    torch.manual_seed(0)
    gm = ternary.trainable(network()).train()
    optimizer = make(gm.parameters())
    for seed in range(3):
        step(gm, optimizer, seed)
    return gm, optimizer


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_parameter_keeps_its_state(kind: str) -> None:
    make = OPTIMIZERS[kind]
    gm, optimizer = trained(make)
    split = bnnfx.split(gm)
    after = make(split.parameters())
    after.load_state_dict(bnnfx.split_optimizer_state(optimizer, gm, split))
    names = {id(p): name for name, p in split.named_parameters()}
    met = {"same": 0, "batch norm": 0, "weight": 0}
    for before, parameter in zip(gm.parameters(), split.parameters(), strict=True):
        old, new = optimizer.state[before], after.state[parameter]
        assert old.keys() == new.keys() and old, names[id(parameter)]
        for key, value in old.items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                assert new[key] == value
            elif parameter.shape == before.shape:
                assert torch.equal(new[key], value)
                met["same"] += 1
            elif value.ndim == 1:
                assert torch.equal(new[key], torch.cat([value, value]) * 0.5 ** FACTORS[key])
                met["batch norm"] += 1
            else:
                assert torch.equal(new[key], torch.cat([value, value], 1))
                met["weight"] += 1
    assert min(met.values()) > 0, met
    before = copy.deepcopy(split.state_dict())
    step(split, after, 3)
    assert all(value.isfinite().all() for value in split.state_dict().values())
    assert not torch.equal(before["1.bn1.bias"], split.get_parameter("1.bn1.bias"))


def test_groups_of_parameters_and_their_settings() -> None:
    """Weights without their own group's settings, and with; parameters that no optimizer has."""

    def make(gm: nn.Module) -> torch.optim.Optimizer:
        named = [(n, p) for n, p in gm.named_parameters() if not n.startswith("5.")]
        norms, rest = ([p for _, p in named if (p.ndim == 1) == one] for one in (True, False))
        return torch.optim.SGD([{"params": rest, "lr": 0.5}, {"params": norms, "weight_decay": 0.0}], 0.1, momentum=0.9)

    torch.manual_seed(0)
    gm = ternary.trainable(ternary.Resnet(each=True)).train()
    optimizer = make(gm)
    step(gm, optimizer, 0)
    split = bnnfx.split(gm)
    after = make(split)
    after.load_state_dict(bnnfx.split_optimizer_state(optimizer, gm, split))
    assert [group["lr"] for group in after.param_groups] == [0.5, 0.1]
    assert {tuple(p.shape) for p in after.state} == {tuple(p.shape) for g in after.param_groups for p in g["params"]}
    for parameter, entries in after.state.items():
        assert entries["momentum_buffer"].shape == parameter.shape


def test_optimizer_that_never_stepped() -> None:
    gm = ternary.trainable(ternary.Vgg()).train()
    split = bnnfx.split(gm)
    state = bnnfx.split_optimizer_state(torch.optim.Adam(gm.parameters()), gm, split)
    assert state["state"] == {}
    torch.optim.Adam(split.parameters()).load_state_dict(state)


@pytest.mark.parametrize("float_weights", [False, True])
def test_gradient_of_a_weight_is_the_mean_of_its_halves(float_weights: bool) -> None:
    """Of the last layer behind an activation, whose gradient no pseudo-gradient has touched."""
    layer = nn.Conv2d(4, 5, 3) if float_weights else ternary.conv(4, 5)
    torch.manual_seed(1)
    gm = ternary.trainable(ternary.wired(lambda m, x: m.last(m.ta(m.s(x))), last=layer)).train()
    split = bnnfx.split(gm)
    for model in (gm, split):
        model(images()).square().mean().backward()
    whole, halves = (g.get_parameter("last.weight").grad for g in (gm, split))
    assert whole is not None and halves is not None and whole.count_nonzero() > whole.numel() / 2
    assert torch.allclose(halves.unflatten(1, (2, 4)).mean(1), whole, rtol=1e-11, atol=1e-15)
    assert not torch.allclose(halves[:, :4], halves[:, 4:], rtol=0.01)


def test_gradient_of_a_batch_norm_is_the_sum_of_its_copies() -> None:
    """Of a float layer's, read by the mean of two copies: what tied copies add up to."""
    torch.manual_seed(1)
    norm, twice = nn.BatchNorm1d(5), nn.BatchNorm1d(10)
    x = torch.randn(7, 5)
    norm(x).square().sum().backward()
    (twice(torch.cat([x, x], 1)).unflatten(1, (2, 5)).mean(1)).square().sum().backward()
    for name in ("weight", "bias"):  # float32 sums of 7 terms
        whole, halves = getattr(norm, name).grad, getattr(twice, name).grad
        assert torch.allclose(halves.unflatten(0, (2, 5)).sum(0), whole, rtol=1e-5, atol=1e-6)


def test_state_of_another_kind_starts_afresh() -> None:
    gm, optimizer = trained(lambda p: torch.optim.Adadelta(p, 0.1), ternary.Vgg)
    split = bnnfx.split(gm)
    with pytest.warns(UserWarning, match=r"Adadelta keeps state .* stem.1.weight, stem.1.bias, conv1.weight, "):
        state = bnnfx.split_optimizer_state(optimizer, gm, split)
    names = [name for name, _ in gm.named_parameters()]
    assert {names[index] for index in state["state"]} == {"stem.0.weight", "conv1.bias", "fc2.bias"}
    after = torch.optim.Adadelta(split.parameters(), 0.1)
    after.load_state_dict(state)
    step(split, after, 0)


def test_wrong_models() -> None:
    gm, optimizer = trained(OPTIMIZERS["Adam"], ternary.Vgg)
    split = bnnfx.split(gm)
    with pytest.raises(ValueError, match="that model does not have"):
        bnnfx.split_optimizer_state(optimizer, copy.deepcopy(gm), split)
    with pytest.raises(ValueError, match=r"parameter \(stem.0.weight\) that split_model lacks"):
        bnnfx.split_optimizer_state(optimizer, gm, nn.Linear(1, 1))
    wider = ternary.trainable(ternary.Vgg())
    wider.get_submodule("conv1").weight = nn.Parameter(torch.zeros(7, 6, 3, 3))  # type: ignore[union-attr, assignment]
    with pytest.raises(
        ValueError, match=r"'conv1.weight' is \[7, 5, 3, 3\] in model and \[7, 6, 3, 3\] in split_model"
    ):
        bnnfx.split_optimizer_state(optimizer, gm, wider)
