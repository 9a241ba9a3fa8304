"""Networks with ternary activations, each with one hazard for what splits them, as TRAINABLE graphs."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bnnfx.frontend.trace import trace
from bnnfx.graph.record import Record, attach
from bnnfx.graph.stage import Stage, check_contract
from bnnfx.nn import BinaryConv2d, BinaryLinear, ScaledSign, TernaryActivation
from bnnfx.schemes.binaryduo import LayerScaledSign


def trainable(model: nn.Module, seed: int = 0) -> fx.GraphModule:
    """The graph of a model that holds binarizers and binary layers, with batch norms worth splitting, in double."""
    gm, leaves, _ = trace(model)
    assert not leaves
    scatter(gm, torch.Generator().manual_seed(seed))
    check_contract(gm, Stage.TRAINABLE)
    attach(gm, Record(Stage.TRAINABLE, "binaryduo"))
    return gm.double().eval()


def scatter(gm: nn.Module, generator: torch.Generator) -> None:
    """Gamma of both signs and 0, statistics unlike those of a new batch norm; beta near the middle of the levels."""
    for module in gm.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            n = module.num_features
            if module.running_mean is not None:
                module.running_mean.copy_(torch.randn(n, generator=generator))
                module.running_var.copy_(torch.rand(n, generator=generator) + 0.1)
            if module.affine:
                module.weight.data.copy_(torch.randn(n, generator=generator) * (torch.arange(n) % 5 > 0))
                module.bias.data.copy_(torch.randn(n, generator=generator) * 0.5 + 0.5)


def scatter_dyadic(gm: nn.Module, generator: torch.Generator) -> None:
    """Numbers of few bits, so that nothing rounds and many values are exactly on a threshold; scales are 1/2."""
    for module in gm.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            n, module.eps = module.num_features, 0.0
            if module.running_mean is not None:
                module.running_mean.copy_(torch.randint(-3, 4, (n,), generator=generator) / 4)
                module.running_var.copy_(torch.tensor([0.25, 1.0, 4.0])[torch.randint(0, 3, (n,), generator=generator)])
            if module.affine:
                gamma = torch.tensor([1.0, -1.0, 0.0, 0.5, -0.25])
                module.weight.data.copy_(gamma[torch.randint(0, 5, (n,), generator=generator)])
                module.bias.data.copy_(torch.randint(-3, 4, (n,), generator=generator) / 4)
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator).sub(0.5).sign() / 2)
            if module.bias is not None:
                module.bias.data.copy_(torch.randint(-2, 3, module.bias.shape, generator=generator) / 4)


def dyadic(generator: torch.Generator, *shape: int) -> Tensor:
    """Inputs in quarters."""
    return torch.randint(-8, 9, shape, generator=generator) / 4


def conv(inputs: int, outputs: int, kernel: int = 3, *, layer: bool = True, **options: Any) -> BinaryConv2d:
    """A binary 3x3 convolution that keeps the size, with one scale per layer, or per filter."""
    options = {"padding": kernel // 2, "bias": False} | options
    return BinaryConv2d(inputs, outputs, kernel, binarizer=LayerScaledSign() if layer else ScaledSign(), **options)


class Wired(nn.Module):
    """Named modules, wired by a function of the module and its input."""

    def __init__(self, wiring: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.wiring = wiring

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)


def bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def stem(channels: int, *, pool: str = "") -> nn.Sequential:
    """Float convolution and batch norm; the max-pool behind it, in front of it, or none."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
    if pool:
        layers.insert(1 if pool == "before" else 2, nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*layers)


class Vgg(nn.Module):
    """conv, (pool), batch norm, ternary ...; a flatten, a binary linear layer, a float one."""

    def __init__(self, *, pool_first: bool = True, layer: bool = True) -> None:
        super().__init__()
        self.stem = stem(5)
        self.t1, self.conv1, self.bn1 = TernaryActivation(), conv(5, 7, layer=layer, bias=True), bn(7)
        self.t2, self.conv2, self.bn2 = TernaryActivation(), conv(7, 9, layer=layer), bn(9)
        self.pool, self.pool_first, self.drop = nn.MaxPool2d(2), pool_first, nn.Dropout(0.0)
        self.t3, self.fc1 = TernaryActivation(), BinaryLinear(9 * 12, 11, bias=False, binarizer=LayerScaledSign())
        self.bn3, self.t4, self.fc2 = nn.BatchNorm1d(11), TernaryActivation(), nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.t1(self.stem(x)))
        x = self.bn1(self.pool(x)) if self.pool_first else self.pool(self.bn1(x))
        x = torch.flatten(self.bn2(self.conv2(self.t2(x))), 1)
        return self.fc2(self.t4(self.bn3(self.fc1(self.drop(self.t3(x))))))


class Block(nn.Module):
    """A residual block of two convolutions: one shortcut around both (plain), or one around each ("+sc")."""

    def __init__(self, inputs: int, outputs: int, *, each: bool, stride: int = 1) -> None:
        super().__init__()
        self.t1, self.conv1, self.bn1 = TernaryActivation(), conv(inputs, outputs, stride=stride), bn(outputs)
        self.t2, self.conv2, self.bn2 = TernaryActivation(), conv(outputs, outputs), bn(outputs)
        self.each, self.shortcut = each, nn.Identity()
        if stride != 1 or inputs != outputs:
            pools = [nn.AvgPool2d(2, 2, ceil_mode=True)] if stride != 1 else []
            self.shortcut = nn.Sequential(*pools, nn.Conv2d(inputs, outputs, 1, bias=False), bn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(self.t1(x)))
        shortcut = self.shortcut(x)
        if self.each:
            y = shortcut = y + shortcut
        return self.bn2(self.conv2(self.t2(y))) + shortcut


class WideningBlock(nn.Module):
    """The last block: its shortcut gets channels of zeros; then ReLU, pool, classifier."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.t, self.conv, self.bn, self.extra = (
            TernaryActivation(),
            conv(inputs, outputs),
            bn(outputs),
            outputs - inputs,
        )
        self.relu, self.pool, self.fc = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(outputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(self.t(x))) + F.pad(x, (0, 0, 0, 0, 0, self.extra))
        return self.fc(torch.flatten(self.pool(self.relu(y)), 1))


class Resnet(nn.Sequential):
    """Stem, four blocks (the first may change the width, the third halves the map), and a widening last one."""

    def __init__(self, *, each: bool, pool: str = "behind", first: int = 4) -> None:
        super().__init__(
            stem(first, pool=pool),
            Block(first, 4, each=each),
            Block(4, 4, each=each),
            Block(4, 6, each=each, stride=2),
            Block(6, 6, each=each),
            WideningBlock(6, 9),
        )


class FloatWeights(nn.Module):
    """Ternary activations in front of layers that stay float; pooling and dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = stem(5)
        self.t1, self.conv1, self.bn1 = TernaryActivation(), nn.Conv2d(5, 6, 3, padding=1), bn(6)
        self.t2, self.pool, self.conv2, self.bn2 = TernaryActivation(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), bn(4)
        self.t3, self.mean, self.fc = TernaryActivation(), nn.AvgPool2d((2, 1)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(self.t1(self.stem(x))))
        x = self.bn2(self.conv2(self.pool(self.t2(x))))
        return self.fc(torch.flatten(self.mean(self.t3(x)), 1))


def wired(wiring: Callable[..., Any], **modules: nn.Module) -> Wired:
    """A stem of 4 channels `s`, three ternary activations `ta` to `tc`, convolutions 4 to 4 `a` to `c`, their norms."""
    common = {f"t{n}": TernaryActivation() for n in "abc"} | {n: conv(4, 4) for n in "abc"}
    return Wired(wiring, s=stem(4), **common, **{f"n{n}": bn(4) for n in "abc"}, **modules)


def _concat(m: Any, x: Tensor) -> Tensor:
    x = m.s(x)
    both = torch.cat([m.na(m.a(m.ta(x))), x], 1)
    return m.last(m.tb(both))


def _concat_and_norm(m: Any, x: Tensor) -> Tensor:
    x = m.s(x)
    return m.last(m.tb(m.norm(torch.cat([m.na(m.a(m.ta(x))), x], 1))))


def _ternary_also_read(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    t = m.ta(m.s(x))
    y = m.na(m.a(t)) + t
    return m.b(m.tb(y)), t


def _two_layers_one_activation(m: Any, x: Tensor) -> Tensor:
    t = m.ta(m.s(x))
    return m.c(m.tc(m.na(m.a(t)) + m.nb(m.b(t))))


def _two_activations_one_value(m: Any, x: Tensor) -> Tensor:
    x = m.s(x)
    return m.c(m.tc(m.na(m.a(m.ta(x))) + m.nb(m.b(m.tb(x)))))


def _both_operands_read(m: Any, x: Tensor) -> Tensor:
    """Each operand of the sum is read by an activation, so that both are shifted."""
    x = m.s(x)
    y = m.na(m.a(m.ta(x)))
    return m.c(m.tc(m.b(m.tb(y)) + x + y))


def _sum_of_two_that_are_read(m: Any, x: Tensor) -> Tensor:
    """Of which one carries the shift, and the other is replicated although it has shifted halves of its own."""
    x = m.s(x)
    y = m.na(m.a(m.ta(x)))
    z = m.nb(m.b(m.tb(y)))
    return m.c(m.tc(x + y)) + z


def _own_copies(m: Any, x: Tensor) -> Tensor:
    """The network replicates a map itself, behind where an activation reads it."""
    x = m.s(x)
    return m.last(torch.cat([m.na(m.a(m.ta(x))), torch.cat([x, x], 1)], 1))


def _input_directly(m: Any, x: Tensor) -> Tensor:
    return m.first(m.ta(x))


def _no_batch_norm(m: Any, x: Tensor) -> Tensor:
    return m.c(m.tb(m.b(m.ta(m.biased(x)))))


def _elementwise(m: Any, x: Tensor) -> Tensor:
    return m.b(m.tb(m.prelu(m.na(m.a(m.ta(m.relu(m.s(x))))))))


def _shared_batch_norm(m: Any, x: Tensor) -> Tensor:
    x = m.s(x)
    y = m.na(m.a(m.ta(x))) + x
    return m.c(m.tc(m.na(m.b(m.tb(y))) + y))


def _shared_layer(m: Any, x: Tensor) -> Tensor:
    x = m.na(m.a(m.ta(m.s(x))))
    return m.nb(m.a(m.tb(x)))


def _shared_activation(m: Any, x: Tensor) -> Tensor:
    x = m.na(m.a(m.ta(m.s(x))))
    return m.nb(m.b(m.ta(x)))


def _parameter_added(m: Any, x: Tensor) -> Tensor:
    return m.b(m.tb(m.na(m.a(m.ta(m.s(x)))) + m.offset.weight))


def _no_affine(m: Any, x: Tensor) -> Tensor:
    return m.b(m.tb(m.plain(m.a(m.ta(m.s(x))))))


def _pooled_stream(m: Any, x: Tensor) -> Tensor:
    x = m.s(x)
    x = m.pool(m.na(m.a(m.ta(x))) + x)
    return m.c(m.tc(m.nb(m.b(m.tb(x))) + x))


def _subsampled(m: Any, x: Tensor) -> Tensor:
    """Option A: every other pixel, channels of zeros."""
    x = m.s(x)
    y = m.norm(m.down(m.ta(x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
    return m.last(m.tb(y)) + y


class Offset(nn.Module):
    """Holds a parameter of the shape of a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 4).view(4, 1, 1))


def networks() -> dict[str, Callable[[], nn.Module]]:
    """Makers of all of them; each takes `[N, 3, 8, 6]`."""
    return {
        "vgg": Vgg,
        "vgg, pool behind the norm, scale per filter": lambda: Vgg(pool_first=False, layer=False),
        "plain resnet": lambda: Resnet(each=False),
        "resnet with a shortcut for each": lambda: Resnet(each=True),
        "resnet, norm behind the pool": lambda: Resnet(each=True, pool="before"),
        "resnet, first layer wider": lambda: Resnet(each=True, pool="", first=6),
        "plain resnet, first layer wider": lambda: Resnet(each=False, pool="", first=6),
        "float weights": FloatWeights,
        "grouped": grouped,
        "concat": lambda: wired(_concat, last=conv(8, 2)),
        "concat and norm": lambda: wired(_concat_and_norm, norm=bn(8), last=conv(8, 2)),
        "ternary also read": lambda: wired(_ternary_also_read),
        "two layers, one activation": lambda: wired(_two_layers_one_activation),
        "two activations, one value": lambda: wired(_two_activations_one_value),
        "both operands read": lambda: wired(_both_operands_read),
        "sum of two that are read": lambda: wired(_sum_of_two_that_are_read),
        "own copies": lambda: wired(_own_copies, last=nn.Conv2d(12, 2, 1)),
        "input directly": lambda: wired(_input_directly, first=conv(3, 4)),
        "no batch norm": lambda: wired(_no_batch_norm, biased=nn.Conv2d(3, 4, 3, padding=1)),
        "elementwise": lambda: wired(_elementwise, prelu=nn.PReLU(4), relu=nn.ReLU()),
        "shared batch norm": lambda: wired(_shared_batch_norm),
        "shared layer": lambda: wired(_shared_layer),
        "shared activation": lambda: wired(_shared_activation),
        "parameter added": lambda: wired(_parameter_added, offset=Offset()),
        "no affine": lambda: wired(_no_affine, plain=nn.BatchNorm2d(4, affine=False)),
        "pooled stream": lambda: wired(_pooled_stream, pool=nn.MaxPool2d(2)),
        "averaged stream": lambda: wired(_pooled_stream, pool=nn.AvgPool2d(3, 2, ceil_mode=True)),
        "averaged with padding": lambda: wired(_pooled_stream, pool=nn.AvgPool2d(3, 2, 1)),
        "subsampled shortcut": lambda: wired(_subsampled, down=conv(4, 6, stride=2), norm=bn(6), last=conv(6, 6)),
    }


def grouped() -> nn.Module:
    """Grouped and depthwise convolutions behind ternary activations."""
    t1, t2, t3 = TernaryActivation(), TernaryActivation(), TernaryActivation()
    layers = [stem(6), t1, conv(6, 4, groups=2), bn(4), t2, conv(4, 8, groups=4), bn(8), t3, conv(8, 2)]
    return nn.Sequential(*layers)


def random_network(r: random.Random) -> nn.Module:
    """Blocks in any order: chains, residual blocks of both kinds, pools, concatenations, groups, float layers."""
    width = r.choice([2, 4, 6])
    layers: list[nn.Module] = [stem(width, pool=r.choice(["", "", "before", "behind"]))]
    for _ in range(r.randint(1, 4)):
        kind, wider = r.choice(["plain", "each", "chain", "chain", "float", "pool", "concat"]), r.choice([2, 4, 6])
        if kind in ("plain", "each"):
            layers.append(Block(width, wider, each=kind == "each", stride=r.choice([1, 1, 2])))
        elif kind == "pool":
            layers.append(r.choice([nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 2, ceil_mode=True), nn.Identity()]))
            continue
        elif kind == "concat":
            layers.append(Dense(width, wider))
            wider += width
        else:
            groups = r.choice([1, 1, 2])
            options = {"padding": 1, "groups": groups, "bias": r.random() < 0.3}
            layer = nn.Conv2d(width, wider, 3, **options) if kind == "float" else conv(width, wider, **options)
            after = [bn(wider), nn.MaxPool2d(2, ceil_mode=True), nn.PReLU(wider)][: r.choice([1, 1, 2, 3])]
            r.shuffle(after)
            layers += [TernaryActivation(), layer, *after]
        width = wider
    return nn.Sequential(*layers, WideningBlock(width, width + r.choice([0, 3])))


class Dense(nn.Module):
    """The input beside what a block makes of it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.t, self.conv, self.bn = TernaryActivation(), conv(inputs, outputs), bn(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.bn(self.conv(self.t(x)))], 1)
