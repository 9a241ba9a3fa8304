import pytest
import torch
from helpers import ternary
from helpers.graphs import golden
from helpers.splitting import run_split_pass
from torch import nn

from bnnfx.nn import TernaryActivation
from bnnfx.passes.split.move_shift_upstream import MoveShiftUpstream


def ran_on(name):
    return run_split_pass(MoveShiftUpstream, ternary.networks()[name]())


def test_into_the_batch_norm():
    layers = [ternary.stem(4), TernaryActivation(), ternary.conv(4, 2)]
    ran = run_split_pass(MoveShiftUpstream, nn.Sequential(*layers))
    assert ran.after == golden("""
        input_1 = input
        _0_0 = Conv2d 0.0(input_1)
        cat_1 = cat([_0_0, _0_0], 1)
        _0_1 = BatchNorm2d 0.1(cat_1)
        _1 = HeavisideActivation 1(_0_1)
        _2 = BinaryConv2d 2(_1)
        return _2
    """)
    norm = ran.gm.get_submodule("0.1")
    assert norm.num_features == 8
    assert torch.equal(norm.bias[4:] - norm.bias[:4], torch.full((4,), 0.5, dtype=torch.float64))
    for value in (norm.weight, norm.running_mean, norm.running_var):
        assert torch.equal(value[:4], value[4:])


@pytest.mark.parametrize("pool", ["behind", "before"])
def test_through_max_pooling_or_behind_it(pool):
    layers = [ternary.stem(4, pool=pool), TernaryActivation(), ternary.conv(4, 2)]
    ran = run_split_pass(MoveShiftUpstream, nn.Sequential(*layers))
    calls = [line.split(" = ")[1].split("(")[0].split()[0] for line in ran.after.splitlines()[1:-1]]
    expected = ["Conv2d", "cat", "BatchNorm2d", "MaxPool2d", "HeavisideActivation", "BinaryConv2d"]
    assert calls == (expected if pool == "behind" else ["Conv2d", "MaxPool2d", "cat", *expected[2:3], *expected[4:]])
    assert ran.refused == {}


def test_stream_of_identity_shortcuts():
    """The shortcut carries the shift, as an activation reads it; the branch adds two copies."""

    def wiring(m, x):
        x = m.s(x)
        x = m.na(m.a(m.ta(x))) + x
        return m.nb(m.b(m.tb(x))) + x

    ran = run_split_pass(MoveShiftUpstream, ternary.wired(wiring))
    assert ran.after == golden("""
        x = input
        s_0 = Conv2d(x)
        cat_3 = cat([s_0, s_0], 1)
        s_1 = BatchNorm2d(cat_3)
        ta = HeavisideActivation(s_1)
        a = BinaryConv2d(ta)
        na = BatchNorm2d(a)
        cat_2 = cat([na, na], 1)
        add = add(cat_2, s_1)
        mean_of_halves = mean_of_halves(add)
        tb = HeavisideActivation(add)
        b = BinaryConv2d(tb)
        nb = BatchNorm2d(b)
        add_1 = add(nb, mean_of_halves)
        return add_1
    """)
    assert ran.report.applied == ["add", "s.1"]


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("no batch norm", {"b": "'b' is no batch norm", "biased": "'biased' is no batch norm"}),
        ("elementwise", {"prelu": "'prelu' is no batch norm", "relu": "'relu' is no batch norm"}),
        ("no affine", {"plain": "it has no beta to shift"}),
        ("concat", {"cat": "'cat' is no batch norm"}),
        ("parameter added", {"add": "the sum 'add' may add maps of different sizes"}),
        ("averaged with padding", {"pool": "'pool' is no batch norm"}),
    ],
)
def test_shift_that_stays_a_constant(name, reasons):
    ran = ran_on(name)
    met = {subject: reason for subject, reason in ran.refused.items() if subject in reasons}
    assert met.keys() == reasons.keys()
    for subject, reason in reasons.items():
        assert met[subject].startswith(reason) and "so the shift stays a constant behind it" in met[subject]
    assert ran.after.count("= shift_halves(") == len(ran.refused)


def test_batch_norm_that_is_called_twice():
    ran = run_split_pass(MoveShiftUpstream, ternary.wired(lambda m, x: m.b(m.tb(m.na(m.a(m.ta(m.na(m.s(x)))))))))
    reason, remedy = (
        "it is called several times, so the shift stays a constant behind it",
        "give each call a batch norm",
    )
    assert [(remark.subject, remark.reason) for remark in ran.report.refused] == [("na", reason)] * 2
    assert all(remark.remedy.startswith(remedy) for remark in ran.report.refused)


def test_both_operands_shifted():
    """One carries the shift; of the other the mean is replicated."""
    ran = ran_on("both operands read")
    assert ran.refused == {}
    assert "shift_halves" not in ran.after and "mean_of_halves" in ran.after


def test_averages_keep_the_shift_where_no_padding_counts():
    assert ran_on("averaged stream").refused == {}


def test_zeros_beside_a_stream():
    """Option A: the sum with a padded map, whose channels are known, carries the shift of the branch."""
    ran = ran_on("subsampled shortcut")
    assert ran.refused == {}
    assert "add = add(norm, cat" in ran.after
