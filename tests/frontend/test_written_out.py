"""Attention and transformer encoders written out: the values of torch's modules in both modes, layers for the rest."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import bnnfx
from bnnfx import Config
from bnnfx.frontend.check_values import first_difference
from bnnfx.frontend.trace import trace
from bnnfx.frontend.written_out import MultiheadAttention

WIDTH, HEADS = 16, 4


class Calls(nn.Module):
    """A module of torch, called in some way."""

    def __init__(self, inner, call):
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, x):
        return self.call(self.inner, x)


class CallsWithTwo(Calls):
    """The same, with a second tensor."""

    def forward(self, x, y):
        return self.call(self.inner, x, y)


def attention(**options):
    torch.manual_seed(0)
    return nn.MultiheadAttention(WIDTH, HEADS, **options)


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, **options)
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)


X = torch.randn(3, 5, WIDTH)
OTHER = torch.randn(3, 7, WIDTH)
CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False] * 4 + [True], [False] * 5, [False] * 3 + [True] * 2])
EVERY_HEAD = torch.randn(3 * HEADS, 5, 5)
SELF = {
    "weights": lambda m, x: m(x, x, x),
    "weights of each head": lambda m, x: m(x, x, x, average_attn_weights=False),
    "no weights": lambda m, x: m(x, x, x, need_weights=False)[0],
    "causal": lambda m, x: m(x, x, x, need_weights=False, attn_mask=CAUSAL, is_causal=True)[0],
}
MASKED = {
    "causal and padding": lambda m, x: m(x, x, x, PADDING, attn_mask=CAUSAL),
    "a mask for each head": lambda m, x: m(x, x, x, need_weights=False, attn_mask=EVERY_HEAD)[0],
    "padding in numbers": lambda m, x: m(x, x, x, PADDING * -3.0, need_weights=False)[0],
}
CROSS = {
    "other keys": lambda m, x, y: m(x, y, y, need_weights=False)[0],
    "other values": lambda m, x, y: m(x, y, y * 2),
}


def assert_same(model, *inputs):
    """Traced with layers in it, and equal in both modes with the same random numbers."""
    traced = trace(model)
    assert not traced.remarks
    assert not any(isinstance(module, nn.MultiheadAttention) for module in traced.gm.modules())
    assert first_difference(model, traced.gm, inputs, traced.modes) is None
    return traced.gm


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"bias": False, "dropout": 0.3}], ids=str)
@pytest.mark.parametrize("name", SELF)
def test_attention_to_itself(name, options):
    for batch_first in (True, False):
        model = Calls(attention(batch_first=batch_first, **options), SELF[name])
        gm = assert_same(model, X if batch_first else X.transpose(0, 1))
        assert type(gm.get_submodule("inner.in_proj")) is type(gm.get_submodule("inner.out_proj")) is nn.Linear
        gm = assert_same(model, X[0])  # without a batch
    assert not hasattr(gm.inner, "q_proj")


@pytest.mark.parametrize("name", MASKED)
def test_masks(name):
    assert_same(Calls(attention(batch_first=True, dropout=0.3), MASKED[name]), X)
    assert_same(Calls(attention(dropout=0.3), MASKED[name]), X.transpose(0, 1))


@pytest.mark.parametrize("name", CROSS)
def test_attention_to_something_else(name):
    gm = assert_same(CallsWithTwo(attention(batch_first=True, dropout=0.3), CROSS[name]), X, OTHER)
    assert gm.inner.k_proj.weight.shape == (WIDTH, WIDTH) and not hasattr(gm.inner, "in_proj")


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder(norm_first, batch_first):
    model = Calls(
        encoder(norm_first=norm_first, batch_first=batch_first, activation="gelu", dropout=0.3), lambda m, x: m(x)
    )
    gm = assert_same(model, X)
    assert {name for name, _ in gm.named_parameters() if "self_attn" not in name} == {
        name for name, _ in model.named_parameters() if "self_attn" not in name
    }
    masked = Calls(encoder(norm_first=norm_first, batch_first=True), lambda m, x: m(x, CAUSAL, is_causal=True))
    assert_same(masked, X)


def test_the_model_itself():
    assert_same(encoder(batch_first=True), X)
    assert_same(nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True, activation=nn.SiLU()), X)


def test_padding_in_training_as_without_fast_path():
    """In evaluation torch's fast path gives what is padded other values; nobody may read those."""
    model = encoder(batch_first=True).train()
    gm = trace(Calls(model, lambda m, x: m(x, src_key_padding_mask=PADDING))).gm.train()
    torch.manual_seed(3)
    expected = model(X, src_key_padding_mask=PADDING)
    torch.manual_seed(3)
    torch.testing.assert_close(gm(X), expected)


def hooked(module):
    module.register_forward_hook(lambda *given: None)
    return module


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (lambda: attention(add_bias_kv=True), "it adds keys and values of its own"),
        (lambda: attention(add_zero_attn=True), "it adds keys and values of its own"),
        (lambda: attention(kdim=WIDTH, vdim=8), "keys or values have another width"),
        (lambda: hooked(attention()), "it has hooks"),
    ],
)
def test_what_is_kept_whole(inner, reason):
    model = Calls(inner(), lambda m, x: m(x, x, x[..., : m.vdim])[0])
    traced = trace(model)
    (remark,) = traced.remarks
    assert remark.subject == "inner" and reason in remark.reason
    assert first_difference(model, traced.gm, (X,)) is None
    assert {*traced.gm.state_dict()} == {*model.state_dict()}


def test_called_in_both_ways():
    model = Calls(attention(), lambda m, x: m(x, x, x)[0] + m(x, x * 2, x)[0])
    traced = trace(model)
    assert "with one tensor for query, key and value, and with several" in traced.remarks[0].reason
    assert {*traced.gm.state_dict()} == {*model.state_dict()}
    assert first_difference(model, traced.gm, (X,)) is None


def test_subclass_stays():
    class Own(nn.MultiheadAttention):
        def forward(self, query, key, value):
            return super().forward(query, key, value)[0] * 2

    model = Calls(Own(WIDTH, HEADS), lambda m, x: m(x, x, x))
    assert type(trace(model).gm.inner) is Own


def whole(**options):
    body = encoder(batch_first=True, dropout=0.1, **options)
    return nn.Sequential(nn.Linear(7, WIDTH), body, nn.Linear(WIDTH, 4))


@pytest.mark.parametrize("scheme", bnnfx.schemes())
@pytest.mark.parametrize("norm_first", [True, False])
def test_through_everything(scheme, norm_first, tmp_path):
    model, x = whole(norm_first=norm_first), torch.randn(4, 5, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing is kept whole
        warnings.filterwarnings("ignore", "A fan-in")
        bnn = bnnfx.convert(model, scheme, example_inputs=(x,))
    explained = bnnfx.explain(bnn)
    names = [f"1.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.in_proj", "self_attn.out_proj")]
    assert {row.name for row in explained.layers if row.binarized} == {
        *names,
        *(f"1.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)),
    }
    bnn(x).square().sum().backward()
    bnn = bnnfx.api.split_if_ternary(bnn.eval())
    packed = bnnfx.lower(bnn, (x[:1],))
    assert bnnfx.verify(bnn, packed, (x,))
    assert bnnfx.verify(packed, bnnfx.export_onnx(packed, tmp_path / "encoder.onnx"), (x,))


def test_weights_of_the_float_model_load():
    model, other = whole(), whole()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    for make in (lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        bnn = make(bnnfx.convert(model, "bireal", config=Config()))
        assert not bnn.load_state_dict(other.state_dict(), strict=False).unexpected_keys
        layer, expected = bnn.get_submodule("1.layers.1.self_attn.in_proj"), other[1].layers[1].self_attn
        assert torch.equal(layer.weight, expected.in_proj_weight) and torch.equal(layer.bias, expected.in_proj_bias)
        bnn.load_state_dict(copy.deepcopy(bnn).state_dict())
    cross = bnnfx.convert(Calls(attention(), lambda m, x: m(x, x, x * 2)[0]), "xnor", config=Config(keep_float=()))
    assert not cross.load_state_dict(Calls(attention(), None).state_dict(), strict=False).unexpected_keys
    assert torch.equal(cross.inner.v_proj.weight, attention().in_proj_weight[2 * WIDTH :])


def test_parameters_stay_what_they_are():
    model = Calls(attention(), lambda m, x: m(x, x, x)[0])
    model.inner.in_proj_weight.requires_grad_(False)
    gm = trace(model).gm
    assert {name: p.requires_grad for name, p in gm.named_parameters()} == {
        "inner.in_proj.weight": False,
        "inner.in_proj.bias": True,
        "inner.out_proj.weight": True,
        "inner.out_proj.bias": True,
    }
    assert not any(isinstance(module, MultiheadAttention) for module in model.modules())
