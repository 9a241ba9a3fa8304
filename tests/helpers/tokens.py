"""Networks on tokens `[N, ..., C]`: linear layers over the last axis, norms over it, residual streams, attention."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.models import Model


class Mixed(nn.Module):
    """Two linear layers with an activation between, and a residual around both, scaled per channel."""

    def __init__(self, width: int, hidden: int, norm: Callable[[int], nn.Module], act: nn.Module) -> None:
        super().__init__()
        self.norm, self.act, self.scale = norm(width), act, nn.Parameter(torch.rand(width) + 0.5)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act(self.fc1(self.norm(x)))) * self.scale


class Attention(nn.Module):
    """Attention of one head, written by hand; query, key and value have a layer each, which read one norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        weights = (self.q(normed) @ self.k(normed).transpose(-2, -1)).softmax(-1)
        return x + self.proj(weights @ self.v(normed))


class Tokens(Model):
    """A float layer in front, blocks of attention and of mixing, and a classifier on the mean of all tokens.

    Args:
        width: of the stream.
        between: the axes of the input between batch and channels.
        norm: in front of the mixing.
        act: within it.
    """

    def __init__(
        self,
        width: int = 33,
        between: tuple[int, ...] = (6,),
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        act: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.between = between
        self.embed = nn.Linear(7, width)
        blocks = (Attention(width), Mixed(width, 2 * width + 3, norm, act()), Mixed(width, 5, norm, act()))
        self.blocks, self.norm, self.head = nn.Sequential(*blocks), nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(x)))
        return self.head(x.flatten(1, -2).mean(1))

    def inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        return (torch.randn(batch, *self.between, 7),)


class PermutedBlocks(Model):
    """Maps whose linear layers read them channels last, as ConvNeXt has it; one writes its permutation as a method."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.depthwise = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(2))
        self.mixing = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
            for _ in range(2)
        )
        self.scale = nn.Parameter(torch.rand(width, 1, 1) + 0.5)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x))
        x = x + self.mixing[0](self.depthwise[0](x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * self.scale
        y = self.mixing[1](torch.permute(self.depthwise[1](x), (0, 2, 3, 1)))
        x = x + torch.permute(y, dims=(0, -1, 1, 2))
        return self.head(x.mean((2, 3)))

    def inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 3, 9, 8),)


class ByHand(nn.Module):
    """A linear layer that calls torch's function with its own parameters."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
