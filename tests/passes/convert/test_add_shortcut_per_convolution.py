"""AddShortcutPerConvolution: Bi-Real Net's structure, where shapes allow it."""

import pytest
import torch
from helpers.graphs import golden, lines, run_pass
from helpers.models import BasicBlock, Bottleneck, Chain, Model, PreActivation, Residual, conv3x3
from torch import nn
from torch.nn import functional as F

from bnnfx import Config, LayerConfig
from bnnfx.passes.convert.add_shortcut_per_convolution import AddShortcutPerConvolution


def test_identity_block():
    ran = run_pass(AddShortcutPerConvolution, Residual(), "bireal")
    assert ran.before == golden("""
        x = input
        stem_0 = Conv2d(x)
        stem_1 = BatchNorm2d(stem_0)
        stem_2 = ReLU(stem_1)
        block_conv1 = Conv2d(stem_2)
        block_bn1 = BatchNorm2d(block_conv1)
        block_relu = ReLU(block_bn1)
        block_conv2 = Conv2d(block_relu)
        block_bn2 = BatchNorm2d(block_conv2)
        add = add(block_bn2, stem_2)
        block_relu_1 = ReLU block.relu(add)
        pool = AdaptiveAvgPool2d(block_relu_1)
        flatten = flatten(pool, 1)
        fc = Linear(flatten)
        return fc
    """)
    assert ran.after == golden("""
        x = input
        stem_0 = Conv2d(x)
        stem_1 = BatchNorm2d(stem_0)
        stem_2 = ReLU(stem_1)
        block_conv1 = Conv2d(stem_2)
        block_bn1 = BatchNorm2d(block_conv1)
        add_1 = add(block_bn1, stem_2)
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
    assert ran.report.applied == ["block.conv1 .. block.conv2"]


class ShortcutLast(BasicBlock):
    """The shortcut's layers run after the branch; the add spells its operands the other way round."""

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(self.downsample(x) + out)


@pytest.mark.parametrize("block", [BasicBlock, ShortcutLast])
def test_downsampling_block(block):
    """The block's own shortcut joins behind its first convolution, wherever it stood."""
    model = Residual(downsample=True)
    model.block = block(8, 16, stride=2)
    ran = run_pass(AddShortcutPerConvolution, model, "bireal")
    assert lines(ran.gm, "add") == [
        "add_1 = add(block_bn1, block_downsample_1)",
        "add = add(block_bn2, block_relu)",
    ]
    assert ran.gm(*model.inputs()).shape == (2, 4)


def test_the_function_is_the_stated_one():
    """y = relu(bn1(conv1(x)) + x), then relu(bn2(conv2(y)) + y)."""
    model = Residual().eval()
    ran = run_pass(AddShortcutPerConvolution, model, "bireal")
    (image,) = model.inputs()
    x, b = model.stem(image), model.block
    y = F.relu(b.bn1(b.conv1(x)) + x)
    z = F.relu(b.bn2(b.conv2(y)) + y)
    assert torch.equal(ran.gm.eval()(image), model.fc(model.pool(z).flatten(1)))


def test_pre_activation_block():
    ran = run_pass(AddShortcutPerConvolution, PreActivation(), "bireal")
    assert lines(ran.gm, "add", "ReLU") == [
        "relu = ReLU relu_relu(bn1)",
        "add_1 = add(bn2, stem)",
        "relu_1 = ReLU relu_1_relu(add_1)",
        "add = add(conv2_bn, relu_1)",
    ]


def test_two_blocks_in_a_row():
    model = Residual()
    model.block = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
    ran = run_pass(AddShortcutPerConvolution, model, "bireal")
    assert ran.report.applied == ["block.0.conv1 .. block.0.conv2", "block.1.conv1 .. block.1.conv2"]
    assert len(lines(ran.gm, "add")) == 4
    # the second block's shortcut is what the first one gives, not what the first one adds
    assert "add(block_1_bn1, block_0_relu_1)" in ran.after


class BlockGivesTheOutput(Model):
    """The add is what the graph returns; both convolutions are forced to be binary."""

    def __init__(self):
        super().__init__()
        self.bn, self.a, self.b = nn.BatchNorm2d(3), conv3x3(3, 3), conv3x3(3, 3)

    def forward(self, x):
        return self.b(self.a(self.bn(x))) + x


def test_add_that_is_the_output():
    ran = run_pass(AddShortcutPerConvolution, BlockGivesTheOutput(), "bireal", Config(keep_float=()))
    assert ran.report.applied == ["a .. b"]
    assert ran.after.splitlines()[-1] == "return add"
    # the chain reaches back to x over the first batch norm
    assert lines(ran.gm, "add") == ["add_1 = add(a_bn, x)", "add = add(b_bn, add_1)"]


class MiddleIsReadTwice(Model):
    """What lies between the convolutions is an output too: the value that the user asked for must not change."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.a, self.bn1, self.b, self.bn2 = conv3x3(8, 8), nn.BatchNorm2d(8), conv3x3(8, 8), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.bn0(self.stem(x))
        middle = self.bn1(self.a(x))
        return self.last(self.bn2(self.b(middle)) + x), middle


def test_value_with_two_readers_is_left():
    ran = run_pass(AddShortcutPerConvolution, MiddleIsReadTwice(), "bireal", Config(keep_float=("first",)))
    assert (ran.report.applied, ran.report.changed) == ([], False)


class Resize(Model):
    """A block whose second convolution changes the size of the map, and a shortcut that does the same."""

    def __init__(self, **second):
        super().__init__()
        self.stem, self.bn0 = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.conv1, self.conv2 = conv3x3(8, 8), nn.Conv2d(8, 8, **second)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.pool, self.last = nn.AdaptiveAvgPool2d(4), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.bn0(self.stem(x))
        y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        return self.last(y + self.pool(x))


@pytest.mark.parametrize(
    "second", [{"kernel_size": 2, "stride": 2}, {"kernel_size": 5}, {"kernel_size": 5, "padding": "valid"}]
)
def test_second_convolution_that_resizes(second):
    ran = run_pass(AddShortcutPerConvolution, Resize(**second), "bireal")
    assert ran.refused == {
        "conv1 .. conv2": "'conv2' changes the size of its map, so no identity fits around it",
    }
    assert not ran.report.changed


@pytest.mark.parametrize(
    "second",
    [
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": (1, 3), "padding": (0, 1)},
        {"kernel_size": 1, "padding": "valid"},
    ],
)
def test_second_convolution_that_keeps_the_size(second):
    model = Resize(**second)
    model.pool = nn.Identity()
    ran = run_pass(AddShortcutPerConvolution, model, "bireal")
    assert ran.report.applied == ["conv1 .. conv2"]
    ran.gm(*model.inputs())


def test_bottleneck_is_refused():
    ran = run_pass(AddShortcutPerConvolution, Bottleneck(), "bireal")
    assert ran.refused == {
        "conv1 .. conv3": "'conv3' changes the width from 4 to 8, so no identity fits around it",
    }


def test_block_that_is_partly_float():
    config = Config(layers={"block.conv1": LayerConfig(binarize=False)})
    ran = run_pass(AddShortcutPerConvolution, Residual(), "bireal", config)
    assert ran.refused["block.conv1 .. block.conv2"].startswith("'block.conv1' in this block stays float")


def test_block_that_is_all_float():
    config = Config(layers={"block.conv?": LayerConfig(binarize=False), "fc": LayerConfig(binarize=True)})
    ran = run_pass(AddShortcutPerConvolution, Residual(), "bireal", config)
    assert (ran.report.applied, ran.refused) == ([], {})


@pytest.mark.parametrize(("scheme", "model"), [("xnor", Residual), ("bireal", Chain)])
def test_nothing_to_do(scheme, model):
    ran = run_pass(AddShortcutPerConvolution, model(), scheme)
    assert (ran.report.applied, ran.refused, ran.report.changed) == ([], {}, False)
