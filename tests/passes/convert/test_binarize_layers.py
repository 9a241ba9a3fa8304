"""BinarizeLayers: a binarizer in front of every call, the float layer's own parameters inside."""

import pytest
import torch
from helpers.graphs import full_width, golden, lines, run_pass
from helpers.models import Chain, DropoutBeforeLinear, Grouped, Model, SharedLayer, TwoReaders, UntraceableSubmodule
from torch import nn

import bnnfx
from bnnfx import Config, LayerConfig
from bnnfx.errors import StageError
from bnnfx.nn import BinaryConv2d, BinaryLinear
from bnnfx.passes.convert.binarize_layers import BinarizeLayers


def test_chain():
    ran = run_pass(BinarizeLayers, Chain())
    assert ran.before == golden("""
        x = input
        stem = Conv2d(x)
        bn0 = BatchNorm2d(stem)
        conv1 = Conv2d(bn0)
        bn1 = BatchNorm2d(conv1)
        conv2 = Conv2d(bn1)
        bn2 = BatchNorm2d(conv2)
        pool = MaxPool2d(bn2)
        flatten = flatten(pool, 1)
        fc1 = Linear(flatten)
        bn3 = BatchNorm1d(fc1)
        relu_3 = ReLU relu(bn3)
        fc2 = Linear(relu_3)
        return fc2
    """)
    assert ran.after == golden("""
        x = input
        stem = Conv2d(x)
        bn0 = BatchNorm2d(stem)
        conv1_sign = SignActivation(bn0)
        conv1 = BinaryConv2d(conv1_sign)
        bn1 = BatchNorm2d(conv1)
        conv2_sign = SignActivation(bn1)
        conv2 = BinaryConv2d(conv2_sign)
        bn2 = BatchNorm2d(conv2)
        pool = MaxPool2d(bn2)
        flatten = flatten(pool, 1)
        fc1_sign = SignActivation(flatten)
        fc1 = BinaryLinear(fc1_sign)
        bn3 = BatchNorm1d(fc1)
        relu_3 = ReLU relu(bn3)
        fc2 = Linear(relu_3)
        return fc2
    """)


def test_float_reader_of_the_same_value_reads_floats():
    ran = run_pass(BinarizeLayers, TwoReaders())
    assert lines(ran.gm, "SignActivation", "cat") == [
        "left_sign = SignActivation(bn)",
        "right_sign = SignActivation(bn)",
        "cat = cat([left_bn, bn, right_bn], 1)",
    ]


def test_shared_layer_is_swapped_once_and_binarized_at_each_call():
    model = SharedLayer()
    ran = run_pass(BinarizeLayers, model, "rbnn")
    assert lines(ran.gm, "BinaryConv2d", "TrainingAwareSign") == [
        "conv_sign = TrainingAwareSign(relu_hardtanh)",
        "conv = BinaryConv2d(conv_sign)",
        "conv_sign_1 = TrainingAwareSign(relu_hardtanh_1)",
        "conv_1 = BinaryConv2d conv(conv_sign_1)",
    ]
    assert type(ran.gm.conv.binarizer).__name__ == "RotatedSign"


def test_dropout_stays_next_to_the_layer():
    ran = run_pass(BinarizeLayers, DropoutBeforeLinear())
    assert lines(ran.gm, "SignActivation", "Dropout", "BinaryLinear") == [
        "fc2_sign = SignActivation(bn)",
        "drop1 = Dropout(fc2_sign)",
        "drop2 = Dropout(drop1)",
        "fc2 = BinaryLinear(drop2)",
    ]


def test_dropped_values_are_zero_at_the_layer():
    model = DropoutBeforeLinear()
    gm = run_pass(BinarizeLayers, model).gm.train()
    seen = []
    gm.fc2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    gm(*model.inputs())
    assert seen[0].unique().tolist() == [-4.0, 0.0, 4.0]  # two dropouts with p = 1/2


class DropoutReadTwice(Model):
    """What the dropout gives is read by a float layer too."""

    shapes = ((4, 12),)

    def __init__(self):
        super().__init__()
        self.fc1, self.bn, self.drop = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout()
        self.binary, self.wide, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.drop(self.bn(self.fc1(x)))
        return self.last(self.binary(x) + self.wide(x))


def test_dropout_with_two_readers():
    config = Config(layers={"wide": LayerConfig(binarize=False)})
    ran = run_pass(BinarizeLayers, DropoutReadTwice(), config=config)
    assert lines(ran.gm, "Dropout", "SignActivation", "Linear") == [
        "fc1 = Linear(x)",
        "drop = Dropout(bn)",
        "binary_sign = SignActivation(drop)",
        "wide = Linear(drop)",
        "last = Linear(add)",
    ]


@pytest.mark.parametrize("scheme", bnnfx.schemes())
def test_geometry_and_parameters_are_taken_over(scheme):
    model = Grouped()
    ran = run_pass(BinarizeLayers, model, scheme, full_width(scheme))
    for name in ran.context.binary:
        old, new = model.get_submodule(name), ran.gm.get_submodule(name)
        for setting in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            assert getattr(new, setting) == getattr(old, setting)
        assert torch.equal(new.weight, old.weight)
        assert (new.bias is None) == (old.bias is None)
        assert type(new) is BinaryConv2d
    assert len(ran.context.binary) >= 3


def test_reads_a_leaf():
    ran = run_pass(BinarizeLayers, UntraceableSubmodule())
    assert "conv_sign = SignActivation(bn2)" in ran.after


def test_single_layer_between_input_and_output():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    ran = run_pass(BinarizeLayers, model, config=Config(keep_float=()))
    assert ran.after == golden("""
        input_1 = input
        _0_sign = SignActivation 0_sign(input_1)
        _0 = BinaryConv2d 0(_0_sign)
        _0_bn = BatchNorm2d 0_bn(_0)
        return _0_bn
    """)


def test_contract_when_a_binarizer_is_missing(monkeypatch):
    rewrite = BinarizeLayers.rewrite

    def forget(self, match, plan):
        rewrite(self, match, plan)
        if match.target == "conv2":
            bits = match.all_input_nodes[0]
            match.replace_input_with(bits, bits.all_input_nodes[0])

    monkeypatch.setattr(BinarizeLayers, "rewrite", forget)
    with pytest.raises(StageError, match="node 'conv2' is a binary layer that reads 'bn1', which is no binarizer"):
        bnnfx.convert(Chain(), "xnor")


def test_linear_layers():
    gm = run_pass(BinarizeLayers, Chain()).gm
    assert type(gm.fc1) is BinaryLinear
    assert type(gm.fc2) is nn.Linear
