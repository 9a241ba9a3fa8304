"""The table of published figures: every row is counted, and every figure that should round to the printed one does."""

import sys
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

FOLDER = Path(__file__).parents[2] / "examples" / "published"


@pytest.fixture(scope="module")
def published():
    """The module `table`, and what it counted."""
    sys.path.insert(0, str(FOLDER))
    try:
        import table

        return table, [table.count(row) for row in table.ROWS]
    finally:
        sys.path.remove(str(FOLDER))


def test_every_row_that_should_agree_does(published):
    table, counted = published
    assert len(counted) == len(table.ROWS) >= 14
    for item in counted:
        assert item.agrees == item.row.expected, (item.row.name, item.bits, item.flops)
    assert all(row.remark for row in table.ROWS if not row.expected)


def test_exact_counts(published):
    """1-bit weights, other parameters, batch-norm channels, binary and float MACs, by hand from the layer shapes."""
    _, counted = published
    exact = {
        "ResNet-18": (0, 11_679_912, 4_800, 0, 1_814_073_344),
        "ResNet-18, Bi-Real": (10_985_472, 694_440, 4_800, 1_676_279_808, 137_793_536),
        "ResNet-18, BinaryDuo": (12_026_952, 609_168, 6_166, 2_197_464_192, 129_392_192),
        "ResNet-18, BinaryDuo +sc": (12_026_952, 609_168, 6_166, 2_197_464_192, 129_392_192),
        "AlexNet, XNOR-Net": (58_236_928, 4_130_848, 9_664, 1_025_744_896, 109_511_200),
        "AlexNet, BinaryDuo": (56_632_320, 4_127_944, 10_864, 1_167_098_880, 100_726_600),
        "ResNet-20, RBNN": (267_264, 1_082, 752, 40_108_032, 443_008),
        "VGG-small, RBNN": (4_571_136, 85_386, 1_792, 603_979_776, 3_620_864),
        "VGG-7, 1-bit weights": (1_568_768, 6_848, 1_408, 67_371_008, 1_774_592),
        "VGG-7, BinaryDuo, 1-bit weights": (1_566_894, 6_335, 1_724, 66_630_144, 1_249_280),
    }
    checked = 0
    for item in counted:
        if item.row.name in exact:
            total = item.summary.totals
            given = (total.one_bit_parameters, total.float_parameters, total.batch_norm_channels)
            assert (*given, total.binary_macs, total.float_macs) == exact[item.row.name], item.row.name
            checked += 1
    assert checked == len(exact)


def test_binaryduo_rows_are_counted(published):
    """From the split graph, where ternary activations are gone."""
    _, counted = published
    split = [item for item in counted if item.row.split]
    assert len(split) == 5
    for item in split:
        operands = {str(layer.operands) for layer in item.summary.layers if layer.operands}
        assert operands in ({"float x float", "1-bit x 1-bit"}, {"float x float", "float x 1-bit"})


def test_the_printed_table(published, capsys):
    table, counted = published
    """One line for each row at 80 columns, nothing cut off or wrapped."""
    Console(width=80).print(table.table(counted))
    lines = [line for line in capsys.readouterr().out.splitlines() if " / " in line][1:]
    assert len(lines) == len(counted)
    for line, item in zip(lines, counted, strict=True):
        assert item.row.name in line and line.split()[-1] == ("yes" if item.agrees else "no")
        assert f" / {item.bits / 1e6:.3f} " in line and f" / {item.flops / 1e6:.2f} " in line and "…" not in line


def test_rounding_is_to_the_printed_digits(published):
    table, _ = published
    for counted, printed, agrees in [
        (31_915_128, "31.9e6", True),
        (31_949_999, "31.9e6", True),
        (31_950_000, "31.9e6", False),
        (163_465_000.0, "1.63e8", True),
        (163_990_000.0, "1.63e8", False),
        (1_814_073_344, "1.81e9", True),
        (7_417_000, "7.42e6", True),
    ]:
        assert table._rounds(counted, Decimal(printed)) == agrees, (counted, printed)
    assert table._rounds(1, None)
