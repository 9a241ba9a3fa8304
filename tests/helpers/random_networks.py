"""Random networks as Python source, by a seed: a grammar of layers, with one entry per kind.

An entry writes what it adds to `__init__` and `forward` and says what shape comes out; `KINDS` has them all, so a new
kind of layer is one more function there.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from helpers.ternary import scatter

Shape = tuple[int, ...]

FEWEST = 3
"""Layers with weights, so that there is mostly one between the first and the last."""

LARGEST = 4096
"""Values of a map, per sample, beyond which nothing is made wider."""


@dataclass
class Writer:
    """A network that is being written.

    Attributes:
        r: where all choices come from.
        shapes: of every value so far, without the batch, by its name in forward.
        inputs: the names of the arguments of forward.
        layers: the modules, as source, by name.
        lines: of forward.
    """

    r: random.Random
    shapes: dict[str, Shape] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def input(self, shape: Shape) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(name)
        self.shapes[name] = shape
        return name

    def layer(self, source: str) -> str:
        name = f"m{len(self.layers)}"
        self.layers[name] = source
        return f"self.{name}"

    def value(self, source: str, shape: Shape) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {source}")
        self.shapes[name] = shape
        return name

    def call(self, layer: str, operand: str, shape: Shape) -> str:
        return self.value(f"{self.layer(layer)}({operand})", shape)

    def pick(self, axes: int) -> str | None:
        """One of the last values with so many axes, mostly one that nothing has read."""
        names = [name for name, shape in self.shapes.items() if len(shape) == axes][-3:]
        unread = [name for name in names if name in self.unread()]
        return self.r.choice(unread if unread and self.r.random() < 0.8 else names) if names else None

    def unread(self) -> list[str]:
        read = set(re.findall(r"\b[vx]\d+\b", " ".join(line.split(" = ", 1)[1] for line in self.lines)))
        return [name for name in self.shapes if name not in read]

    def source(self) -> str:
        """The network as a program that defines `Net`."""
        results = self.unread()  # the last value is one of them
        read = [name for name in self.shapes if name not in results and name not in self.inputs]
        results += self.r.sample(read, min(len(read), self.r.choice([0, 0, 0, 1])))
        lines = [
            *(OWN.splitlines() if any("Own(" in layer for layer in self.layers.values()) else ()),
            "class Net(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            *(f"        self.{name} = {source}" for name, source in self.layers.items()),
            "",
            f"    def forward(self, {', '.join(self.inputs)}):",
            *(f"        {line}" for line in self.lines),
            f"        return {', '.join(results)}",
        ]
        return "\n".join(lines)


Kind = Callable[[Writer], object]
KINDS: dict[str, tuple[Kind, int]] = {}
"""The entries of the grammar, with how often each is taken."""


def kind(often: int) -> Callable[[Kind], Kind]:
    def add(entry: Kind) -> Kind:
        KINDS[entry.__name__] = entry, often
        return entry

    return add


@kind(12)
def conv2d(w: Writer) -> object:
    """Odd widths, kernels that are not square, strides, dilation, groups, padding."""
    x = w.pick(3)
    if x is None:
        return None
    r, (channels, *size) = w.r, w.shapes[x]
    kernel = [r.choice([1, 1, 2, 3, 3, 3, 4]) for _ in size] if r.random() < 0.4 else [r.choice([1, 3, 3, 5])] * 2
    dilation = [r.choice([1, 1, 1, 2]) for _ in size]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = [r.choice([0, n // 2, n // 2, n]) for n in reach]
    stride = [r.choice([1, 1, 1, 2, 3]) for _ in size]
    out = [(n + 2 * p - e - 1) // s + 1 for n, p, e, s in zip(size, padding, reach, stride, strict=True)]
    if min(n + 2 * p - e for n, p, e in zip(size, padding, reach, strict=True)) < 1:
        return None
    groups = r.choice([g for g in range(1, channels + 1) if channels % g == 0]) if r.random() < 0.3 else 1
    wide = groups * r.choice([1, 2, 3, 5, 8, 13, 33, 64, 65])
    if wide * out[0] * out[1] > LARGEST:
        wide = groups
    mode = ""
    if r.random() < 0.1 and all(p < n for p, n in zip(padding, size, strict=True)):
        mode = f", padding_mode={r.choice(['circular', 'reflect', 'replicate'])!r}"
    arguments = (
        f"{channels}, {wide}, {tuple(kernel)}, stride={tuple(stride)}, padding={tuple(padding)}, "
        f"dilation={tuple(dilation)}, groups={groups}, bias={r.random() < 0.5}{mode}"
    )
    return w.call(f"{r.choice(['nn.Conv2d', 'nn.Conv2d', 'nn.Conv2d', 'Own'])}({arguments})", x, (wide, *out))


OWN = """
class Own(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight, self.bias)

"""
"""A subclass that computes what the layer does."""


@kind(6)
def conv1d(w: Writer) -> object:
    """As of maps; where there is no sequence yet, the rows of a map behind one another are one."""
    x = w.pick(2)
    if x is None:
        source = w.pick(3)
        if source is None:
            return None
        wide, height, width = w.shapes[source]
        x = w.value(f"torch.flatten({source}, 2)", (wide, height * width))
    r, (channels, length) = w.r, w.shapes[x]
    kernel, stride, dilation = r.choice([1, 2, 3, 3, 4, 7]), r.choice([1, 1, 1, 2, 3]), r.choice([1, 1, 2, 3])
    reach = dilation * (kernel - 1)
    padding = r.choice([0, reach // 2, reach // 2, reach])
    if r.random() < 0.2:  # causal
        x, length = w.value(f"F.pad({x}, ({reach}, 0))", (channels, length + reach)), length + reach
    out = (length + 2 * padding - reach - 1) // stride + 1
    if length + 2 * padding - reach < 1:
        return None
    groups = r.choice([g for g in range(1, channels + 1) if channels % g == 0]) if r.random() < 0.3 else 1
    wide = groups * r.choice([1, 2, 3, 5, 8, 13, 33, 64, 65])
    if wide * out > LARGEST:
        wide = groups
    arguments = f"{channels}, {wide}, {kernel}, {stride}, {padding}, {dilation}, {groups}, bias={r.random() < 0.5}"
    return w.call(f"nn.Conv1d({arguments})", x, (wide, out))


@kind(3)
def linear(w: Writer) -> object:
    x = w.pick(1)
    if x is None:
        return None
    wide = w.r.choice([1, 3, 8, 17, 64, 65])
    return w.call(f"nn.Linear({w.shapes[x][0]}, {wide}, bias={w.r.random() < 0.5})", x, (wide,))


@kind(10)
def batch_norm(w: Writer) -> object:
    x = w.pick(w.r.choice([1, 2, 3, 3]))
    if x is None:
        return None
    shape = w.shapes[x]
    axes = {1: 1, 2: 1, 3: 2}[len(shape)]
    return w.call(f"nn.BatchNorm{axes}d({shape[0]}, affine={w.r.random() < 0.9})", x, shape)


@kind(8)
def activation(w: Writer) -> object:
    x = w.pick(w.r.choice([1, 2, 3, 3]))
    if x is None:
        return None
    shape = w.shapes[x]
    call = w.r.choice(
        [
            *(
                "nn.ReLU()",
                "nn.ReLU(inplace=True)",
                "nn.PReLU()",
                f"nn.PReLU({shape[0]})",
                "nn.Hardtanh()",
                "nn.ReLU6()",
            ),
            *("nn.LeakyReLU(0.2)", "nn.Hardswish()", "nn.Tanh()", "nn.Sigmoid()", "nn.GELU()", "nn.Identity()"),
            "nn.Hardtanh(-0.5, 2.0)",
        ]
    )
    return w.call(call, x, shape)


@kind(2)
def function(w: Writer) -> object:
    x = w.pick(w.r.choice([1, 2, 3]))
    if x is None:
        return None
    text = w.r.choice(
        ["F.relu({})", "{} * 0.5", "-{}", "{} + 0.25", "torch.clamp({}, -1.0, 1.0)", "{}.abs()", "1.0 - {}"]
    )
    return w.value(text.format(x), w.shapes[x])


@kind(4)
def pool2d(w: Writer) -> object:
    x = w.pick(3)
    if x is None:
        return None
    r, (channels, *size) = w.r, w.shapes[x]
    kernel, stride = r.choice([2, 3]), r.choice([1, 2, 2])
    padding = r.choice([0, 0, 1])
    if min(size) + 2 * padding < kernel:
        return w.call("nn.AdaptiveAvgPool2d(1)", x, (channels, 1, 1))
    name = r.choice(["MaxPool2d", "MaxPool2d", "AvgPool2d"])
    out = [(n + 2 * padding - kernel) // stride + 1 for n in size]
    return w.call(f"nn.{name}({kernel}, {stride}, {padding})", x, (channels, *out))


@kind(2)
def pool1d(w: Writer) -> object:
    x = w.pick(2)
    if x is None:
        return None
    r, (channels, length) = w.r, w.shapes[x]
    kernel, stride, padding = r.choice([2, 3]), r.choice([1, 2, 2]), r.choice([0, 0, 1])
    if length + 2 * padding < kernel:
        return w.call("nn.AdaptiveAvgPool1d(1)", x, (channels, 1))
    name = r.choice(["MaxPool1d", "MaxPool1d", "AvgPool1d"])
    out = (length + 2 * padding - kernel) // stride + 1
    return w.call(f"nn.{name}({kernel}, {stride}, {padding})", x, (channels, out))


@kind(6)
def residual(w: Writer) -> object:
    """A sum of two values, or of one and what a convolution makes of another."""
    x = w.pick(w.r.choice([1, 2, 3, 3]))
    if x is None:
        return None
    shape = w.shapes[x]
    alike = [name for name, other in w.shapes.items() if other == shape and name != x]
    if not alike:
        if len(shape) == 1:
            return None
        axes = len(shape) - 1
        alike = [w.call(f"nn.Conv{axes}d({shape[0]}, {shape[0]}, 3, padding=1, bias=False)", x, shape)]
    return w.value(f"{x} + {w.r.choice(alike)}", shape)


@kind(2)
def concat(w: Writer) -> object:
    x = w.pick(w.r.choice([1, 2, 3]))
    if x is None:
        return None
    shape = w.shapes[x]
    alike = [name for name, other in w.shapes.items() if other[1:] == shape[1:] and len(other) == len(shape)]
    y = w.r.choice(alike)
    return w.value(f"torch.cat([{x}, {y}], 1)", (shape[0] + w.shapes[y][0], *shape[1:]))


@kind(1)
def shuffle(w: Writer) -> object:
    """Channels in another order, or a part of them."""
    x = w.pick(3)
    if x is None or w.shapes[x][0] % 2:
        return None
    channels, *size = w.shapes[x]
    if w.r.random() < 0.5:
        return w.value(f"{x}[:, : {channels // 2}]", (channels // 2, *size))
    return w.call("nn.ChannelShuffle(2)", x, (channels, *size))


@kind(1)
def dropout(w: Writer) -> object:
    x = w.pick(w.r.choice([1, 3]))
    return None if x is None else w.call("nn.Dropout(0.3)", x, w.shapes[x])


@kind(2)
def flatten(w: Writer) -> object:
    x = w.pick(w.r.choice([2, 3]))
    if x is None:
        return None
    channels, *size = w.shapes[x]
    if channels * math.prod(size) > LARGEST // 4:
        return w.value(f"{x}.mean({tuple(range(2, 2 + len(size)))})", (channels,))
    return w.value(f"torch.flatten({x}, 1)", (channels * math.prod(size),))


@dataclass
class RandomNetwork:
    """A network and what it is called with.

    Attributes:
        source: defines `Net`.
        shapes: of the arguments of forward, without the batch.
        kinds: the entries of the grammar that wrote it.
    """

    source: str
    shapes: tuple[Shape, ...]
    kinds: tuple[str, ...] = ()

    def build(self, seed: int) -> Any:
        """The network, with batch norms worth folding."""
        scope: dict[str, Any] = {"nn": nn, "torch": torch, "F": nn.functional}
        exec(self.source, scope)
        torch.manual_seed(seed)
        model = scope["Net"]()
        scatter(model, torch.Generator().manual_seed(seed))
        return model

    def inputs(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *shape, generator=generator) for shape in self.shapes)


def random_network(seed: int) -> RandomNetwork:
    """The network of a seed: a float layer first, then anything in any order, now and then with a second input."""
    w = Writer(random.Random(seed))
    size = [w.r.randint(1, 13), w.r.randint(1, 13)]
    x = w.input((w.r.choice([1, 2, 3]), *size))
    wide = w.r.choice([4, 6, 8, 15, 32])
    x = w.call(f"nn.Conv2d({w.shapes[x][0]}, {wide}, 3, padding=1)", x, (wide, *size))
    w.call(f"nn.BatchNorm2d({wide})", x, (wide, *size))
    if w.r.random() < 0.2:
        w.input(w.r.choice([(wide, *size), (wide, *size), (5,)]))
    often = [times for _, times in KINDS.values()]
    kinds = [name for name in w.r.choices(list(KINDS), often, k=w.r.randint(3, 14)) if KINDS[name][0](w) is not None]
    while sum("Conv" in layer or "Own(" in layer or "Linear" in layer for layer in w.layers.values()) < FEWEST:
        conv2d(w) or linear(w)
    return RandomNetwork(w.source(), tuple(w.shapes[name] for name in w.inputs), tuple(kinds))
