"""Binary linear layers of any rank, through everything: every form of the model gives the same bits."""

import copy

import pytest
import torch
from helpers.forms import assert_forms_agree, trained
from helpers.tokens import PermutedBlocks, Tokens
from torch import nn

import bnnfx
from bnnfx import Config
from bnnfx.nn import BinaryLayer, BinaryLinear, LastAxisBatchNorm
from bnnfx.schemes import schemes

MODELS = {
    "three axes": Tokens,
    "few channels": lambda: Tokens(5, act=nn.Hardtanh),
    "four axes": lambda: Tokens(16, (3, 4), norm=nn.RMSNorm),
    "five axes": lambda: Tokens(9, (2, 3, 2), norm=LastAxisBatchNorm, act=nn.Identity),
    "permuted maps": PermutedBlocks,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scheme", schemes())
@pytest.mark.filterwarnings("ignore")  # a prime fan-in, constant bits
def test_every_form_gives_the_same(scheme, name, tmp_path):
    torch.manual_seed(1)
    model = MODELS[name]()
    bnn = trained(model, scheme)
    layers = [type(module) for module in bnn.modules() if isinstance(module, BinaryLayer)]
    assert layers.count(BinaryLinear) >= 4
    assert_forms_agree(bnn, model.inputs(1), model.inputs(3), tmp_path)


@pytest.mark.parametrize("scheme", ["xnor", "binaryduo"])
def test_nothing_moves_between_binary_layers(scheme):
    """Views that take no time, and no transposition: of tokens none is needed anywhere."""
    model = Tokens()
    packed = bnnfx.lower(trained(model, scheme), model.inputs())
    names = [getattr(node.target, "__name__", str(node.target)) for node in packed.graph.nodes]
    assert "permute" not in names and "contiguous" not in names
    assert names.count("squeeze") > 0
    explained = bnnfx.explain(packed)
    packed_layers = {row.name for row in explained.layers if row.packed}
    # halves of an activation that is no step of an epilogue stay a node
    split = {"blocks.1.fc1", "blocks.2.fc1"} if scheme == "binaryduo" else set()
    assert {row.name for row in explained.layers if row.fused} == packed_layers - split
    assert len(packed_layers) == 8


def test_only_the_float_convolution_is_transposed():
    """What three float convolutions give goes to NHWC, and the stream back for the last of them and for the mean."""
    model = PermutedBlocks()
    config = Config(layers={"depthwise.*": bnnfx.LayerConfig(binarize=False)})
    packed = bnnfx.lower(bnnfx.convert(model, "bireal", config=config).eval(), model.inputs())
    permuted = [node for node in packed.graph.nodes if node.target is torch.permute]
    assert len(permuted) == 5


def test_names_of_the_float_model():
    model = Tokens()
    bnn = trained(model, "bireal")
    assert set(model.state_dict()) < set(bnn.state_dict())
    missing, unexpected = copy.deepcopy(bnn).load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all("_bn." in name for name in missing)


def test_centred_activations_of_tokens():
    """RBNN with centring compares with the mean of a sample's tokens."""
    model = Tokens(16)
    bnn = trained(model, "rbnn", centre=True)
    assert bnnfx.verify(bnn, bnnfx.lower(bnn, model.inputs(1)), model.inputs(3))


def test_float_weights_on_binary_tokens():
    model = Tokens(16)
    bnn = trained(model, "binaryduo", weight_bits=32)
    assert bnnfx.verify(bnn, bnnfx.lower(bnn, model.inputs(1)), model.inputs(3))


def test_observed_by_channel():
    model = Tokens(16, (6,))
    bnn = trained(model, "xnor")
    seen = bnnfx.calibrate(bnn, [model.inputs(8)])
    assert {len(seen[name].mean) for name in seen.layers} == {16, 35, 5}
    assert seen["blocks.0.q_sign"].count == 8 * 6
    bnnfx.summary(bnn, model.inputs())


def test_batch_that_is_not_the_first_axis():
    """No size of the example is written into the graph: sequences first, with another batch."""

    class SequenceFirst(Tokens):
        def forward(self, x):
            x = self.blocks[1](self.embed(x.transpose(0, 1)))
            return self.head(self.norm(x).mean(0))

    model = SequenceFirst()
    bnn = trained(model, "bireal")
    packed = bnnfx.lower(bnn, model.inputs(2))
    for batch in (1, 3):
        assert bnnfx.verify(bnn, packed, model.inputs(batch))
