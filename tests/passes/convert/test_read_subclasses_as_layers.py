import copy

import pytest
import torch
from helpers.graphs import golden, run_pass
from helpers.models import Model
from helpers.refusals import Doubled, SamePadded, Standardized
from torch import nn
from torch.nn import functional as F

import bnnfx
from bnnfx import Config, LayerConfig
from bnnfx._torchvision import import_torchvision
from bnnfx.errors import Refusal
from bnnfx.graph.plain_layers import PlainLayer, float_type, plain_layer
from bnnfx.nn import BinaryConv1d, BinaryConv2d, BinaryLinear
from bnnfx.passes.convert.read_subclasses_as_layers import ReadSubclassesAsLayers

ALL = Config(keep_float=())


class Own(nn.Conv2d):
    """Sets its padding itself, and calls torch's function."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.padding = tuple(k // 2 for k in self.kernel_size)

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Causal(nn.Conv1d):
    """Sees what was before only."""

    def forward(self, x):
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class Chomped(nn.Conv1d):
    """Pads both sides and cuts one off."""

    def forward(self, x):
        return super().forward(x)[..., : -self.padding[0]]


class Named(nn.Linear):
    """A linear layer that knows its name."""

    name = "linear"


class Clamped(nn.Conv2d):
    """Its weight goes no further than 1, which a new one does not."""

    def forward(self, x):
        return self._conv_forward(x, self.weight.clamp(-1, 1), self.bias)


class Noisy(nn.Conv2d):
    """Adds noise in training."""

    def forward(self, x):
        y = super().forward(x)
        return y + torch.randn_like(y) if self.training else y


class Masked(nn.Conv2d):
    """Multiplies its weight with a buffer, of ones as yet."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("mask", torch.ones_like(self.weight))

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.mask, self.bias)


def found(layer, *shape):
    plain = plain_layer(layer, [torch.Size(shape)])
    assert isinstance(plain, PlainLayer), plain
    return plain


@pytest.mark.parametrize(
    ("layer", "shape", "padding", "sides", "any_size"),
    [
        (Own(4, 6, (3, 5), stride=2, groups=2), (2, 4, 8, 9), (1, 2), (), True),
        (SamePadded(4, 6, 3, stride=2), (2, 4, 8, 9), (0, 0), ((0, 1), (1, 1)), False),
        (SamePadded(4, 6, 3, stride=2), (2, 4, 7, 9), (1, 1), (), False),
        (Causal(4, 6, 3, dilation=2), (2, 4, 11), (0,), ((4, 0),), True),
        (Chomped(4, 6, 3, padding=2, bias=False), (2, 4, 11), (0,), ((2, 0),), True),
    ],
)
def test_padding_is_found(layer, shape, padding, sides, any_size):
    plain = found(layer, *shape)
    assert (plain.module.padding, plain.sides, plain.any_size) == (padding, sides, any_size)
    assert plain.module.weight is layer.weight and plain.module.bias is layer.bias
    assert type(plain.module) is float_type(layer)


@pytest.mark.parametrize("kind", [Doubled, Clamped, Noisy, Masked, Standardized])
def test_what_computes_something_else(kind):
    layer = kind(4, 6, 3)
    before = copy.deepcopy(layer.state_dict())
    said = plain_layer(layer, [torch.Size((2, 4, 7, 7))])
    assert isinstance(said, Refusal)
    computes_weight = kind in (Clamped, Masked, Standardized)
    assert ("computes another weight at each call" in said.reason) == computes_weight
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


class Net(Model):
    """A layer between two others."""

    def __init__(self, layer, *, axes=2, size=(8, 8)):
        super().__init__()
        convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if axes == 1 else (nn.Conv2d, nn.BatchNorm2d)
        self.shapes = ((2, 6, *size),)
        self.stem, self.norm, self.layer, self.last = convolution(6, 6, 1), norm(6), layer, convolution(6, 4, 1)

    def forward(self, x):
        return self.last(self.layer(self.norm(self.stem(x))))


def test_golden():
    model = Net(SamePadded(6, 6, 3, stride=2))
    ran = run_pass(ReadSubclassesAsLayers, model, inputs=model.inputs())
    assert (
        golden("""
        pad = pad(norm, (0, 1, 0, 1))
        layer = Conv2d(pad)
    """)
        in ran.after
    )
    assert ran.after.count("_assert(") == 2


CASES = {
    "own": lambda: (Net(Own(6, 6, 3)), BinaryConv2d),
    "same": lambda: (Net(SamePadded(6, 6, 3, stride=2)), BinaryConv2d),
    "causal": lambda: (Net(Causal(6, 6, 3), axes=1, size=(13,)), BinaryConv1d),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scheme", bnnfx.schemes())
@pytest.mark.filterwarnings("ignore")  # constant bits
def test_every_form_gives_the_same(scheme, name, tmp_path):
    torch.manual_seed(0)
    model, kind = CASES[name]()
    bnn = bnnfx.convert(model, scheme, example_inputs=model.inputs(), config=ALL)
    assert type(bnn.layer) is kind and set(model.state_dict()) <= set(bnn.state_dict())
    bnn(*model.inputs()).square().sum().backward()
    torch.optim.SGD(bnn.parameters(), 0.01).step()
    bnn = bnnfx.api.split_if_ternary(bnn.eval())
    packed = bnnfx.lower(bnn, tuple(x[:1] for x in model.inputs()))
    assert bnnfx.verify(bnn, packed, model.inputs(1))
    assert bnnfx.verify(packed, bnnfx.export_onnx(packed, tmp_path / "net.onnx"), model.inputs(1))


def test_size_of_the_example_is_held():
    model = Net(SamePadded(6, 6, 3, stride=2))
    bnn = bnnfx.convert(model, "bireal", example_inputs=model.inputs(), config=ALL)
    with pytest.raises(AssertionError, match="'norm' has another size along axis 2 than 8"):
        bnn(torch.randn(2, 6, 9, 8))
    model = Net(Own(6, 6, 3))
    assert bnnfx.convert(model, "bireal", example_inputs=model.inputs(), config=ALL)(torch.randn(2, 6, 9, 8)).shape


def test_selected_by_its_own_type():
    model = Net(Own(6, 6, 3))
    config = Config(keep_float=(), layers={Own: LayerConfig(binarize=False)})
    rows = bnnfx.explain(bnnfx.convert(model, "bireal", example_inputs=model.inputs(), config=config)).layers
    assert {row.name: row.binarized for row in rows} == {"stem": True, "layer": False, "last": True}


def test_linear_layer_of_another_name():
    model = nn.Sequential(nn.Linear(8, 8), Named(8, 8), nn.Linear(8, 4))
    bnn = bnnfx.convert(model, "bireal", example_inputs=(torch.randn(4, 8),))
    assert type(bnn.get_submodule("1")) is BinaryLinear
    missing, unexpected = bnn.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all("_bn." in name for name in missing)


def test_what_changes_in_training_stays_float():
    model = Net(Noisy(6, 6, 3))
    (said, *_) = bnnfx.explain(bnnfx.convert(model, "bireal", example_inputs=model.inputs(), config=ALL))[
        "layer"
    ].findings
    assert said.reason == "Noisy computes something else than nn.Conv2d with its weight and bias"


def test_layers_of_timm():
    import_torchvision()
    layers = pytest.importorskip("timm.layers")
    assert found(layers.Linear(8, 4), 2, 5, 8).sides == ()
    assert found(layers.Conv2dSame(4, 4, 3, stride=2), 2, 4, 8, 8).sides == ((0, 1), (0, 1))
    said = plain_layer(layers.ScaledStdConv2d(4, 4, 3, padding=1), [torch.Size((2, 4, 8, 8))])
    assert isinstance(said, Refusal) and "computes another weight" in said.reason
