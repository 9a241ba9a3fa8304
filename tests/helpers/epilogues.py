"""Small networks, each with one hazard for what fuses epilogues and keeps maps channels last. All take [N, 4, 5, 7]."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def block(channels: int = 4, outputs: int | None = None, **options: int) -> nn.Sequential:
    """A 3x3 convolution and its batch norm."""
    outputs = outputs or channels
    return nn.Sequential(nn.Conv2d(channels, outputs, 3, padding=1, bias=False, **options), nn.BatchNorm2d(outputs))


class Shifted(nn.Module):
    """PReLU with a learned shift before it, behind it, or both; per channel or one for all."""

    def __init__(self, channels: int, *, before: bool = True, after: bool = True, shared: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        shape = (1, 1 if shared else channels, 1, 1)
        self.before = nn.Parameter(torch.randn(shape, generator=generator)) if before else None
        self.after = nn.Parameter(torch.randn(shape, generator=generator)) if after else None
        self.prelu = nn.PReLU(channels)
        self.prelu.weight.data.copy_(torch.randn(channels, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.before is None else x + self.before
        x = self.prelu(x)
        return x if self.after is None else self.after + x


class Residual(nn.Module):
    """`last(after(before(block(x)) + x))`: a region that begins with an input and ends in a binary layer."""

    def __init__(self, before: nn.Module | None = None, after: nn.Module | None = None, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, channels, 1)
        self.block, self.last = block(channels), block(channels)
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.after(self.before(self.block(x)) + x)
        return self.last(x) + x


class Wired(nn.Module):
    """Four blocks `a` to `d` of four channels, wired by a function."""

    def __init__(self, wiring: Callable[["Wired", Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = block(), block(), block(), block()
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.wiring(self, x)


class Position(nn.Module):
    """One map of constants is added to every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = block(), block()
        self.position = nn.Parameter(torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(6)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(x) + self.position)


class Downsampling(nn.Module):
    """A block with stride 2, and a shortcut by a 1x1 convolution; then one with an identity, pooling, a classifier."""

    def __init__(self, pool: bool = False, bias: bool = False, norm: bool = True, width: int = 6) -> None:
        super().__init__()
        self.entry = block()
        self.down, self.same = block(4, width, stride=2), block(width)
        shortcut: list[nn.Module] = [nn.AvgPool2d(2, ceil_mode=True)] if pool else []
        shortcut.append(nn.Conv2d(4, width, 1, stride=1 if pool else 2, bias=bias))
        self.shortcut = nn.Sequential(*shortcut, *([nn.BatchNorm2d(width)] if norm else []))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x) + x
        x = self.down(x) + self.shortcut(x)
        x = self.same(x) + x
        return self.head(torch.flatten(self.pool(x), 1))


class Linears(nn.Module):
    """Binary linear layers behind a flattened map, and behind each other with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.block = block()
        self.fc1, self.bn1 = nn.Linear(140, 9, bias=False), nn.BatchNorm1d(9)
        self.fc2, self.bn2 = nn.Linear(9, 9, bias=False), nn.BatchNorm1d(9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x) + x
        x = self.bn1(self.fc1(torch.flatten(x, 1)))
        return self.bn2(self.fc2(x)) + x


class Dense(nn.Module):
    """Every layer reads the concatenation of all before it, through a module or two of its own."""

    def __init__(self, second: nn.Module | None = None, third: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c = block(4, 5), block(9, 3), block(12, 4)
        self.second, self.third = second or nn.Identity(), third or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        second = self.b(self.second(torch.cat([first, x], 1)))
        return self.c(self.third(torch.cat([first, second, x], dim=1)))


class ConcatenatedStreams(nn.Module):
    """Two streams side by side, and no map of another origin."""

    def __init__(self, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.behind = behind or nn.Identity()
        self.entry, self.left, self.right = block(), block(4, 3), block(4, 5)
        self.last = block(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        return self.last(self.behind(torch.cat([self.left(x), self.right(x)], 1)))


class Grouped(nn.Module):
    """Groups, odd channel counts, a kernel and a map that are not square."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(4, 70, (1, 3), padding=(0, 1), groups=2), nn.BatchNorm2d(70))
        self.grouped = nn.Sequential(nn.Conv2d(70, 70, 3, padding=1, groups=35, bias=False), nn.BatchNorm2d(70))
        self.last = nn.Conv2d(70, 3, 3, stride=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        return self.last(F.hardtanh(self.grouped(x) + x, -2.0, 2.0))
