from dataclasses import replace

import pytest
import torch
from helpers import ternary
from helpers.epilogues import ConcatenatedStreams, Dense, Downsampling, Linears, Position, Residual, Wired
from helpers.graphs import golden
from helpers.lowering import assert_fuses_exactly, called, run_lower_pass, short, trainable
from torch import nn
from torch.nn import functional as F

import bnnfx
from bnnfx.graph.dataflow import calls
from bnnfx.graph.record import record_of
from bnnfx.passes.lower import keep_channels_last
from bnnfx.passes.lower.keep_channels_last import KeepChannelsLast

FLOAT_SHORTCUT = ("last", "downsample")


@pytest.fixture
def x():
    return torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(1))


def refusals(gm):
    (report,) = [r for r in record_of(gm).reports if r.name == "KeepChannelsLast"]
    return [remark.reason for remark in report.refused]


# --- golden ---


def test_golden_region(x):
    gm = trainable(Wired(lambda m, x: (lambda y: m.b(y) + y)(m.a(x) + x)))
    ran = run_lower_pass(KeepChannelsLast, gm, x)
    assert ran.before == golden("""
        x = input
        a_0_sign = pack(x, a_0_sign_threshold)
        permute = permute(x, [0, 2, 3, 1])
        a_0 = binary_conv2d_add_float_bits(a_0_sign, a_0_weight_bits, a_1_scale, a_1_bias_1, permute, b_0_sign_threshold_1, 4, [1, 1], [1, 1], [1, 1], 1, -1)
        a_0_stream = getitem(a_0, 0)
        b_0_sign = getitem(a_0, 1)
        permute_1 = permute(a_0_stream, [0, 3, 1, 2])
        permute_2 = permute(permute_1, [0, 2, 3, 1])
        b_0 = binary_conv2d_add_float(b_0_sign, b_0_weight_bits, b_1_scale, b_1_bias_1, permute_2, 4, [1, 1], [1, 1], [1, 1], 1, -1)
        permute_3 = permute(b_0, [0, 3, 1, 2])
        return permute_3
    """)  # fmt: skip # noqa: E501
    assert ran.after == golden("""
        x = input
        permute_4 = permute(x, [0, 2, 3, 1])
        a_0_sign = pack_nhwc(permute_4, a_0_sign_threshold_1)
        a_0 = binary_conv2d_add_float_bits(a_0_sign, a_0_weight_bits, a_1_scale, a_1_bias_1, permute_4, b_0_sign_threshold_1, 4, [1, 1], [1, 1], [1, 1], 1, -1)
        a_0_stream = getitem(a_0, 0)
        b_0_sign = getitem(a_0, 1)
        b_0 = binary_conv2d_add_float(b_0_sign, b_0_weight_bits, b_1_scale, b_1_bias_1, a_0_stream, 4, [1, 1], [1, 1], [1, 1], 1, -1)
        permute_3 = permute(b_0, [0, 3, 1, 2])
        return permute_3
    """)  # fmt: skip # noqa: E501
    assert ran.report.applied == ["permute_1", "x"] and ran.report.changed and not ran.refused
    assert_fuses_exactly(gm, x)


def test_golden_downsampling(x):
    """A 1x1 convolution with stride and batch norm, a global average, a classifier: no permutation is left."""
    gm = trainable(Downsampling(), keep_float=FLOAT_SHORTCUT)
    ran = run_lower_pass(KeepChannelsLast, gm, x)
    before = golden("""
        permute_1 = permute(entry_0_stream, [0, 3, 1, 2])
        shortcut_0 = Conv2d(permute_1)
        shortcut_1 = frozen_batch_norm(shortcut_0, shortcut_1_running_mean, shortcut_1_running_var, shortcut_1_weight, shortcut_1_bias, 1e-05)
        permute_2 = permute(shortcut_1, [0, 2, 3, 1])
    """)  # fmt: skip # noqa: E501
    assert before in ran.before
    assert ran.after == golden("""
        x = input
        permute_8 = permute(x, [0, 2, 3, 1])
        entry_0_sign = pack_nhwc(permute_8, entry_0_sign_threshold_1)
        entry_0 = binary_conv2d_add_float_bits(entry_0_sign, entry_0_weight_bits, entry_1_scale, entry_1_bias_1, permute_8, down_0_sign_threshold_1, 4, [1, 1], [1, 1], [1, 1], 1, -1)
        entry_0_stream = getitem(entry_0, 0)
        down_0_sign = getitem(entry_0, 1)
        getitem_4 = getitem(entry_0_stream, (slice(None, None, None), slice(None, None, 2), slice(None, None, 2)))
        shortcut_1 = linear(getitem_4, shortcut_0_weight_folded)
        down_0 = binary_conv2d_add_float_bits(down_0_sign, down_0_weight_bits, down_1_scale, down_0_bias_1, shortcut_1, same_0_sign_threshold_1, 4, [2, 2], [1, 1], [1, 1], 1, -1)
        down_0_stream = getitem(down_0, 0)
        same_0_sign = getitem(down_0, 1)
        same_0 = binary_conv2d_add_float(same_0_sign, same_0_weight_bits, same_1_scale, same_1_bias_1, down_0_stream, 6, [1, 1], [1, 1], [1, 1], 1, -1)
        pool = mean(same_0, [1, 2], True)
        flatten = flatten(pool, 1)
        head = Linear(flatten)
        return head
    """)  # fmt: skip # noqa: E501
    assert not ran.refused


def test_golden_centring(x):
    gm = trainable(Wired(lambda m, x: m.b(m.a(x) + x) + x), "rbnn", centre=True)
    ran = run_lower_pass(KeepChannelsLast, gm, x)
    assert ran.after == golden("""
        x = input
        mean = .mean(x, dim=(1, 2, 3), keepdim=True)
        permute_4 = permute(x, [0, 2, 3, 1])
        a_0_sign = pack_nhwc(permute_4, mean)
        a_0 = binary_conv2d_add_float(a_0_sign, a_0_weight_bits, a_1_scale, a_1_bias_1, permute_4, 4, [1, 1], [1, 1], [1, 1], 1, -1)
        mean_1 = .mean(a_0, dim=(1, 2, 3), keepdim=True)
        b_0_sign = pack_nhwc(a_0, mean_1)
        b_0 = binary_conv2d_add_float(b_0_sign, b_0_weight_bits, b_1_scale, b_1_bias_1, permute_4, 4, [1, 1], [1, 1], [1, 1], 1, -1)
        permute_3 = permute(b_0, [0, 3, 1, 2])
        return permute_3
    """)  # fmt: skip # noqa: E501
    assert_fuses_exactly(gm, x, exact=False)


# --- matrix products ---


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"norm": False}, {"norm": False, "bias": True}], ids=str)
@pytest.mark.parametrize("width", [6, 65])
def test_shortcut_convolution_is_a_matrix_product(options, width, x):
    packed = assert_fuses_exactly(
        trainable(Downsampling(width=width, **options), keep_float=FLOAT_SHORTCUT), x, exact=False
    )
    assert called(packed) == [
        *("permute", "pack_nhwc", "add_float_bits", "linear", "add_float_bits", "add_float"),
        *("mean", "flatten", "Linear"),
    ]
    assert not refusals(packed)


class Activated(Downsampling):
    """An activation in front of the sum with the shortcut."""

    def forward(self, x):
        x = self.entry(x) + x
        x = F.hardtanh(self.down(x)) + self.shortcut(x)
        return self.head(self.same(x).mean((2, 3)))


def test_bias_stays_in_the_product_behind_an_activation(x):
    """The activation is of the binary layer's result alone, so the shortcut's bias may not go in front of it."""
    packed = assert_fuses_exactly(trainable(Activated(), keep_float=FLOAT_SHORTCUT), x, exact=False)
    (product,) = [node for node in packed.graph.nodes if calls(node, F.linear)]
    assert len(product.args) == 3 and called(packed).count("reshape") == 2


def test_bias_of_one_channel_moves(x):
    """The sum of two biases may be the single 0.0 that runtimes leave out."""
    model = Downsampling(width=1, bias=True, norm=False)
    model.down[1].bias.data.fill_(0.5)
    model.shortcut[0].bias.data.fill_(-0.5)
    packed = assert_fuses_exactly(trainable(model, keep_float=FLOAT_SHORTCUT), x, exact=False)
    assert "reshape" not in called(packed)


class Pointwise(nn.Module):
    """A binary block, then a float convolution beside it."""

    def __init__(self, *arguments, **options):
        super().__init__()
        self.entry = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.shortcut = nn.Conv2d(6, 6, *arguments, **options)

    def forward(self, x):
        return self.shortcut(self.entry(x))


@pytest.mark.parametrize(
    ("layer", "moves"),
    [
        ({"kernel_size": 1}, True),
        ({"kernel_size": 1, "padding": "valid", "stride": (2, 1)}, True),
        ({"kernel_size": 1, "groups": 2}, False),
        ({"kernel_size": 1, "padding": 1}, False),
        ({"kernel_size": (1, 3)}, False),
    ],
    ids=str,
)
def test_which_convolutions_are_matrix_products(layer, moves, x):
    """The product is the convolution's, up to the rounding of sums of 6 products and one bias."""
    gm = trainable(Pointwise(**layer), keep_float=("last",))
    packed = assert_fuses_exactly(gm, x, exact=False)
    expected, given = gm(x), packed(x)
    bound = 8 * 2.0**-23 * float(gm.get_submodule("shortcut").weight.abs().sum((1, 2, 3)).max() * 10)
    assert given.shape == expected.shape and float((given - expected).abs().max()) <= bound
    assert ("linear" in called(packed)) is moves
    assert bool(refusals(packed)) is not moves
    assert moves or refusals(packed) == ["'shortcut' works on [N, C, H, W], so the map is transposed in front of it"]


def test_a_wrong_matrix_is_noticed(monkeypatch, x):
    gm = trainable(Downsampling(), keep_float=FLOAT_SHORTCUT)
    fold = keep_channels_last.affine_of

    def wrong(*arguments):
        affine = fold(*arguments)
        return None if affine is None else replace(affine, bias=affine.bias + 1e-3)

    assert_fuses_exactly(gm, x, exact=False)
    monkeypatch.setattr(keep_channels_last, "affine_of", wrong)
    with pytest.raises(AssertionError):
        assert_fuses_exactly(gm, x, exact=False)


# --- what moves ---


@pytest.mark.parametrize(
    ("wiring", "expected"),
    [
        (lambda m, x: m.b((lambda y: y + y)(m.a(x))), ["pack", "float", "add", "pack_nhwc", "float", "permute"]),
        (
            lambda m, x: (lambda y: F.hardtanh(y) + F.leaky_relu(y))(m.a(x)),
            ["pack", "float", "Hardtanh", "LeakyReLU", "add", "permute"],
        ),
        (
            lambda m, x: (lambda y: m.b(y) + m.c(y) + y)(m.a(x) + x),
            ["permute", "pack_nhwc", "add_float_bits", "float", "add_float", "add", "permute"],
        ),
    ],
    ids=["x + x", "activations", "sums"],
)
def test_elementwise_operators_read_streams(wiring, expected, x):
    packed = assert_fuses_exactly(trainable(Wired(wiring)), x)
    assert called(packed) == expected and not refusals(packed)


def test_concatenated_streams(x):
    packed = assert_fuses_exactly(trainable(ConcatenatedStreams()), x)
    assert called(packed) == ["pack", "threshold", "float", "float", "cat", "pack_nhwc", "float", "permute"]
    (cat,) = [node for node in packed.graph.nodes if node.target is torch.cat]
    assert cat.args[1] == 3
    assert not refusals(packed)


def test_streams_beside_other_maps(x):
    """A map of another origin is transposed once, however many concatenations that are packed it is in."""
    packed = assert_fuses_exactly(trainable(Dense()), x)
    assert called(packed) == [
        *("permute", "pack_nhwc", "float", "cat", "pack_nhwc", "float", "cat", "pack_nhwc", "float", "permute")
    ]
    assert [node.args[1] for node in packed.graph.nodes if node.target is torch.cat] == [3, 3]
    assert not refusals(packed)


def test_batch_norms_in_front_of_bits(x):
    """A scale per channel, along the last axis of a stream, and a threshold; what is folded is rounded once."""
    torch.manual_seed(0)
    normed = [nn.BatchNorm2d(9), nn.BatchNorm2d(12)]
    for norm in normed:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.running_var, 0.5, 2.0), nn.init.normal_(norm.running_mean)
    gm = trainable(Dense(*normed))
    packed = bnnfx.lower(gm, (x,))
    assert bnnfx.verify(gm, packed, (x,))
    names = called(packed)
    assert (names.count("mul"), names.count("add"), names.count("permute"), names.count("cat")) == (2, 0, 2, 2)


@pytest.mark.parametrize("behind", [nn.Hardtanh(), nn.Softmax2d()])
def test_batch_norms_in_front_of_other_things(behind, x):
    """Something else reads what is added, in either layout."""
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias)
    model = ConcatenatedStreams(nn.Sequential(norm, behind))
    packed = assert_fuses_exactly(trainable(model), x, exact=False)
    assert (called(packed).count("mul"), called(packed).count("add")) == (1, 1)


def test_mean_and_flatten(x):
    gm = trainable(Wired(lambda m, x: torch.flatten(F.adaptive_avg_pool2d(m.a(x) + x, (1, 1)), 1)))
    packed = assert_fuses_exactly(gm, x, exact=False)
    assert called(packed) == ["permute", "pack_nhwc", "add_float", "mean", "flatten"] and not refusals(packed)


def test_flatten_of_a_map_keeps_its_order(x):
    """Behind the flatten of a 5x7 map the channels come first, so it is transposed."""
    packed = assert_fuses_exactly(trainable(Wired(lambda m, x: torch.flatten(m.a(x) + x, 1))), x)
    assert called(packed) == ["permute", "pack_nhwc", "add_float", "permute", "flatten"]
    assert refusals(packed) == ["'flatten' works on [N, C, H, W], so the map is transposed in front of it"]


def test_linear_layers_have_no_layout(x):
    assert called(assert_fuses_exactly(trainable(Linears()), x)).count("permute") == 1  # of the map in front of them


# --- where a region begins ---


def test_region_begins_once(x):
    """The map is read by a comparison, and as the residual of two sums."""
    packed = assert_fuses_exactly(trainable(Wired(lambda m, x: (m.a(x) + x) + (m.b(x) + x))), x)
    assert called(packed)[:2] == ["permute", "pack_nhwc"] and called(packed).count("permute") == 2
    assert "pack" not in called(packed)


class TwoInputs(nn.Module):
    """The second input is a residual before its own comparison."""

    shapes = (4, 5, 7)

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)) for _ in range(2))

    def forward(self, x, skip):
        y = self.a(x) + skip
        return self.b(skip) + y


@pytest.mark.parametrize("centre", [False, True])
def test_residual_that_is_read_before_it_is_compared(centre, x):
    gm = trainable(TwoInputs(), "rbnn", centre=centre)
    packed = assert_fuses_exactly(gm, x, torch.flip(x, (0,)), exact=not centre)
    assert called(packed).count("pack_nhwc") == 1 and not refusals(packed)


def test_value_that_moves_later_is_no_beginning(x):
    """The sum becomes a stream only when the second activation before it has moved."""
    packed = assert_fuses_exactly(trainable(Residual(nn.Sequential(nn.Hardtanh(), nn.PReLU()))), x)
    assert called(packed) == [
        *("pack", "float_bits", "clamp_float", "PReLU", "add", "pack_nhwc", "add_float", "permute")
    ]


# --- refusals ---


REFUSED = {
    "max-pool": (
        lambda: Wired(lambda m, x: m.c(F.max_pool2d((lambda y: y + m.b(y))(m.a(x)), 2))),
        "'max_pool2d_maxpool2d' works on [N, C, H, W], so the map is transposed in front of it",
    ),
    "concatenation with another map": (
        lambda: Dense(nn.Softmax2d()),
        "'cat' works on [N, C, H, W], so the map is transposed in front of it",
    ),
    "constant map": (Position, "'add' works on [N, C, H, W], so the map is transposed in front of it"),
    "PReLU per channel": (  # the second of two activations in a row, so it is not fused
        lambda: Residual(nn.Sequential(nn.Hardtanh(), nn.PReLU(4))),
        "'before.1' works on [N, C, H, W], so the map is transposed in front of it",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what, x):
    make, reason = REFUSED[what]
    packed = assert_fuses_exactly(trainable(make()), x)
    assert reason in refusals(packed)
    assert "permute" in called(packed)[:-1]


def test_average_pool_in_front_of_the_shortcut(x):
    packed = assert_fuses_exactly(trainable(Downsampling(pool=True), keep_float=FLOAT_SHORTCUT), x, exact=False)
    assert called(packed) == [
        *("permute", "pack_nhwc", "add_float_bits", "permute", "AvgPool2d", "Conv2d", "frozen_batch_norm", "permute"),
        *("add_float_bits", "add_float", "mean", "flatten", "Linear"),
    ]
    assert refusals(packed) == [
        "'shortcut.0' works on [N, C, H, W], so the map is transposed in front of it",
        "a binary region begins here, with a map that a float layer gives as [N, C, H, W]",
    ]


def test_an_output_is_no_refusal(x):
    packed = assert_fuses_exactly(trainable(Wired(lambda m, x: m.a(x) + x)), x)
    assert called(packed)[-1] == "permute" and not refusals(packed)


def test_batches_of_any_size(x):
    packed = bnnfx.lower(trainable(Downsampling(), keep_float=FLOAT_SHORTCUT), (x[:1],))
    for batch in (0, 1, 3):
        assert packed(x[:batch]).shape == (batch, 3)


def test_halves_of_a_stream():
    """What `split` leaves on a stream: the mean of halves, copies, a constant shift."""

    def wiring(m, x):
        a = m.na(m.a(m.ta(m.s(x)))) + m.s(x)
        y = m.nb(m.b(m.tb(a))) + m.relu(a)
        return m.nc(m.c(m.tc(m.relu(y)))) + y

    gm, x = bnnfx.split(ternary.trainable(ternary.wired(wiring, relu=nn.ReLU()))).float(), torch.randn(2, 3, 8, 6)
    packed = assert_fuses_exactly(gm, x)
    between = short(packed).split("tb = getitem(a, 1)\n")[1].splitlines()
    assert [line for line in between if "binary_conv2d" not in line] == [
        *("mean_of_halves = mean_of_halves(a_stream, axis=3)", "relu = ReLU(mean_of_halves)"),
        *("relu_1 = ReLU relu(b)", "cat_2 = cat([relu_1, relu_1], 3)"),
        "shift_halves_2 = shift_halves(cat_2, 0.25, axis=3)",
        "tc = pack_nhwc(shift_halves_2, tc_threshold_1)",
        *("permute_5 = permute(c, [0, 3, 1, 2])", "return permute_5"),
    ]
