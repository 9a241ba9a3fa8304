"""Binary convolutions of sequences, through everything: every form of the model gives the same bits."""

import copy

import pytest
import torch
from helpers.forms import assert_forms_agree, trained
from helpers.sound import M5, TCN, Strided
from torch import nn

import bnnfx
from bnnfx import Config
from bnnfx.nn import BinaryConv1d, BinaryLayer, BinaryLinear
from bnnfx.schemes import schemes

MODELS = {"M5": M5, "TCN": TCN, "strided": Strided}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scheme", schemes())
@pytest.mark.filterwarnings("ignore")  # a prime fan-in, constant bits
def test_every_form_gives_the_same(scheme, name, tmp_path):
    torch.manual_seed(1)
    model = MODELS[name]()
    bnn = trained(model, scheme)
    assert [type(module) for module in bnn.modules() if isinstance(module, BinaryLayer)].count(BinaryConv1d) >= 3
    (x,) = model.inputs(1)
    assert_forms_agree(bnn, (x[:1],), (torch.cat([x, *model.inputs(3)]),), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_bits_go_from_layer_to_layer():
    """Pools and flattened sequences between them, too; views stand at the ends only."""
    model = Strided()
    packed = bnnfx.lower(trained(model, "xnor"), model.inputs())
    explained = {row.name: row for row in bnnfx.explain(packed).layers}
    assert all(explained[name].fused for name in ("conv1", "conv2", "down", "hidden"))
    names = [getattr(node.target, "__name__", str(node.target)) for node in packed.graph.nodes]
    assert names.count("unsqueeze") == 1 and names.count("squeeze") == 0
    assert any("max_pool2d" in name for name in names)


@pytest.mark.parametrize("scheme", ["bireal", "binaryduo"])
@pytest.mark.filterwarnings("ignore")
def test_costs_of_all_forms_agree(scheme, tmp_path):
    model = Strided()
    bnn = trained(model, scheme)
    packed = bnnfx.lower(bnn, model.inputs())
    path = bnnfx.export_onnx(packed, tmp_path / "strided.onnx")
    of_bnn, of_packed, of_file = (
        bnnfx.summary(form, inputs).totals for form, inputs in ((bnn, model.inputs()), (packed, None), (path, None))
    )
    assert of_bnn.binary_macs == of_packed.binary_macs == of_file.binary_macs > 0
    assert of_packed.one_bit_parameters == of_file.one_bit_parameters == of_bnn.one_bit_parameters


def test_costs_of_a_layer():
    model = Strided()
    costs = {row.name: row.cost for row in bnnfx.summary(trained(model, "bireal"), model.inputs()).layers}
    assert costs["down"].binary_macs == 12 * 70 * 9 * 4
    assert costs["hidden"].packed_bytes == 17 * 6 * 16 + 17 * 4  # 70 channels are two words per step


def test_threshold_of_every_sample():
    """RBNN with centring compares with the mean of a sequence."""
    model = Strided()
    bnn = trained(model, "rbnn", centre=True)
    assert bnnfx.verify(bnn, bnnfx.lower(bnn, model.inputs(1)), model.inputs(3))


def test_names_of_the_float_model():
    model = TCN()
    bnn = trained(model, "bireal")
    missing, unexpected = copy.deepcopy(bnn).load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all("_bn." in name for name in missing)
    assert isinstance(bnn.get_submodule("blocks.1.downsample"), nn.Conv1d)
    assert not isinstance(bnn.get_submodule("blocks.1.downsample"), BinaryLayer)


def test_sequences_and_linear_layers_of_tokens():
    """The same values as tokens, and back."""

    class Both(Strided):
        def forward(self, x):
            x = self.bn1(self.conv1(self.stem(x))).transpose(1, 2)
            x = torch.tanh(self.mix(x)).transpose(1, 2)
            return self.hidden(torch.flatten(self.down(x), 1))

    model = Both()
    model.mix, model.hidden = nn.Linear(9, 9), nn.Linear(70 * 12, 4)
    bnn = trained(model, "xnor")
    assert isinstance(bnn.mix, BinaryLinear)
    assert bnnfx.verify(bnn, bnnfx.lower(bnn, model.inputs(1)), model.inputs(3))


def test_sequence_that_is_read_as_a_map_later():
    """A view of the user's own behind the layer that reads the sequence."""

    class Later(Strided):
        def forward(self, x):
            x = self.stem(x)
            y = self.conv1(x)
            return self.bn1(y), x.unsqueeze(2)

    model = Later()
    bnn = bnnfx.convert(model, "bireal", example_inputs=model.inputs(), config=Config(keep_float=("first",))).eval()
    assert isinstance(bnn.conv1, BinaryConv1d)
    assert bnnfx.verify(bnn, bnnfx.lower(bnn, model.inputs(1)), model.inputs(3))
