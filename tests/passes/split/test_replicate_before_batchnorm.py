import torch
from helpers import ternary
from helpers.graphs import lines
from helpers.splitting import run_split_pass

from bnnfx.passes.split.replicate_before_batchnorm import ReplicateBeforeBatchNorm


def test_branch_of_a_block():
    def wiring(m, x):
        x = m.s(x)
        x = m.na(m.a(m.ta(x))) + x
        return m.b(m.tb(x))

    ran = run_split_pass(ReplicateBeforeBatchNorm, ternary.wired(wiring))
    assert lines(ran.gm, "BinaryConv2d(ta", "cat([a", "BatchNorm2d", "add") == [
        *("s_1 = BatchNorm2d(cat_3)", "a = BinaryConv2d(ta)", "cat_4 = cat([a, a], 1)"),
        *("na = BatchNorm2d(cat_4)", "add = add(na, s_1)"),
    ]
    norm = ran.gm.get_submodule("na")
    assert norm.num_features == 8
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert torch.equal(value[:4], value[4:]) and value.std() > 0


def test_shortcut_is_computed_once():
    ran = run_split_pass(ReplicateBeforeBatchNorm, ternary.Resnet(each=True))
    assert ran.report.applied == ["1.bn1", "1.bn2", "2.bn1", "2.bn2", "3.bn2", "4.bn1", "4.bn2"]
    assert ran.refused == {"3.shortcut.2": "stays one for both halves: no layer on bits is in front of it"}


def test_read_as_one_map_too():
    def wiring(m, x):
        x = m.s(x)
        y = m.na(m.a(m.ta(x)))
        return m.b(m.tb(y + x)), y

    ran = run_split_pass(ReplicateBeforeBatchNorm, ternary.wired(wiring))
    assert ran.refused == {"na": "stays one for both halves: it is also read as one map"}


def test_called_twice():
    def wiring(m, x):
        x = m.s(x)
        x = m.na(m.a(m.ta(x))) + x
        x = m.na(m.b(m.tb(x))) + x
        return m.c(m.tc(x))

    ran = run_split_pass(ReplicateBeforeBatchNorm, ternary.wired(wiring))
    assert ran.refused == {"na": "stays one for both halves: it is called several times"}
    assert ran.report.applied == []
