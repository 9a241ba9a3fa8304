"""Binary layers, weight and activation binarizers, and the sign function with its pseudo-gradient."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnnfx.nn import (
    BINARY_LAYERS,
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    ScaledSign,
    SignActivation,
    WeightBinarizer,
)
from bnnfx.nn.observer import ChannelStatistics
from bnnfx.nn.sign import sign
from bnnfx.nn.weight import exact_zeros
from bnnfx.numerics.surrogates import approx_sign, clipped_identity

EPSILON = torch.finfo(torch.float64).eps
NAN = float("nan")


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def random_signs(*shape, dtype=torch.float64):
    return torch.where(torch.rand(shape) < 0.5, -1, 1).to(dtype)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


class Shifted(WeightBinarizer):
    """Has a parameter and a buffer of its own: sign(W - shift), scale 2."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.progress = None

    def forward(self, weight):
        return sign(weight - self.shift, clipped_identity), weight.new_full((weight.shape[0],), 2.0)

    def on_epoch(self, progress):
        self.progress = progress

    def between_epochs(self, weight):
        self.epochs += 1
        self.seen = (weight, torch.is_grad_enabled())


class Centred(WeightBinarizer):
    """Replaces the latent weight by the centred one in training."""

    projects = True

    def prepare(self, weight):
        return weight - weight.mean(dim=1, keepdim=True)

    def forward(self, weight):
        return sign(weight, clipped_identity), weight.abs().flatten(1).mean(dim=1)


CONVOLUTIONS = [
    {"in_channels": 6, "out_channels": 4, "kernel_size": 3, "padding": 1},
    {"in_channels": 6, "out_channels": 4, "kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2), "bias": False},
    {"in_channels": 6, "out_channels": 4, "kernel_size": 2, "dilation": 2, "groups": 2},
    {"in_channels": 6, "out_channels": 6, "kernel_size": 1, "groups": 6},
    {"in_channels": 6, "out_channels": 1, "kernel_size": 3, "padding": "same"},
]
SEQUENCES = [
    {"in_channels": 6, "out_channels": 4, "kernel_size": 5, "stride": 2, "padding": 2, "bias": False},
    {"in_channels": 6, "out_channels": 4, "kernel_size": 2, "dilation": 3, "groups": 2},
]
LINEARS = [{"in_features": 12, "out_features": 5}, {"in_features": 12, "out_features": 1, "bias": False}]
KINDS = {BinaryConv2d: CONVOLUTIONS, BinaryConv1d: SEQUENCES, BinaryLinear: LINEARS}
LAYERS = [(kind, case) for kind, cases in KINDS.items() for case in cases]
NAMES = ["padding", "strided", "dilated groups", "depthwise", "same", "1-D", "1-D groups", "linear", "linear to 1"]
each_layer = pytest.mark.parametrize(("kind", "case"), LAYERS, ids=NAMES)


def example_input(kind, dtype=torch.float64):
    return random_signs(
        *{BinaryConv2d: (3, 6, 7, 5), BinaryConv1d: (3, 6, 11), BinaryLinear: (3, 12)}[kind], dtype=dtype
    )


def float_forward(layer, x, weight):
    """What the float layer of the same settings computes with this weight."""
    if not isinstance(layer, nn.Linear):
        function = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
        return function(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(x, weight, layer.bias)


def fan_in(layer):
    return layer.weight[0].numel()


# --- forward ---


@each_layer
def test_forward_is_the_float_layer_with_scaled_signs(kind, case):
    layer, x = kind(**case).double(), example_input(kind)
    alpha = layer.weight.abs().flatten(1).mean(1)
    signs = torch.where(layer.weight >= 0, 1.0, -1.0).double()
    expected = float_forward(layer, x, signs * alpha.view(-1, *[1] * (layer.weight.ndim - 1)))
    # n products of size alpha, n additions of sums up to n * alpha, then the bias
    n, largest = fan_in(layer), fan_in(layer) * alpha.max().item() + 1
    assert (layer(x) - expected).abs().max() <= (n + 2) * EPSILON * largest


@each_layer
def test_integers_are_exact_before_scaling(kind, case):
    layer = kind(**case)
    x = example_input(kind, torch.float32)
    signs, _ = layer.binary_weight()
    integers = layer.accumulate(x, signs)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    layer.bias = None
    assert torch.equal(integers.double(), float_forward(layer, x.double(), signs.double()))
    assert torch.equal(integers, integers.round())
    assert integers.abs().max() <= fan_in(layer)


@each_layer
def test_scale_then_bias_in_this_order(kind, case):
    layer, x = kind(**case), example_input(kind, torch.float32)
    signs, scale = layer.binary_weight()
    shape = (-1, *(1,) * (layer.weight.ndim - 2))
    expected = layer.accumulate(x, signs) * scale.view(shape)
    if layer.bias is not None:
        expected = expected + layer.bias.view(shape)
    assert torch.equal(layer(x), expected)


def test_zero_weights_count_as_plus_one():
    weight = torch.tensor([[0.0, -0.0, 0.5, -0.5]])
    signs, scale = ScaledSign()(weight)
    assert signs.tolist() == [[1, 1, 1, -1]]
    assert scale.tolist() == [0.25]
    assert exact_zeros(weight) == 2


def test_binarizer_is_used_and_default_is_scaled_sign():
    layer = BinaryLinear(12, 5, bias=False, binarizer=Shifted())
    x = random_signs(2, 12, dtype=torch.float32)
    assert torch.equal(layer(x), 2 * F.linear(x, torch.where(layer.weight - 0.1 >= 0, 1.0, -1.0)))
    assert isinstance(BinaryLinear(3, 2).binarizer, ScaledSign)
    assert isinstance(BinaryConv2d(3, 2, 1).binarizer, ScaledSign)


# --- gradients ---


@pytest.mark.parametrize("shape", [(4, 9), (3, 2, 3, 3), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_scaled_sign_is_the_closed_formula(shape, seed):
    """alpha 1[|W| <= 1] g_i + sign(W_i) / n * sum_j g_j sign(W_j)."""
    torch.manual_seed(seed)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    g = torch.randn(shape, dtype=torch.float64)
    signs, scale = ScaledSign()(weight)
    per_filter = (-1, *[1] * (len(shape) - 1))
    (signs * scale.view(per_filter)).backward(g)

    w, n = weight.detach(), weight[0].numel()
    alpha = w.abs().flatten(1).mean(1).view(per_filter)
    window = w.abs() <= 1
    if n > 1:
        assert window.any()
        assert not window.all()
    correlation = (g * w.sign()).flatten(1).sum(1).view(per_filter)
    expected = alpha * window * g + w.sign() / n * correlation
    rounding = (n + 8) * EPSILON * (g.abs().flatten(1).sum(1).max() / n + alpha.max() * g.abs().max())
    assert (weight.grad - expected).abs().max() <= rounding


def test_gradient_reaches_the_input_the_weight_and_the_bias():
    layer = BinaryConv2d(3, 2, 3, padding=1).double()
    x = random_signs(2, 3, 4, 4).requires_grad_()
    g = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    layer(x).backward(g)
    signs, scale = layer.binary_weight()
    by_weight = signs * scale.view(-1, 1, 1, 1)
    expected = torch.nn.grad.conv2d_input(x.shape, by_weight, g, padding=1)
    rounding = 18 * 4 * EPSILON * g.abs().sum()
    assert (x.grad - expected).abs().max() <= rounding
    assert (layer.bias.grad - g.sum((0, 2, 3))).abs().max() <= rounding
    for_weight = torch.nn.grad.conv2d_weight(x.detach(), layer.weight.shape, g, padding=1)
    latent = layer.weight.detach().clone().requires_grad_()
    signs, scale = ScaledSign()(latent)
    (signs * scale.view(-1, 1, 1, 1)).backward(for_weight)
    assert (layer.weight.grad - latent.grad).abs().max() <= 32 * rounding
    assert layer.weight.grad.abs().min() > 0


def test_autocast_gives_finite_gradients():
    layer, binarize = BinaryConv2d(3, 2, 3), SignActivation(approx_sign)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(binarize(x))
    # 27 terms: the accumulator is exact in bfloat16, which holds integers up to 256
    signs, _ = layer.binary_weight()
    with torch.autocast("cpu", torch.bfloat16):
        integers = layer.accumulate(binarize(x), signs)
    assert integers.dtype == torch.bfloat16
    assert torch.equal(integers.double(), F.conv2d(binarize(x).double(), signs.double()))
    result.float().square().mean().backward()
    for tensor in (x, layer.weight, layer.bias):
        assert tensor.grad.dtype == torch.float32
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


# --- modules ---


@pytest.mark.parametrize("kind", [BinaryConv2d, BinaryLinear])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("binarizer", [ScaledSign, Shifted])
def test_state_dict_is_torchs_plus_the_binarizers(kind, bias, binarizer):
    shape = (3, 2, 3) if kind is BinaryConv2d else (3, 2)
    (float_kind,) = (f for f, b in BINARY_LAYERS.items() if b is kind)
    float_layer = float_kind(*shape, bias=bias)
    expected = [*float_layer.state_dict(), *(f"binarizer.{key}" for key in binarizer().state_dict())]
    assert list(kind(*shape, bias=bias, binarizer=binarizer()).state_dict()) == expected
    assert list(kind.from_float(float_layer, binarizer()).state_dict()) == expected


def test_float_checkpoint_loads():
    float_layer, layer = nn.Conv2d(3, 2, 3), BinaryConv2d(3, 2, 3)
    assert not torch.equal(layer.weight, float_layer.weight)
    layer.load_state_dict(float_layer.state_dict())
    assert torch.equal(layer.weight, float_layer.weight)
    assert torch.equal(layer.bias, float_layer.bias)


@each_layer
@pytest.mark.parametrize("training", [True, False])
def test_from_float_shares_the_parameters_and_keeps_the_settings(kind, case, training):
    (float_kind,) = (f for f, b in BINARY_LAYERS.items() if b is kind)
    float_layer = float_kind(**case).train(training).double()
    float_layer.weight.requires_grad_(False)
    binarizer = ScaledSign()
    layer = kind.from_float(float_layer, binarizer)
    assert layer.weight is float_layer.weight
    assert layer.bias is float_layer.bias
    assert layer.binarizer is binarizer
    assert not layer.weight.requires_grad
    assert (layer.training, layer.binarizer.training) == (training, training)
    x = example_input(kind)
    direct = kind(**case).double()
    direct.load_state_dict(float_layer.state_dict())
    assert torch.equal(layer(x), direct(x))
    assert all(p.device.type == "cpu" for p in layer.parameters())


@each_layer
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_duplicates_are_equal_and_apart(kind, case, duplicate):
    layer = kind(**case, binarizer=Shifted())
    other, x = duplicate(layer), example_input(kind, torch.float32)
    before = layer(x)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        other.weight.neg_()
        other.binarizer.shift.add_(1)
    assert torch.equal(layer(x), before)
    assert not torch.equal(other(x), before)


@each_layer
def test_train_and_eval_agree_and_conversion_to_float64_works(kind, case):
    layer, x = kind(**case), example_input(kind, torch.float32)
    in_training = layer.train()(x)
    assert torch.equal(layer.eval()(x), in_training)
    wide = layer.to(torch.float64)(x.double())
    assert wide.dtype == torch.float64
    n, epsilon = fan_in(layer), torch.finfo(torch.float32).eps
    largest = n * layer.weight.abs().max().item() + 1
    assert (wide - in_training).abs().max() <= (n + 4) * epsilon * largest


def test_activation_binarizer_can_be_duplicated():
    binarize = SignActivation(approx_sign)
    binarize.statistics = ChannelStatistics()
    binarize(torch.randn(2, 3))
    for other in (copy.deepcopy(binarize), pickled(binarize)):
        other(torch.randn(5, 3))
        assert (other.statistics.count, binarize.statistics.count) == (7, 2)
        assert other.surrogate is approx_sign


def test_projection_is_written_back_in_training_only():
    layer = BinaryLinear(12, 5, bias=False, binarizer=Centred())
    x, latent = random_signs(2, 12, dtype=torch.float32), layer.weight.detach().clone()
    parameter = layer.weight
    centred = latent - latent.mean(1, keepdim=True)
    in_eval = layer.eval()(x)
    assert torch.equal(layer.weight, latent)
    in_training = layer.train()(x)
    assert torch.equal(layer.weight, centred)
    assert layer.weight is parameter
    assert torch.equal(in_training, in_eval)
    in_training.sum().backward()
    assert layer.weight.grad.any()


def test_projecting_layer_may_be_called_twice_before_backward():
    layer = BinaryLinear(12, 5, binarizer=Centred())
    x = random_signs(2, 12, dtype=torch.float32)
    (layer(x) + layer(-x).square()).sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_schedule_and_epochs_reach_the_binarizer():
    layer = BinaryLinear(4, 2, binarizer=Shifted())
    layer.on_epoch(0.25)
    layer.between_epochs()
    assert layer.binarizer.progress == 0.25
    assert layer.binarizer.epochs == 1
    weight, recorded_gradient = layer.binarizer.seen
    assert weight is layer.weight
    assert not recorded_gradient


# --- sign ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sign_at_the_hazards(dtype):
    tiny = torch.finfo(dtype).smallest_normal
    x = torch.tensor([0.0, -0.0, tiny, -tiny, NAN, float("inf"), -float("inf")], dtype=dtype)
    result = sign(x, clipped_identity)
    assert result.dtype == dtype
    assert result.tolist() == [1, 1, 1, -1, -1, 1, -1]


def test_gradient_of_sign_is_multiplied_by_the_surrogate():
    x = torch.tensor([-1.5, -1.0, -0.25, 0.0, 0.75, 3.0], requires_grad=True)
    g = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0, 6.0])
    sign(x, lambda v: v * 10 + 1).backward(g)
    assert torch.equal(x.grad, g * (x.detach() * 10 + 1))


def test_decision_decides_the_bit_and_x_the_gradient():
    x = torch.tensor([-0.5, 0.5, -0.0], requires_grad=True)
    decision = torch.tensor([1.0, -1.0, -1e-45], requires_grad=True)
    result = sign(x, lambda v: v + 2, decision)
    assert result.tolist() == [1, -1, -1]
    result.sum().backward()
    assert x.grad.tolist() == [1.5, 2.5, 2.0]
    assert decision.grad is None


def test_sign_activation_agrees_with_its_threshold():
    """`lower` compares with `threshold`; the two must give the same bits."""
    binarize, x = SignActivation(clipped_identity), torch.randn(3, 4, 5, 5)
    x[0, 0, 0] = torch.tensor([0.0, -0.0, NAN, 1e-45, -1e-45])
    threshold = binarize.threshold(x, 4)
    assert threshold.ndim == 4
    assert torch.equal(binarize(x), torch.where(x >= threshold, 1.0, -1.0))
    assert repr(binarize) == "SignActivation(clipped_identity)"


# --- the observer ---


def observe(batches):
    binarize = SignActivation(clipped_identity)
    binarize.statistics = ChannelStatistics()
    for batch in batches:
        binarize(batch)
    return binarize.statistics


@pytest.mark.parametrize("shape", [(12, 3), (12, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("sizes", [(1,) * 12, (5, 7), (12,), (0, 11, 1)], ids=str)
def test_statistics_do_not_depend_on_the_batches(shape, sizes):
    x = torch.randn(shape)
    x[::3, 1] = 0
    x[1::3, 1] = -0.0
    together, apart = observe([x]), observe(x.split(list(sizes)))
    assert together.count == apart.count == x.numel() // 3
    assert torch.equal(together.positive, apart.positive)
    assert torch.equal(together.zeros, apart.zeros)
    channels = x.transpose(0, 1).flatten(1).double()
    assert torch.equal(apart.positive, (channels >= 0).sum(1))
    assert torch.equal(apart.zeros, (channels == 0).sum(1))
    assert torch.equal(apart.share_positive, (channels >= 0).double().mean(1))
    # sums of `count` float64 terms in any order
    rounding = apart.count * EPSILON
    assert (apart.total - channels.sum(1)).abs().max() <= rounding * channels.abs().sum(1).max()
    assert (apart.squares - channels.square().sum(1)).abs().max() <= rounding * channels.square().sum(1).max()
    assert (apart.mean - channels.mean(1)).abs().max() <= rounding * channels.abs().mean(1).max()
    variance_rounding = 4 * rounding * channels.square().mean(1).max()
    assert (apart.spread.square() - channels.var(1, correction=0)).abs().max() <= variance_rounding


def test_constant_channel_has_no_spread_of_nan():
    """The difference of squares can be a little below 0, and its root turns rounding into the root of rounding."""
    values = torch.linspace(0.1, 0.9, 40, dtype=torch.float64)
    statistics = observe([values.expand(7, 3, 40).transpose(1, 2)])
    assert (statistics.squares / statistics.count < statistics.mean.square()).any()
    assert statistics.spread.isfinite().all()
    assert (statistics.spread <= values * (4 * statistics.count * EPSILON) ** 0.5).all()


def test_observing_records_no_graph_and_changes_no_output():
    x = torch.randn(4, 3, requires_grad=True)
    plain, observed = SignActivation(approx_sign), SignActivation(approx_sign)
    observed.statistics = ChannelStatistics()
    result = observed(x)
    assert torch.equal(result, plain(x))
    assert not observed.statistics.total.requires_grad
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert torch.equal(gradient, approx_sign(x))
    assert plain.statistics is None  # the class attribute is not shared


@pytest.mark.parametrize(("kind", "float_kind"), [(BinaryConv2d, nn.Conv2d), (BinaryLinear, nn.Linear)])
def test_layers_are_torchs(kind, float_kind):
    assert issubclass(kind, float_kind)
    assert BINARY_LAYERS[float_kind] is kind


def test_map_of_one_pixel_and_empty_batch():
    layer = BinaryConv2d(65, 3, 3, padding=1)
    assert layer(random_signs(0, 65, 4, 4, dtype=torch.float32)).shape == (0, 3, 4, 4)
    x = random_signs(2, 65, 1, 1, dtype=torch.float32)
    signs, _ = layer.binary_weight()
    expected = x[:, :, 0, 0].double() @ signs[:, :, 1, 1].double().T
    assert torch.equal(layer.accumulate(x, signs)[:, :, 0, 0].double(), expected)


def test_extreme_accumulators_are_exact():
    """All terms of one sign, fan-in 4608: the largest sum a usual layer has."""
    for x_sign, weight_sign in itertools.product([-1.0, 1.0], repeat=2):
        x, signs = torch.full((1, 512, 3, 3), x_sign), torch.full((1, 512, 3, 3), weight_sign)
        assert BinaryConv2d(512, 1, 3).accumulate(x, signs).item() == 4608 * x_sign * weight_sign
