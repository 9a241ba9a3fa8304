"""InsertBatchNorm: behind binary layers and the float layers that feed them, and nowhere else."""

import pytest
import torch
from helpers.graphs import golden, run_pass
from helpers.models import Chain, Model, NoBatchNorm, PreActivation, SharedLayer, Shuffle, conv3x3
from torch import nn
from torch.nn import functional as F

from bnnfx import Config
from bnnfx.nn import LastAxisBatchNorm
from bnnfx.passes.convert.insert_batchnorm import InsertBatchNorm

ALL = Config(keep_float=())


def test_where_there_is_none():
    ran = run_pass(InsertBatchNorm, NoBatchNorm())
    assert ran.before == golden("""
        x = input
        features_0 = Conv2d(x)
        features_1 = ReLU(features_0)
        features_2 = Conv2d(features_1)
        features_3 = ReLU(features_2)
        features_4 = MaxPool2d(features_3)
        features_5 = Conv2d(features_4)
        features_6 = ReLU(features_5)
        features_7 = MaxPool2d(features_6)
        flatten = flatten(features_7, 1)
        classifier_0 = Dropout(flatten)
        classifier_1 = Linear(classifier_0)
        classifier_2 = ReLU(classifier_1)
        classifier_3 = Dropout(classifier_2)
        classifier_4 = Linear(classifier_3)
        return classifier_4
    """)
    assert ran.after == golden("""
        x = input
        features_0 = Conv2d(x)
        features_0_bn = BatchNorm2d(features_0)
        features_1 = ReLU(features_0_bn)
        features_2 = Conv2d(features_1)
        features_2_bn = BatchNorm2d(features_2)
        features_3 = ReLU(features_2_bn)
        features_4 = MaxPool2d(features_3)
        features_5 = Conv2d(features_4)
        features_5_bn = BatchNorm2d(features_5)
        features_6 = ReLU(features_5_bn)
        features_7 = MaxPool2d(features_6)
        flatten = flatten(features_7, 1)
        classifier_0 = Dropout(flatten)
        classifier_1 = Linear(classifier_0)
        classifier_1_bn = BatchNorm1d(classifier_1)
        classifier_2 = ReLU(classifier_1_bn)
        classifier_3 = Dropout(classifier_2)
        classifier_4 = Linear(classifier_3)
        return classifier_4
    """)


@pytest.mark.parametrize("model", [Chain, lambda: nn.Sequential(*_chain_with_passages())])
def test_nothing_where_all_is_normalized(model):
    ran = run_pass(InsertBatchNorm, model())
    assert not ran.report.changed
    assert len(ran.context.binary) > 0


def _chain_with_passages():
    yield from (conv3x3(3, 8), nn.BatchNorm2d(8))
    yield from (conv3x3(8, 8), nn.MaxPool2d(2), nn.Hardtanh(), nn.Dropout(), nn.Identity(), nn.BatchNorm2d(8))
    yield from (conv3x3(8, 8), nn.Flatten(), nn.BatchNorm1d(8 * 16), nn.Linear(8 * 16, 4))


def test_each_call_of_a_shared_layer_gets_its_own():
    ran = run_pass(InsertBatchNorm, SharedLayer())
    assert ran.report.applied == ["conv", "conv"]
    assert ran.after == golden("""
        x = input
        stem = Conv2d(x)
        bn = BatchNorm2d(stem)
        relu = ReLU(bn)
        conv = Conv2d(relu)
        conv_bn = BatchNorm2d(conv)
        relu_1 = ReLU relu(conv_bn)
        conv_1 = Conv2d conv(relu_1)
        conv_bn_1 = BatchNorm2d(conv_1)
        last = Conv2d(conv_bn_1)
        return last
    """)
    assert ran.gm.conv_bn is not ran.gm.conv_bn_1


class OneReaderNormalizes(Model):
    """Of the two readers of a convolution, only one is a batch norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = conv3x3(3, 8), nn.BatchNorm2d(8)
        self.conv, self.bn1 = conv3x3(8, 8), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.conv(self.bn(self.stem(x)))
        return self.last(self.bn1(x) + x)


def test_every_reader_must_be_normalized():
    ran = run_pass(InsertBatchNorm, OneReaderNormalizes())
    assert ran.report.applied == ["conv"]
    assert "bn1 = BatchNorm2d(conv_bn)" in ran.after
    assert "add = add(bn1, conv_bn)" in ran.after


def test_binary_layer_that_gives_the_output():
    ran = run_pass(InsertBatchNorm, nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4)), config=ALL)
    assert ran.after.splitlines()[-2:] == ["_1_bn = LastAxisBatchNorm 1_bn(_1)", "return _1_bn"]


def test_two_paths_to_a_batch_norm():
    class Net(Model):
        def __init__(self):
            super().__init__()
            self.stem, self.bn, self.bn2 = conv3x3(3, 8), nn.BatchNorm2d(8), nn.BatchNorm2d(16)
            self.a, self.last = conv3x3(8, 8), nn.Conv2d(16, 4, 1)

        def forward(self, x):
            x = self.a(self.bn(self.stem(x)))
            return self.last(self.bn2(torch.cat([F.relu(x), x], 1)))

    assert not run_pass(InsertBatchNorm, Net()).report.changed


def test_float_layer_behind_a_rearrangement():
    """The float layer that feeds a binary one is found through view, transpose and chunk."""

    class Net(Shuffle):
        def __init__(self):
            super().__init__()
            self.bn = nn.Identity()

    assert run_pass(InsertBatchNorm, Net()).report.applied == ["stem", "conv"]


def test_pre_activation_keeps_its_own():
    assert run_pass(InsertBatchNorm, PreActivation()).report.applied == ["conv2"]


def test_type_mode_and_initial_function():
    ran = run_pass(InsertBatchNorm, NoBatchNorm().double().eval())
    norm = ran.gm.get_submodule("features.2_bn")
    assert norm.weight.dtype is torch.float64
    assert not norm.training
    assert (norm.num_features, norm.affine, norm.track_running_stats) == (8, True, True)


@pytest.mark.parametrize("inputs", [None, (torch.randn(2, 5, 8),), (torch.randn(2, 3, 5, 8),)])
def test_over_the_last_axis(inputs):
    """Where a linear layer's input has more axes than two, or the graph does not tell how many."""
    model = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4)).double()
    inputs = None if inputs is None else (inputs[0].double(),)
    ran = run_pass(InsertBatchNorm, model, config=ALL, inputs=inputs)
    assert ran.report.applied == ["0", "2"]
    norm = ran.gm.get_submodule("0_bn")
    assert (type(norm), norm.num_features, norm.weight.dtype) == (LastAxisBatchNorm, 6, torch.float64)
    ran = run_pass(InsertBatchNorm, model, config=ALL, inputs=(torch.randn(2, 8).double(),))
    assert type(ran.gm.get_submodule("0_bn")) is nn.BatchNorm1d


@pytest.mark.parametrize("norm", [nn.LayerNorm, LastAxisBatchNorm])
def test_norm_over_the_last_axis_is_one(norm):
    model = nn.Sequential(nn.Linear(8, 8), norm(8), nn.Linear(8, 8), norm(8), nn.Linear(8, 4), norm(4))
    assert not run_pass(InsertBatchNorm, model, config=ALL, inputs=(torch.randn(2, 5, 8),)).report.changed
