"""What the papers say their networks cost, against what `bnnfx.summary` counts in our graphs of them.

    python examples/published/table.py

Each network is defined in float, converted by its scheme (and split, where BinaryDuo's second stage is meant), and
counted. Weights play no part, so nothing is computed: the models live on the device "meta", which holds shapes only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import torch
from alexnet import BinaryDuoAlexNet, XnorAlexNet
from resnet18 import BinaryDuoResNet18, BiRealResNet
from resnet20 import ResNet20
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn
from vgg7 import COUPLED_WIDTHS as VGG7_COUPLED
from vgg7 import Vgg7
from vgg_small import VggSmall

import bnnfx

IMAGENET, CIFAR = (1, 3, 224, 224), (1, 3, 32, 32)


@dataclass(frozen=True)
class Row:
    """One network of a paper.

    Attributes:
        name: of the network.
        build: makes its float model.
        image: shape of its input.
        bits: parameter bits as printed there, to all its digits; None if it says nothing.
        flops: likewise.
        source: where.
        scheme: to convert it by; None leaves it float.
        config: for `bnnfx.convert`.
        split: whether `bnnfx.split` follows.
        extra: what this source counts otherwise: ("scales") one number more per binary filter, ("last") no operations
            in the last layer.
        expected: whether counted figures round to the printed ones; if not, `remark` says why.
        remark: what a reader has to know.
    """

    name: str
    build: Callable[[], nn.Module]
    image: tuple[int, ...]
    bits: Decimal | None
    flops: Decimal | None
    source: str
    scheme: str | None = None
    config: bnnfx.Config = field(default_factory=bnnfx.Config)
    split: bool = False
    extra: tuple[str, ...] = ()
    expected: bool = True
    remark: str = ""


@dataclass(frozen=True)
class Counted:
    """A row and what was counted."""

    row: Row
    summary: bnnfx.Summary

    @property
    def bits(self) -> int:
        """Parameter bits, with what this source adds to the rule."""
        filters = sum(layer.output_shape[0] for layer in self.summary.layers if layer.cost.one_bit_parameters)
        return self.summary.totals.parameter_bits + ("scales" in self.row.extra) * 32 * filters

    @property
    def flops(self) -> float:
        """Operations, without what this source leaves out."""
        last = [layer for layer in self.summary.layers if layer.operands is not None][-1]
        return self.summary.totals.flops - ("last" in self.row.extra) * last.cost.flops

    @property
    def agrees(self) -> bool:
        """Whether every figure that was published is the counted one, rounded to its digits."""
        return _rounds(self.bits, self.row.bits) and _rounds(self.flops, self.row.flops)


def _rounds(counted: float, published: Decimal | None) -> bool:
    return published is None or Decimal(counted).quantize(published, ROUND_HALF_UP) == published


def _coupled(**options: Any) -> bnnfx.Config:
    """The definitions here have the coupled widths already."""
    return bnnfx.Config(options={"width_factor": 1.0, **options})


# arXiv numbers of Bi-Real Net and BinaryDuo; the latter's table of results has the other papers' AlexNets too
BINARYDUO = "2002.06517"
BIREAL = "1808.00278, 4.4"

ROWS = (
    Row("ResNet-18", BiRealResNet, IMAGENET, Decimal("374.1e6"), Decimal("1.81e9"), BIREAL),
    Row("ResNet-18, Bi-Real", BiRealResNet, IMAGENET, Decimal("33.5e6"), None, "CI-BCNN's table", "bireal"),
    Row(
        "ResNet-18, Bi-Real with scales",
        BiRealResNet,
        IMAGENET,
        Decimal("33.6e6"),
        Decimal("1.63e8"),
        BIREAL,
        "bireal",
        extra=("scales", "last"),
        remark="a number more per binary filter, and no operations in the last layer",
    ),
    Row(
        "ResNet-34, Bi-Real",
        lambda: BiRealResNet((6, 8, 12, 6)),
        IMAGENET,
        Decimal("43.7e6"),
        Decimal("1.93e8"),
        BIREAL,
        "bireal",
        expected=False,
        remark="bits not reproduced, with or without scales; operations are",
    ),
    Row(
        "ResNet-18, BinaryDuo",
        BinaryDuoResNet18,
        IMAGENET,
        Decimal("31.9e6"),
        Decimal("164e6"),
        BINARYDUO,
        "binaryduo",
        _coupled(),
        split=True,
    ),
    Row(
        "ResNet-18, BinaryDuo +sc",
        lambda: BinaryDuoResNet18(shortcut_per_convolution=True),
        IMAGENET,
        Decimal("31.9e6"),
        Decimal("164e6"),
        BINARYDUO,
        "binaryduo",
        _coupled(),
        split=True,
    ),
    Row("AlexNet, XNOR-Net", XnorAlexNet, IMAGENET, Decimal("191e6"), Decimal("126e6"), BINARYDUO, "xnor"),
    Row(
        "AlexNet, BinaryDuo",
        BinaryDuoAlexNet,
        IMAGENET,
        Decimal("189e6"),
        Decimal("119e6"),
        BINARYDUO,
        "binaryduo",
        _coupled(),
        split=True,
    ),
    Row(
        "AlexNet, BNN",
        XnorAlexNet,
        IMAGENET,
        Decimal("62.3e6"),
        Decimal("82.3e6"),
        BINARYDUO,
        "xnor",
        bnnfx.Config(keep_float=()),
        expected=False,
        remark="not reproduced: the paper does not give the shapes that it counted; here those of XNOR-Net, all binary",
    ),
    Row("ResNet-20, RBNN", ResNet20, CIFAR, Decimal("0.350e6"), Decimal("1.07e6"), "by hand", "rbnn"),
    Row("VGG-small, RBNN", VggSmall, CIFAR, Decimal("7.42e6"), Decimal("13.06e6"), "by hand", "rbnn"),
    Row("VGG-7, 1-bit weights", Vgg7, CIFAR, Decimal("1.88e6"), Decimal("2.83e6"), "by hand", "xnor"),
    Row(
        "VGG-7, BinaryDuo, 1-bit weights",
        lambda: Vgg7(VGG7_COUPLED),
        CIFAR,
        Decimal("1.88e6"),
        Decimal("2.29e6"),
        "by hand",
        "binaryduo",
        _coupled(),
        split=True,
    ),
    Row(
        "VGG-7, BinaryDuo",
        lambda: Vgg7(VGG7_COUPLED),
        CIFAR,
        Decimal("50.45e6"),
        None,
        "by hand",
        "binaryduo",
        _coupled(weight_bits=32),
        split=True,
        remark="float weights, as trained: products with {0, 1} are additions and count as float",
    ),
)
"""Published figures are those printed in the source; "by hand" are this rule applied on paper to its layer shapes."""


def count(row: Row) -> Counted:
    """Build, convert, split, count."""
    with torch.device("meta"):
        model, x = row.build(), torch.zeros(row.image)
    if row.scheme is not None:
        model = bnnfx.convert(model, row.scheme, example_inputs=(x,), config=row.config)
    if row.split:
        model = bnnfx.split(model)
    return Counted(row, bnnfx.summary(model, (x,)))


def table(counted: list[Counted]) -> Table:
    result = Table(title="published / counted, in millions", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    result.add_column("network and scheme", no_wrap=True)
    result.add_column("parameter bits", justify="right", no_wrap=True)
    result.add_column("operations", justify="right", no_wrap=True)
    result.add_column("agree", no_wrap=True)
    for item in counted:
        row = item.row
        bits = f"{_millions(row.bits)} / {item.bits / 1e6:.3f}"
        flops = f"{_millions(row.flops)} / {item.flops / 1e6:.2f}"
        result.add_row(row.name, bits, flops, "yes" if item.agrees else "no")
    return result


def _millions(number: Decimal | None) -> str:
    return "-" if number is None else f"{number.scaleb(-6):f}"


def main() -> None:
    console = Console()
    console.print(table([count(row) for row in ROWS]))
    for row in ROWS:
        if row.remark:
            console.print(f"{row.name}: {row.remark}")
    for source in dict.fromkeys(row.source for row in ROWS):
        names = [row.name for row in ROWS if row.source == source]
        console.print(f"{'Computed by hand' if source == 'by hand' else f'From {source}'}: {'; '.join(names)}")


if __name__ == "__main__":
    main()
