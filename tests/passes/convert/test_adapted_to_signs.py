"""What is adapted to signs: gates that a sign would not show, activation functions that it does not need."""

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import lowerable
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnnfx
from bnnfx import Config
from bnnfx.graph.dataflow import is_batch_norm, module_of
from bnnfx.nn import ActivationBinarizer, BinaryLayer

SCHEMES = bnnfx.schemes()


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool, self.act, self.gate = nn.AdaptiveAvgPool2d(1), nn.ReLU(), gate
        self.reduce, self.expand = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class Inverted(nn.Module):
    """An inverted bottleneck of mobile networks: depthwise, squeeze-and-excite, pointwise."""

    def __init__(self, act: type[nn.Module], gate: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        self.stem, self.bn, self.act = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), act()
        self.depthwise, self.bn1 = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32)
        self.se, self.pointwise, self.bn2 = SqueezeExcite(32, gate), nn.Conv2d(32, 48, 1), nn.BatchNorm2d(48)
        self.expand, self.bn3, self.fc = nn.Conv2d(48, 48, 1, bias=False), nn.BatchNorm2d(48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.depthwise(self.act(self.bn(self.stem(x))))))
        x = self.act(self.bn2(self.pointwise(self.se(x))))
        return self.fc(self.act(self.bn3(self.expand(x))).mean((2, 3)))


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "Hardsigmoid": nn.Hardsigmoid(),
    "by hand": lambda x: F.relu6(x + 3) / 6,
    "softmax": lambda x: torch.softmax(x, 1),
}
ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.LeakyReLU, nn.ELU)


def images() -> Tensor:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def converted(model: nn.Module, scheme: str = "xnor", config: Config | None = None) -> fx.GraphModule:
    torch.manual_seed(0)
    gm = bnnfx.convert(model, scheme, example_inputs=(images(),), config=config)
    bnnfx.calibrate(gm, [images()])
    return gm.eval()


def binary(gm: fx.GraphModule) -> set[str]:
    return {name for name, module in gm.named_modules() if isinstance(module, BinaryLayer)}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("gate", GATES)
def test_gates_matter(scheme: str, gate: str) -> None:
    """They stay float, a batch norm is between, and other gates give other results; and so in the packed graph."""
    gm = converted(Inverted(nn.ReLU, GATES[gate]), scheme)
    assert binary(gm) == {"pointwise", "expand"}
    before = gm(images())
    packed = bnnfx.lower(lowerable(gm), (images(),))
    assert bnnfx.verify(lowerable(gm), packed, (images(),))
    gm.get_parameter("se.expand.bias").data.mul_(torch.linspace(-8, 8, len(gm.get_parameter("se.expand.bias"))))
    after = gm(images())
    assert not torch.equal(before, after)
    assert not torch.allclose(packed(images()), bnnfx.lower(lowerable(gm), (images(),))(images()))


def test_without_the_norm_a_gate_is_dead() -> None:
    gm = converted(Inverted(nn.ReLU), config=Config(adapt=("activations",)))
    before = gm(images())
    gm.get_parameter("se.expand.bias").data.normal_(0, 3)
    assert torch.equal(before, gm(images()))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bits_vary(act: type[nn.Module], scheme: str) -> None:
    gm = converted(Inverted(act), scheme)
    seen: dict[str, Tensor] = {}
    for name, module in gm.named_modules():
        if isinstance(module, ActivationBinarizer):
            module.register_forward_hook(lambda m, given, bits, name=name: seen.update({name: bits}))
    gm(images())
    assert len(seen) == 2
    for bits in seen.values():
        assert bool((bits.transpose(0, 1).flatten(1).std(1) > 0).float().mean() > 0.9)


@pytest.mark.parametrize("act", ACTIVATIONS[1:])
def test_functions_that_keep_the_sign_are_left_out(act: type[nn.Module]) -> None:
    """Same weights, same bits, but for the zeros of Hardswish, and for what is so small that GELU gives -0."""
    gm = converted(Inverted(act))
    (activation,) = (node for node in gm.graph.nodes if node.target == "expand_sign")
    assert is_batch_norm(gm, activation.all_input_nodes[0])
    kept = converted(Inverted(act), config=Config(adapt=("gates",)))
    (other,) = (node for node in kept.graph.nodes if node.target == "expand_sign")
    assert type(module_of(kept, other.all_input_nodes[0])) is act
    kept.load_state_dict(gm.state_dict())
    if act is not nn.Hardswish:
        torch.testing.assert_close(gm(images()), kept(images()))


def test_zeros_are_told() -> None:
    reasons = [finding.reason for finding in bnnfx.explain(converted(Inverted(nn.Hardswish)))["expand"].findings]
    assert any("of -3, say, it gives 0, and a sign of that is +1" in reason for reason in reasons)


class Mlp(nn.Module):
    def __init__(self, act: nn.Module, also: bool = False) -> None:
        super().__init__()
        self.stem, self.fc1, self.act = nn.Linear(12, 32), nn.Linear(32, 32), act
        self.drop, self.fc2, self.head, self.also = nn.Dropout(0.1), nn.Linear(32, 32), nn.Linear(32, 4), also

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.fc1(self.stem(x.mean((1, 2)))))
        return self.head(self.fc2(self.drop(y)) + y) if self.also else self.head(self.fc2(self.drop(y)))


def test_function_behind_a_dropout() -> None:
    """As in the MLP blocks of transformers; other readers keep it."""
    for also in (False, True):
        gm = converted(Mlp(nn.GELU(), also))
        (bits,) = (node for node in gm.graph.nodes if node.target == "fc2_sign")
        calls = [node for node in gm.graph.nodes if node.target == "act"]
        assert len(calls) == int(also) and is_batch_norm(gm, bits.all_input_nodes[0])


@pytest.mark.parametrize("act", [nn.PReLU(), nn.Hardtanh(), nn.Softplus(), nn.Tanhshrink()])
def test_functions_that_stay(act: nn.Module) -> None:
    """Learned, or a bound of the gradient; or no function of the sign."""
    gm = converted(Mlp(act, also=False), config=Config(keep_float=("first", "last")))
    calls = [node for node in gm.graph.nodes if node.target == "act"]
    assert bool(calls) == (not isinstance(act, nn.Tanhshrink))


@pytest.mark.parametrize("scheme", ["bireal", "rbnn", "binaryduo"])
def test_depthwise_layers_stay_float_unless_asked(scheme: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 4, 1)
    )
    assert binary(converted(model, scheme)) == {"2"}
    asked = Config(layers={"1": bnnfx.LayerConfig(binarize=True)})
    assert binary(converted(model, scheme, asked)) == {"1", "2"}
    assert binary(converted(model, scheme, Config(keep_float=("first", "last")))) == {"1", "2"}
