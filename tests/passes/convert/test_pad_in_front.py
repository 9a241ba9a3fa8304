import pytest
import torch
from helpers.graphs import golden, run_pass
from helpers.models import Model
from torch import nn

import bnnfx
from bnnfx import Config
from bnnfx.nn import BinaryConv2d
from bnnfx.passes.convert.pad_in_front import PadInFront
from bnnfx.schemes import schemes

ALL = Config(keep_float=())

LAYERS = {
    "reflect": lambda: nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(6, 6, (3, 5), padding=(1, 2), padding_mode="replicate", bias=False),
    "circular": lambda: nn.Conv2d(6, 6, 3, padding=2, padding_mode="circular", dilation=2, groups=3),
    "reflect same": lambda: nn.Conv2d(6, 6, 4, padding="same", padding_mode="reflect"),
    "even kernel": lambda: nn.Conv2d(6, 6, (2, 3), padding="same"),
    "module": lambda: nn.Sequential(nn.ReflectionPad2d((1, 2, 0, 1)), nn.Conv2d(6, 6, 3)),
    "constant": lambda: nn.Sequential(nn.ConstantPad2d(1, -0.5), nn.Conv2d(6, 6, 3)),
}


class Padded(Model):
    """A layer between two others, with a ReLU and a dropout in front, in a residual block where that fits."""

    shapes = ((3, 6, 9, 8),)

    def __init__(self, layer):
        super().__init__()
        self.residual = layer(torch.zeros(1, 6, 9, 8)).shape[2:] == (9, 8)
        self.stem, self.bn1, self.relu = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.layer, self.bn2, self.drop = layer, nn.BatchNorm2d(6), nn.Dropout(0.2)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.relu(self.bn1(self.stem(x)))
        y = self.bn2(self.layer(self.drop(x)))
        return self.last(y + x if self.residual else y)


def test_golden():
    model = Padded(nn.Conv2d(6, 6, (3, 2), padding="same", padding_mode="reflect"))
    ran = run_pass(PadInFront, model, config=ALL, inputs=model.inputs())
    assert (
        golden("""
        pad = pad(bn1, (0, 1, 1, 1), mode=reflect)
        drop = Dropout(pad)
        layer = Conv2d(drop)
    """)
        in ran.after
    )
    assert (ran.gm.layer.padding, ran.gm.layer.padding_mode) == ((0, 0), "zeros")


def test_float_layers_stay():
    model = Padded(nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"))
    config = Config(layers={"layer": bnnfx.LayerConfig(binarize=False)}, keep_float=())
    assert run_pass(PadInFront, model, config=config).report.applied == []


def test_layer_that_is_called_twice():
    class Twice(Padded):
        def forward(self, x):
            return self.last(self.layer(self.bn2(self.layer(x))))

    model = Twice(nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular"))
    bnn = bnnfx.convert(model, "bireal", example_inputs=model.inputs(), config=ALL).eval()
    assert sum(node.target is nn.functional.pad for node in bnn.graph.nodes) == 2
    assert bnnfx.verify(bnn, bnnfx.lower(bnn, model.inputs()), model.inputs(1))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("scheme", schemes())
@pytest.mark.filterwarnings("ignore")  # constant bits
def test_every_form_gives_the_same(scheme, name, tmp_path):
    torch.manual_seed(0)
    model = Padded(LAYERS[name]())
    bnn = bnnfx.convert(model, scheme, example_inputs=model.inputs(), config=ALL)
    bnn(*model.inputs()).square().sum().backward()
    torch.optim.SGD(bnn.parameters(), 0.01).step()
    assert isinstance(bnn.get_submodule("layer.1" if name in ("module", "constant") else "layer"), BinaryConv2d)
    bnn = bnnfx.api.split_if_ternary(bnn.eval())
    packed = bnnfx.lower(bnn, tuple(x[:1] for x in model.inputs()))
    assert bnnfx.verify(bnn, packed, model.inputs(1))
    path = bnnfx.export_onnx(packed, tmp_path / "padded.onnx")
    assert bnnfx.verify(packed, path, model.inputs(1))
    standard = bnnfx.export_onnx(packed, tmp_path / "standard.onnx", dialect="standard")
    assert bnnfx.verify(packed, standard, model.inputs(1))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_bits_are_those_of_padded_bits(mode):
    """The layer that pads by itself, given the same signs, gives the same integers."""
    model = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, padding_mode=mode))
    x = torch.randn(2, 6, 5, 7)
    bnn = bnnfx.convert(model, "xnor", example_inputs=(x,), config=ALL).eval()
    layer = bnn.get_submodule("0")
    signs, scale = layer.binary_weight()
    own = nn.Conv2d(6, 6, 3, padding=1, padding_mode=mode, bias=False)
    own.weight.data = signs
    bits = torch.where(x >= 0, 1.0, -1.0)
    expected = own(bits) * scale.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
    before = bnn.get_submodule("0_bn")
    torch.testing.assert_close(bnn(x), before(expected))


def test_same_sequence_of_an_even_kernel():
    model = nn.Sequential(nn.Conv1d(6, 6, 4, padding="same"), nn.Conv1d(6, 6, 3, padding=1, padding_mode="replicate"))
    x = torch.randn(2, 6, 11)
    bnn = bnnfx.convert(model, "xnor", example_inputs=(x,), config=ALL).eval()
    assert bnnfx.verify(bnn, bnnfx.lower(bnn, (x,)), (x,))
    (note,) = (finding for finding in bnnfx.explain(bnn)["0"].findings if "zeros" in finding.reason)
    assert "padding=1" in note.remedy
