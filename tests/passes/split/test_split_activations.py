import torch
from helpers import ternary
from helpers.graphs import golden, lines
from helpers.splitting import run_split_pass
from torch import nn

from bnnfx.nn import TernaryActivation
from bnnfx.passes.split.split_activations import SplitActivations


def test_two_comparisons_for_one_activation():
    layers = [ternary.stem(4), TernaryActivation(), nn.Dropout(0.0), ternary.conv(4, 2)]
    ran = run_split_pass(SplitActivations, nn.Sequential(*layers))
    assert ran.before == golden("""
        input_1 = input
        _0_0 = Conv2d 0.0(input_1)
        _0_1 = BatchNorm2d 0.1(_0_0)
        _1 = TernaryActivation 1(_0_1)
        _2 = Dropout 2(_1)
        _3 = BinaryConv2d 3(_2)
        return _3
    """)
    assert ran.after == golden("""
        input_1 = input
        _0_0 = Conv2d 0.0(input_1)
        _0_1 = BatchNorm2d 0.1(_0_0)
        cat = cat([_0_1, _0_1], 1)
        shift_halves = shift_halves(cat, 0.25)
        _1 = HeavisideActivation 1(shift_halves)
        _2 = Dropout 2(_1)
        _3 = BinaryConv2d 3(_2)
        return _3
    """)
    assert ran.report.applied == ["1"] and ran.report.changed
    layer, weight = ran.gm.get_submodule("3"), layers[3].weight
    assert (layer.in_channels, layer.out_channels) == (8, 2)
    assert torch.equal(layer.weight, torch.cat([weight / 2, weight / 2], 1))


def test_other_readers_read_the_mean():
    ran = run_split_pass(SplitActivations, ternary.networks()["ternary also read"]())
    assert lines(ran.gm, "HeavisideActivation", "mean_of_halves", "add")[:3] == [
        "ta = HeavisideActivation(shift_halves)",
        "mean_of_halves = mean_of_halves(ta)",
        "add = add(na, mean_of_halves)",
    ]
    assert "return (b, mean_of_halves)" in ran.after  # the activation is an output of the graph, too


def test_float_layers_behind_pools():
    ran = run_split_pass(SplitActivations, ternary.FloatWeights())
    assert [ran.gm.get_submodule(name).weight.shape[1] for name in ("conv1", "conv2", "fc")] == [10, 12, 8]
    assert "mean_of_halves" not in ran.after


def test_two_activations_of_one_value_share_its_halves():
    ran = run_split_pass(SplitActivations, ternary.networks()["two activations, one value"]())
    assert len(lines(ran.gm, "shift_halves(cat")) == 2  # one for both; the other is of the sum
    assert lines(ran.gm, "HeavisideActivation(shift_halves)") == [
        "ta = HeavisideActivation(shift_halves)",
        "tb = HeavisideActivation(shift_halves)",
    ]


def test_layer_and_activation_called_twice_are_changed_once():
    ran = run_split_pass(SplitActivations, ternary.networks()["shared layer"]())
    assert ran.gm.get_submodule("a").in_channels == 8
    assert ran.report.applied == ["ta", "tb"]
    ran = run_split_pass(SplitActivations, ternary.networks()["shared activation"]())
    assert ran.report.applied == ["ta", "ta"]
    assert len(lines(ran.gm, "HeavisideActivation")) == 2


def test_groups_get_their_channels_side_by_side():
    ran = run_split_pass(SplitActivations, ternary.grouped())
    assert lines(ran.gm, "halves_by_group") == [
        "halves_by_group = halves_by_group(shift_halves, 2)",
        "halves_by_group_1 = halves_by_group(shift_halves_1, 4)",
    ]
    assert [tuple(ran.gm.get_submodule(name).weight.shape[:2]) for name in ("2", "5", "8")] == [(4, 6), (8, 2), (2, 16)]
