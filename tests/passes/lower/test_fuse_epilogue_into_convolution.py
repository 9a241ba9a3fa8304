import copy

import pytest
import torch
from helpers.epilogues import Grouped, Linears, Position, Residual, Shifted, Wired
from helpers.graphs import golden
from helpers.lowering import assert_fuses_exactly, called, run_lower_pass, short, trainable, unfused
from torch import nn
from torch.nn import functional as F

import bnnfx
from bnnfx.graph.context import LowerContext
from bnnfx.graph.edit import add_buffer
from bnnfx.graph.pass_runner import run_passes
from bnnfx.graph.record import record_of
from bnnfx.graph.shapes import infer_shapes
from bnnfx.ops.epilogue import Epilogue
from bnnfx.passes.lower.fuse_epilogue_into_convolution import FuseEpilogueIntoConvolution
from bnnfx.passes.lower.keep_channels_last import KeepChannelsLast
from bnnfx.verification.bit_trace import trace_bits


@pytest.fixture
def x():
    values = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(1))
    values[0, :, 0] = 0.0
    values[1, :, 0] = -0.0
    return values


def notes(gm):
    """What the pass noted when this graph was lowered, by convolution."""
    (report,) = [r for r in record_of(gm).reports if r.name == "FuseEpilogueIntoConvolution"]
    return {remark.subject: remark.reason for remark in report.notes}


def constants(gm, name):
    """The tensors that the node of this name reads, by the operator's names for them."""
    node = next(n for n in gm.graph.nodes if n.name == name)
    names = [argument.name for argument in node.target._schema.arguments]
    read = zip(names, node.args, strict=True)
    return {key: gm.get_buffer(str(a.target)) for key, a in read if isinstance(a, torch.fx.Node) and a.op == "get_attr"}


# --- what it does ---


def test_golden(x):
    gm = trainable(Residual(Shifted(4), nn.Hardtanh()))
    ran = run_lower_pass(FuseEpilogueIntoConvolution, gm, x)
    assert ran.before == golden("""
        x = input
        stem_sign = pack(x, stem_sign_threshold)
        stem = binary_conv2d(stem_sign, stem_weight_bits, stem_bn_scale, stem_bn_bias_1, 4, [1, 1], [0, 0], [1, 1], 1, -1, 1)
        block_0_sign = pack(stem, block_0_sign_threshold)
        block_0 = binary_conv2d(block_0_sign, block_0_weight_bits, block_1_scale, block_1_bias_1, 4, [1, 1], [1, 1], [1, 1], 1, -1, 1)
        add = add(block_0, before_before)
        before_prelu = PReLU(add)
        add_1 = add(before_after, before_prelu)
        add_2 = add(add_1, stem)
        after = Hardtanh(add_2)
        last_0_sign = pack(after, last_0_sign_threshold)
        last_0 = binary_conv2d(last_0_sign, last_0_weight_bits, last_1_scale, last_1_bias_1, 4, [1, 1], [1, 1], [1, 1], 1, -1, 1)
        add_3 = add(last_0, after)
        return add_3
    """)  # fmt: skip # noqa: E501
    assert ran.after == golden("""
        x = input
        stem_sign = pack(x, stem_sign_threshold)
        stem = binary_conv2d_float_bits(stem_sign, stem_weight_bits, stem_bn_scale, stem_bn_bias_1, block_0_sign_threshold_1, 4, [1, 1], [0, 0], [1, 1], 1, -1)
        stem_stream = getitem(stem, 0)
        block_0_sign = getitem(stem, 1)
        permute = permute(stem_stream, [0, 3, 1, 2])
        permute_1 = permute(permute, [0, 2, 3, 1])
        block_0 = binary_conv2d_shifted_prelu_add_clamp_float_bits(block_0_sign, block_0_weight_bits, block_1_scale, block_1_bias_1, block_0_shift_before, block_0_slope, block_0_shift_after, permute_1, block_0_low, block_0_high, last_0_sign_threshold_1, 4, [1, 1], [1, 1], [1, 1], 1, -1)
        block_0_stream = getitem(block_0, 0)
        last_0_sign = getitem(block_0, 1)
        permute_2 = permute(block_0_stream, [0, 3, 1, 2])
        permute_3 = permute(permute_2, [0, 2, 3, 1])
        last_0 = binary_conv2d_add_float(last_0_sign, last_0_weight_bits, last_1_scale, last_1_bias_1, permute_3, 4, [1, 1], [1, 1], [1, 1], 1, -1)
        permute_4 = permute(last_0, [0, 3, 1, 2])
        return permute_4
    """)  # fmt: skip # noqa: E501
    assert ran.report.applied == ["stem", "block_0", "last_0"] and ran.report.changed
    assert not ran.refused and not ran.report.notes
    assert_fuses_exactly(gm, x)


ACTIVATIONS = {
    "ReLU6": (nn.ReLU6(), "clamp"),
    "Hardtanh": (nn.Hardtanh(-0.5, 2.0), "clamp"),
    "Hardswish": (nn.Hardswish(), "hardswish"),
    "LeakyReLU": (nn.LeakyReLU(0.2), "prelu"),
    "LeakyReLU falling": (nn.LeakyReLU(-0.3), "prelu"),
    "PReLU": (nn.PReLU(), "prelu"),
    "PReLU per channel": (nn.PReLU(4), "prelu"),
    "shifted": (Shifted(4), "shifted_prelu"),
    "shifted before": (Shifted(4, after=False), "shifted_prelu"),
    "shifted after": (Shifted(4, before=False), "shifted_prelu"),
    "shifted by one number": (Shifted(4, shared=True), "shifted_prelu"),
    "not shifted": (Shifted(4, before=False, after=False), "prelu"),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_activations(activation, place, x):
    module, kind = ACTIVATIONS[activation]
    around = {key: copy.deepcopy(module) for key in ("before", "after") if place in (key, "both")}
    if activation == "ReLU6":
        # convert takes a ReLU away that stands in front of a sign or a sum: nothing reads this one but the mean
        gm = trainable(Wired(lambda m, x: F.adaptive_avg_pool2d(F.relu6(m.a(x)), 1)))
        assert "clamp_float" in called(assert_fuses_exactly(gm, x, exact=False))
        return
    packed = assert_fuses_exactly(trainable(Residual(**around)), x)
    # behind a slope below 0 nothing is negative, so the layer that reads it stays float
    outputs = "float" if activation == "LeakyReLU falling" and "after" in around else "float_bits"
    steps = [kind if "before" in around else "", "add", kind if "after" in around else "", outputs]
    assert called(packed)[:3] == ["pack", "float_bits", "_".join(step for step in steps if step)]
    assert not any(isinstance(m, type(module) | nn.PReLU) for m in packed.modules())


def test_relu_at_the_end(x):
    gm = trainable(Wired(lambda m, x: F.adaptive_avg_pool2d(F.relu(m.a(x)), 1)))
    packed = assert_fuses_exactly(gm, x, exact=False)
    assert called(packed)[:2] == ["pack", "clamp_float"]
    given = constants(packed, "a_0")
    assert (given["low"].tolist(), given["high"].tolist()) == ([0.0], [float("inf")])


def test_no_constant_that_a_body_cannot_take(x):
    """A bound of -0.0 and a single addend of 0.0 would lose their sign, or their effect on one, in ONNX Runtime."""
    gm = trainable(Wired(lambda m, x: F.hardtanh(m.a(x), -0.0, 2.0) + x))
    packed = assert_fuses_exactly(gm, x)
    assert "clamp_add_float" in called(packed)
    assert not constants(packed, "a_0")["low"].signbit().any()
    alone = trainable(nn.Sequential(nn.Conv2d(4, 1, 1, bias=False), nn.BatchNorm2d(1, affine=False), nn.PReLU()))
    alone.get_buffer("1.running_mean").zero_()
    assert constants(assert_fuses_exactly(alone, x), "_0")["bias"].signbit().tolist() == [True]


def test_shifts_that_are_not_there_add_nothing(x):
    packed = assert_fuses_exactly(trainable(Residual(Shifted(4, before=False))), x)
    given = constants(packed, "block_0")
    assert given["shift_before"].tolist() == [0.0] and given["shift_before"].signbit().all()
    assert given["shift_after"].shape == given["slope"].shape == (4,)


@pytest.mark.parametrize(
    ("wiring", "expected"),
    [
        (lambda m, x: m.a(x), ["pack", "float", "permute"]),
        (lambda m, x: m.b(m.a(x) + x), ["permute", "pack_nhwc", "add_bits", "float", "permute"]),
        (lambda m, x: m.a(m.a(x) + x) + x, ["permute", "pack_nhwc", "add_bits", "add_float", "permute"]),
        (lambda m, x: m.c(m.a(x) + m.b(x)), ["pack", "float", "add_bits", "float", "permute"]),
    ],
    ids=["stream is the output", "the convolution's own input", "layer called twice", "both branches"],
)
def test_wirings(wiring, expected, x):
    packed = assert_fuses_exactly(trainable(Wired(wiring)), x)
    assert called(packed) == expected and not notes(packed)


def test_weights_of_a_layer_that_is_called_twice_are_stored_once(x):
    packed = assert_fuses_exactly(trainable(Wired(lambda m, x: m.a(m.a(x) + x) + x)), x)
    assert len([name for name, value in packed.named_buffers() if value.dtype == torch.uint8]) == 1


def test_groups_odd_channels_and_maps_that_are_not_square(x):
    assert called(assert_fuses_exactly(trainable(Grouped()), x)) == [
        *("pack", "float_bits", "add_clamp_bits", "float", "permute")
    ]


def test_linear_layers(x):
    packed = assert_fuses_exactly(trainable(Linears()), x)
    assert called(packed)[:4] == ["permute", "pack_nhwc", "add_bits", "float"] and not notes(packed)
    assert [name for name in called(packed) if name not in ("flatten", "reshape", "pack")] == [
        *("permute", "pack_nhwc", "add_bits", "float", "float", "add")
    ]


# --- several readers ---


def test_stream_that_is_read_as_float_and_as_bits(x):
    packed = assert_fuses_exactly(trainable(Wired(lambda m, x: (lambda y: (m.b(y) + y, y))(m.a(x) + x))), x)
    assert called(packed) == ["permute", "pack_nhwc", "add_float_bits", "permute", "add_float", "permute"]


def test_accumulator_with_two_readers_keeps_what_follows(x):
    packed = assert_fuses_exactly(trainable(Wired(lambda m, x: (lambda y: F.hardtanh(y) + y)(m.a(x)))), x)
    assert called(packed) == ["pack", "float", "Hardtanh", "add", "permute"]


def test_sum_of_a_stream_and_itself(x):
    """One reader, but no residual."""
    packed = assert_fuses_exactly(trainable(Wired(lambda m, x: m.b((lambda y: y + y)(m.a(x))))), x)
    assert called(packed) == ["pack", "float", "add", "pack_nhwc", "float", "permute"]
    assert notes(packed) == {"a_0": "'add' behind it is no step of an epilogue, so it stays a node"}


def with_two_packs(threshold, x):
    """`b` and `c` read bits of one stream, each its own comparison; what the two passes make of it, and before."""
    gm = unfused(trainable(Wired(lambda m, x: (lambda y: m.b(y) + m.c(y))(m.a(x) + x))), x[:1])
    nodes = {node.name: node for node in gm.graph.nodes}
    with gm.graph.inserting_after(nodes["b_0_sign"]):
        second = gm.graph.call_function(nodes["b_0_sign"].target, nodes["b_0_sign"].args)
    second.name = "c_0_sign"
    with gm.graph.inserting_before(second):
        second.update_arg(1, add_buffer(gm, "second_threshold", torch.tensor(threshold).reshape(1, -1, 1, 1)))
    nodes["c_0"].update_arg(0, second)
    gm.recompile()
    before, record = copy.deepcopy(gm), record_of(gm)
    passes = (FuseEpilogueIntoConvolution, KeepChannelsLast)
    run_passes(gm, passes, LowerContext((x[:1],), infer_shapes(gm, (x[:1],))), record)
    traces = trace_bits(before, (x,)), trace_bits(gm, (x,))
    assert traces[0].bits.keys() == {"a_0_sign", "b_0_sign", "c_0_sign"}
    return gm, *traces


def test_two_comparisons_with_equal_thresholds(x):
    """They become one; the second name goes with it."""
    gm, before, after = with_two_packs([0.0], x)
    assert (before.bits["c_0_sign"].bits == before.bits["b_0_sign"].bits).all()
    assert called(gm).count("pack_nhwc") == 1 and "add_bits" in called(gm) and not notes(gm)
    assert (before.bits["b_0_sign"].bits == after.bits["b_0_sign"].bits).all()
    assert (before.outputs[0] == after.outputs[0]).all()


@pytest.mark.parametrize("threshold", [[0.5], [0.0, 0.0, 0.0, 0.5]])
def test_two_comparisons_with_different_thresholds(threshold, x):
    gm, before, after = with_two_packs(threshold, x)
    assert (before.bits["c_0_sign"].bits != before.bits["b_0_sign"].bits).any()
    assert called(gm)[2:4] == ["add_float_bits", "pack_nhwc"]
    assert notes(gm) == {"a_0": "its stream is compared with a second threshold by 'c_0_sign', so that stays a node"}
    for name, expected in before.bits.items():
        assert (expected.bits == after.bits[name].bits).all(), name
    assert (before.outputs[0] == after.outputs[0]).all()


def test_comparison_with_a_threshold_per_position_stays(x):
    gm = unfused(trainable(Wired(lambda m, x: m.b(m.a(x) + x))), x[:1])
    pack = next(node for node in gm.graph.nodes if node.name == "b_0_sign")
    with gm.graph.inserting_before(pack):
        pack.update_arg(1, add_buffer(gm, "per_position", torch.linspace(-1, 1, 7)))
    gm.recompile()
    expected = trace_bits(gm, (x,))
    context = LowerContext((x[:1],), infer_shapes(gm, (x[:1],)))
    run_passes(gm, (FuseEpilogueIntoConvolution, KeepChannelsLast), context, record_of(gm))
    assert called(gm) == ["permute", "pack_nhwc", "add_float", "pack_nhwc", "float", "permute"]
    assert notes(gm)["a_0"].startswith("its stream is compared with a threshold that is not one number per channel")
    given = trace_bits(gm, (x,))
    assert all((bits.bits == given.bits[name].bits).all() for name, bits in expected.bits.items())


# --- notes: what stays, and why ---


NOTES = {
    "second activation": (
        lambda: Residual(nn.Sequential(nn.Hardtanh(), nn.PReLU())),
        {"block_0": "'before_1' is a second activation in a row, so it stays a node"},
        ["pack", "float_bits", "clamp_float", "PReLU", "add", "pack_nhwc", "add_float", "permute"],
    ),
    "no step": (
        lambda: Residual(None, nn.GELU()),
        {"block_0": "'after' behind it is no step of an epilogue, so it stays a node"},
        ["pack", "float_bits", "add_float", "GELU", "pack_nhwc", "add_float", "permute"],
    ),
    "broadcast": (
        lambda: Wired(lambda m, x: m.b(m.a(x) + x.mean((2, 3), keepdim=True))),
        {"a_0": "'add' adds a map of another shape, so it stays a node"},
        ["pack", "float", "permute", ".mean", "add", "pack", "float", "permute"],
    ),
    "constant map": (
        lambda: Position(),
        {"block_0": "'add' adds one map to every sample, so it stays a node"},
        ["pack", "float", "permute", "add", "pack", "float", "permute"],
    ),
    "second sum": (
        lambda: Wired(lambda m, x: m.a(x) + x + x.abs()),
        {"a_0": "'add_1' behind it is no step of an epilogue, so it stays a node"},
        ["permute", "pack_nhwc", "add_float", "permute", ".abs", "add"],
    ),
}


@pytest.mark.parametrize("what", NOTES)
def test_notes(what, x):
    make, expected, steps = NOTES[what]
    packed = assert_fuses_exactly(trainable(make()), x)
    assert notes(packed) == expected
    assert called(packed) == steps


@pytest.mark.parametrize("seed", [4, 7, 106])
def test_rounding_of_many_steps_is_within_the_bound(seed, x):
    """Weights with which two batch norms, sums and a GELU round further than one step may."""
    torch.manual_seed(seed)
    assert_fuses_exactly(trainable(Residual(None, nn.GELU())), x)


def test_centring_threshold_stays_a_node(x):
    gm = trainable(Wired(lambda m, x: m.b(m.a(x) + x) + x), "rbnn", centre=True)
    packed = assert_fuses_exactly(gm, x, exact=False)
    assert notes(packed) == {
        "a_0": "its stream is compared with a threshold that the activations give at run time (centring) by "
        "'b_0_sign', so that stays a node"
    }
    assert called(packed) == [
        ".mean",
        "permute",
        "pack_nhwc",
        "add_float",
        ".mean",
        "pack_nhwc",
        "add_float",
        "permute",
    ]


# --- the helpers can fail ---


@pytest.mark.parametrize("fault", ["residual", "threshold", "order"])
def test_a_wrong_fusion_is_noticed(monkeypatch, fault, x):
    gm = trainable(Residual(Shifted(4), nn.Hardtanh()))
    assert_fuses_exactly(gm, x)
    rewrite = FuseEpilogueIntoConvolution.rewrite

    def wrong(self, match, plan):
        if fault == "residual" and plan.residual is not None:
            plan.residual = next(n for n in self.gm.graph.nodes if n.op == "placeholder")
        if fault == "order" and plan.before is not None:
            plan.before.constants.reverse()
        rewrite(self, match, plan)
        if fault == "threshold":
            for name, value in self.gm.named_buffers():
                if name == "block_0_sign_threshold_1":
                    value += 0.1

    monkeypatch.setattr(FuseEpilogueIntoConvolution, "rewrite", wrong)
    with pytest.raises(AssertionError):
        assert_fuses_exactly(gm, x)


def test_every_convolution_is_rewritten(x):
    """`lower` leaves no operator without an ONNX name."""
    for model in (Residual(), Linears(), Grouped()):
        text = short(bnnfx.lower(trainable(model), (x,)))
        assert "binary_conv2d(" not in text and Epilogue().name.split("_float")[0] in text
