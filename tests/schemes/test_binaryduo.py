"""BinaryDuo, coupled: the scale of a layer, the ternary activations, what happens to ReLUs, and whole networks."""

import pytest
import torch
from helpers.graphs import lines, text
from helpers.models import Chain, Model, PreActivation, Residual, SigmoidBeforeConv, conv3x3, loss_of
from torch import nn
from torch.nn import functional as F

import bnnfx
from bnnfx import Config, LayerConfig, StageError
from bnnfx._torchvision import import_torchvision
from bnnfx.graph.record import record_of
from bnnfx.nn import BinaryConv2d, BinaryLinear, TernaryActivation
from bnnfx.schemes.binaryduo import LayerScaledSign

FULL = Config(options={"width_factor": 1.0})
FLOAT_WEIGHTS = Config(options={"weight_bits": 32})


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


# weights


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (5, 7)])
def test_one_scale_per_layer(shape):
    weight = torch.randn(shape)
    weight[0, 0] = 0
    signs, scale = LayerScaledSign()(weight)
    assert torch.equal(signs, torch.where(weight >= 0, 1.0, -1.0))
    assert torch.equal(scale, weight.abs().mean().expand(shape[0]))


def test_gradient_of_the_scaled_weight_is_passed_on_unchanged():
    layer = BinaryConv2d(4, 5, 3, bias=False, binarizer=LayerScaledSign()).double()
    x, upstream = torch.rand(2, 4, 6, 6, dtype=torch.float64), torch.randn(2, 5, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[0] *= 100  # far outside of any clip
    (layer(x) * upstream).sum().backward()
    binary = torch.zeros_like(layer.weight, requires_grad=True)
    (F.conv2d(x, binary) * upstream).sum().backward()
    # sums of 32 products, one scaling and its inverse, in double
    atol = 1e-13 * 32 * float(binary.grad.abs().max())
    torch.testing.assert_close(layer.weight.grad, binary.grad, rtol=0, atol=atol)


def test_layer_of_zeros_is_finite():
    layer = BinaryLinear(4, 3, binarizer=LayerScaledSign())
    nn.init.zeros_(layer.weight)
    layer(torch.rand(2, 4)).sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_halved_and_repeated_weight_gives_the_same():
    """What `bnnfx.split` makes of a layer: [W/2, W/2] behind two bits whose sum is twice the ternary activation."""
    weight = torch.randn(3, 4, dtype=torch.float64)
    signs, scale = LayerScaledSign()(weight)
    halves, half_scale = LayerScaledSign()(torch.cat([weight / 2, weight / 2], 1))
    assert torch.equal(halves, torch.cat([signs, signs], 1))
    torch.testing.assert_close(half_scale, scale / 2, rtol=24 * torch.finfo(torch.float64).eps, atol=0)


# the graph


def test_activations_and_weights_of_a_chain():
    gm = bnnfx.convert(Chain(), "binaryduo")
    kinds = {name: type(m) for name, m in gm.named_modules() if isinstance(m, TernaryActivation)}
    assert list(kinds) == ["conv1_sign", "conv2_sign", "fc1_sign"]
    for layer in (gm.conv1, gm.conv2, gm.fc1):
        assert isinstance(layer.binarizer, LayerScaledSign)
    assert (type(gm.stem), type(gm.fc2)) == (nn.Conv2d, nn.Linear)


def test_dropping_the_relu_changes_nothing_in_a_chain():
    model = Chain()
    gm = bnnfx.convert(model, "binaryduo", config=FULL)
    assert lines(gm, "ReLU") == ["relu_3 = ReLU relu(bn3)"]
    (x,), act = model.inputs(), TernaryActivation()
    y = gm.bn1(gm.conv1(act(F.relu(gm.bn0(gm.stem(x))))))
    y = gm.pool(gm.bn2(gm.conv2(act(F.relu(y)))))
    y = gm.fc2(F.relu(gm.bn3(gm.fc1(act(torch.flatten(F.relu(y), 1))))))
    assert torch.equal(gm(x), y)


def test_relu_of_the_stream_is_dropped_and_the_last_one_stays():
    gm = bnnfx.convert(Residual(downsample=True), "binaryduo")
    assert lines(gm, "ReLU", "add") == [
        "add = add(block_bn2, block_downsample_1)",
        "block_relu_1 = ReLU block.relu(add)",
    ]
    assert "ReLU" not in text(bnnfx.convert(PreActivation(), "binaryduo"))
    report = next(r for r in record_of(gm).reports if r.name == "ReplaceRelu")
    assert "feeds float layers only" in report.refused[0].reason


def test_never_negative_input_is_no_obstacle():
    """A sigmoid in front of a sign would make it constant; in front of a ternary activation it does not."""
    gm = bnnfx.convert(SigmoidBeforeConv(), "binaryduo")
    assert isinstance(gm.gated, BinaryConv2d)
    assert "gated_sign = TernaryActivation(pool)" in text(gm)
    assert not isinstance(bnnfx.convert(SigmoidBeforeConv(), "bireal").gated, BinaryConv2d)


def test_batch_norm_is_inserted():
    model = nn.Sequential(conv3x3(3, 8), nn.ReLU(), conv3x3(8, 8), nn.MaxPool2d(2), nn.ReLU(), conv3x3(8, 4))
    gm = bnnfx.convert(model, "binaryduo", config=Config(keep_float=("first",)))
    assert text(gm).splitlines()[1:] == [
        "_0 = Conv2d 0(input_1)",
        "_0_bn = BatchNorm2d 0_bn(_0)",
        "_2_sign = TernaryActivation 2_sign(_0_bn)",
        "_2 = BinaryConv2d 2(_2_sign)",
        "_2_bn = BatchNorm2d 2_bn(_2)",
        "_3 = MaxPool2d 3(_2_bn)",
        "_5_sign = TernaryActivation 5_sign(_3)",
        "_5 = BinaryConv2d 5(_5_sign)",
        "_5_bn = BatchNorm2d 5_bn(_5)",
        "return _5_bn",
    ]


def test_shortcut_per_convolution_is_an_option():
    plain = bnnfx.convert(Residual(downsample=True), "binaryduo")
    more = bnnfx.convert(
        Residual(downsample=True), "binaryduo", config=Config(options={"shortcut_per_convolution": True})
    )
    assert len(lines(plain, "add")) == 1
    assert lines(more, "add") == [
        "add_1 = add(block_bn1, block_downsample_1)",
        "add = add(block_bn2, add_1)",
    ]
    without = bnnfx.convert(Residual(), "bireal", config=Config(options={"shortcut_per_convolution": False}))
    assert len(lines(without, "add")) == 1


# options


def test_float_weights():
    model = Chain()
    gm = bnnfx.convert(model, "binaryduo", config=FLOAT_WEIGHTS)
    assert {type(gm.get_submodule(name)) for name in ("conv1", "conv2")} == {nn.Conv2d}
    assert type(gm.fc1) is nn.Linear
    assert len(lines(gm, "TernaryActivation")) == 3
    loss_of(gm, model.inputs()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gm.parameters())
    notes = [n for r in record_of(gm).reports for n in r.notes if "its weight stays float" in n.reason]
    assert [n.subject for n in notes] == ["conv1", "conv2", "fc1"]


def test_float_weight_of_one_layer():
    gm = bnnfx.convert(Chain(), "binaryduo", config=Config(layers={"conv2": LayerConfig(options={"weight_bits": 32})}))
    assert (type(gm.conv1), type(gm.conv2)) == (BinaryConv2d, nn.Conv2d)


def test_other_number_of_bits():
    with pytest.raises(ValueError, match="weight_bits is 1 or 32; got 2"):
        bnnfx.convert(Chain(), "binaryduo", config=Config(options={"weight_bits": 2}))


# the other functions


@pytest.mark.parametrize("config", [None, FLOAT_WEIGHTS])
def test_lower_asks_for_the_split(config, tmp_path):
    model = Chain()
    gm = bnnfx.convert(model, "binaryduo", config=config)
    reason = r"'conv1_sign' has 3 levels \(0, 0\.5, 1\)\. Call bnnfx\.split first"
    with pytest.raises(StageError, match=reason):
        bnnfx.lower(gm, model.inputs())
    with pytest.raises(StageError, match=reason):
        bnnfx.export_onnx(gm, tmp_path / "model.onnx", example_inputs=model.inputs())
    assert not list(tmp_path.iterdir())


def test_calibrate_gives_the_occupancy_of_each_level():
    model = Chain()
    gm = bnnfx.convert(model, "binaryduo")
    seen = bnnfx.calibrate(gm, [model.inputs()[0] for _ in range(2)])
    layer, values = seen["conv1_sign"], []
    gm.eval().conv1_sign.register_forward_hook(lambda module, inputs, result: values.append(result))
    gm(*model.inputs())
    for level, occupied in zip((0, 0.5, 1), layer.occupied, strict=True):
        assert torch.equal(occupied, 2 * (values[0] == level).sum((0, 2, 3)))
    assert torch.equal(layer.occupied.sum(0), torch.full((5,), layer.count))
    assert "0: 0." in str(seen) and "0.5: 0." in str(seen)


# whole networks


@pytest.fixture(scope="module")
def torchvision():
    try:
        return import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "resnext50_32x4d"]
)
def test_networks_convert_and_train(torchvision, name):
    model = getattr(torchvision.models, name)(num_classes=10)
    gm = bnnfx.convert(model, "binaryduo")
    reports = {report.name: report for report in record_of(gm).reports}
    assert not reports["CoupleWidths"].refused
    x = torch.randn(2, 3, 32, 32)
    result = gm(x)
    assert result.shape == (2, 10)
    result.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gm.parameters())
    float_weights, coupled = (
        sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)) for net in (model, gm)
    )
    assert coupled < 0.75 * float_weights  # the first and last layers shrink on one side only


def test_published_widths_of_resnet18(torchvision):
    """64, 90, 180, 360; the authors widen the last convolution to 512, which their zero-padded shortcut allows."""
    widths = {"conv1": 64, "layer1.*": 64, "layer2.*": 90, "layer3.*": 180, "layer4.*": 360}
    gm = bnnfx.convert(torchvision.models.resnet18(), "binaryduo", config=Config(widths=widths))
    split = sum(2 * m.weight.numel() for m in gm.modules() if isinstance(m, BinaryConv2d))
    assert split == 294_912 + 541_080 + 2_041_200 + (9_149_760 - 720 * (512 - 360) * 9)
    assert gm.get_submodule("layer3.0.downsample.0").weight.shape == (180, 90, 1, 1)
    assert gm.fc.in_features == 360


class SameSizes(Model):
    """A stem, two convolutions and a classifier, for images that are not square."""

    shapes = ((3, 3, 5, 12),)

    def __init__(self):
        super().__init__()
        self.stem, self.conv1, self.conv2, self.fc = conv3x3(3, 7), conv3x3(7, 11), conv3x3(11, 13), nn.Linear(13, 3)

    def forward(self, x):
        return self.fc(self.conv2(F.relu(self.conv1(F.relu(self.stem(x))))).mean((2, 3)))


def test_odd_channels_and_images_that_are_not_square():
    model = SameSizes()
    gm = bnnfx.convert(model, "binaryduo", example_inputs=model.inputs())
    assert [gm.stem.out_channels, gm.conv1.out_channels, gm.conv2.out_channels, gm.fc.in_features] == [4, 7, 9, 9]
    loss_of(gm, model.inputs()).backward()
    assert gm(torch.randn(5, 3, 9, 4)).shape == (5, 3)
