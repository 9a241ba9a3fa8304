"""ReplaceRelu: no sign is left behind a ReLU, and no ReLU between float layers is lost."""

import pytest
from helpers.graphs import golden, lines, run_pass
from helpers.models import HAZARDS, Chain, FixedView, Model, Residual, SharedLayer, Shuffle, TwoReaders, conv3x3
from torch import nn
from torch.nn import functional as F

import bnnfx
from bnnfx.errors import StageError
from bnnfx.nn import ActivationBinarizer
from bnnfx.passes.convert.binarize_layers import BinarizeLayers
from bnnfx.passes.convert.replace_relu import ReplaceRelu

STAYS = "stays: it feeds float layers only, and without it two layers would collapse into one linear map"


def test_removed_where_the_scheme_has_nothing_instead():
    ran = run_pass(ReplaceRelu, Chain(), "xnor")
    assert ran.after == golden("""
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
    assert ran.report.applied == ["relu", "relu_1", "relu_2"]
    assert ran.refused == {"relu_3": STAYS}


def test_replaced_by_hardtanh():
    ran = run_pass(ReplaceRelu, Residual(downsample=True), "rbnn")
    assert ran.before == golden("""
        x = input
        stem_0 = Conv2d(x)
        stem_1 = BatchNorm2d(stem_0)
        stem_2 = ReLU(stem_1)
        block_downsample_0 = Conv2d(stem_2)
        block_downsample_1 = BatchNorm2d(block_downsample_0)
        block_conv1 = Conv2d(stem_2)
        block_bn1 = BatchNorm2d(block_conv1)
        add_1 = add(block_bn1, block_downsample_1)
        block_relu = ReLU(add_1)
        block_conv2 = Conv2d(block_relu)
        block_bn2 = BatchNorm2d(block_conv2)
        add = add(block_bn2, block_relu)
        block_relu_1 = ReLU block.relu(add)
        pool = AdaptiveAvgPool2d(block_relu_1)
        flatten = flatten(pool, 1)
        fc = Linear(flatten)
        return fc
    """)
    assert lines(ran.gm, "Hardtanh", "add") == [
        "stem_2_hardtanh = Hardtanh(stem_1)",
        "add_1 = add(block_bn1, block_downsample_1)",
        "block_relu_hardtanh = Hardtanh(add_1)",
        "add = add(block_bn2, block_relu_hardtanh)",
        "block_relu_hardtanh_1 = Hardtanh(add)",
    ]
    assert "ReLU" not in ran.after


def test_relu_behind_the_closing_add_goes_with_the_shortcuts():
    ran = run_pass(ReplaceRelu, Residual(), "bireal")
    assert "ReLU" not in ran.after
    assert ran.report.applied == ["stem_2", "block_relu", "block_relu_1"]


def test_shared_relu_module():
    ran = run_pass(ReplaceRelu, SharedLayer(), "rbnn")
    assert lines(ran.gm, "Hardtanh") == [
        "relu_hardtanh = Hardtanh(bn)",
        "relu_hardtanh_1 = Hardtanh(conv_bn)",
    ]


def test_all_readers_of_a_relu_read_what_replaces_it():
    ran = run_pass(ReplaceRelu, TwoReaders(), "xnor")
    assert lines(ran.gm, "Conv2d", "cat") == [
        "stem = Conv2d(x)",
        "left = Conv2d(bn)",
        "right = Conv2d(bn)",
        "cat = cat([left_bn, bn, right_bn], 1)",
        "last = Conv2d(cat)",
    ]


class ReluGivesTheOutput(Model):
    """A binary layer feeds a ReLU that the graph returns: no float layer follows."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.conv, self.relu = conv3x3(3, 8), nn.BatchNorm2d(8), conv3x3(8, 8), nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv(self.bn(self.stem(x))))


def test_relu_that_is_the_output():
    config = bnnfx.Config(keep_float=("first",))
    assert run_pass(ReplaceRelu, ReluGivesTheOutput(), "xnor", config).refused == {"relu": STAYS}
    ran = run_pass(ReplaceRelu, ReluGivesTheOutput(), "rbnn", config)
    assert ran.after.splitlines()[-1] == "return relu_hardtanh"


@pytest.mark.parametrize("passage", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Dropout(), nn.Identity(), nn.ReLU6()])
def test_through_what_keeps_the_sign(passage):
    model = nn.Sequential(
        *(conv3x3(3, 8), nn.BatchNorm2d(8), nn.ReLU(), passage, nn.MaxPool2d(2)),
        *(conv3x3(8, 8), nn.Conv2d(8, 4, 1)),
    )
    ran = run_pass(BinarizeLayers, model)
    assert "ReLU" not in ran.after


def test_through_views_and_chunks():
    assert "ReLU" not in run_pass(ReplaceRelu, Shuffle()).after
    ran = run_pass(ReplaceRelu, FixedView())
    assert ran.report.applied == ["relu", "relu_1", "relu_2"]


class SumOfRelus(Model):
    """The binary layer reads a mean over columns of a sum of two ReLUs; a third ReLU feeds a float layer only."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0, self.other, self.bn1 = conv3x3(3, 8), nn.BatchNorm2d(8), conv3x3(3, 8), nn.BatchNorm2d(8)
        self.conv, self.last, self.wide = conv3x3(8, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        a, b = self.bn0(self.stem(x)), self.bn1(self.other(x))
        y = (self.relu(a) + self.relu(b)).mean(3, keepdim=True)
        return self.last(self.conv(y)), self.wide(self.relu(a - b))


@pytest.mark.parametrize("between", [lambda x: x + x, lambda x: F.hardtanh(x), lambda x: F.relu6(x).mean((2, 3), True)])
def test_other_ways_to_stay_positive(between):
    """A value plus itself, and activations behind the ReLU."""

    class Net(SumOfRelus):
        def forward(self, x):
            return self.last(self.conv(between(self.relu(self.bn0(self.stem(x))))))

    ran = run_pass(BinarizeLayers, Net())
    assert "ReLU" not in ran.after


def test_sum_of_relus():
    ran = run_pass(ReplaceRelu, SumOfRelus(), "bireal")
    assert ran.report.applied == ["relu", "relu_1"]
    assert lines(ran.gm, "ReLU") == ["relu_2 = ReLU relu(sub)"]


@pytest.mark.parametrize("scheme", bnnfx.schemes())
@pytest.mark.parametrize("name", HAZARDS)
def test_no_sign_behind_a_relu(name, scheme):
    """Asked of values, not of the graph: no binarizer is constant on random inputs."""
    model = HAZARDS[name]()
    gm = bnnfx.convert(model, scheme)
    seen = []
    for module in gm.modules():
        if isinstance(module, ActivationBinarizer):
            module.register_forward_hook(lambda module, inputs, bits: seen.append((module, bits.unique().tolist())))
    gm(*model.inputs())
    assert seen
    for module, values in seen:
        assert len(values) > 1
        assert set(values) <= set(module.levels)


def test_contract_when_the_pass_is_left_out(monkeypatch):
    monkeypatch.setattr(bnnfx.pipelines, "CONVERT", tuple(p for p in bnnfx.pipelines.CONVERT if p is not ReplaceRelu))
    with pytest.raises(StageError, match=r"node 'conv1_sign' binarizes a tensor that is never negative.*'relu'"):
        bnnfx.convert(Chain(), "xnor")


def test_contract_when_the_pass_does_nothing(monkeypatch):
    monkeypatch.setattr(ReplaceRelu, "rewrite", lambda self, match, plan: None)
    with pytest.raises(StageError, match="never negative"):
        bnnfx.convert(FixedView(), "bireal")
