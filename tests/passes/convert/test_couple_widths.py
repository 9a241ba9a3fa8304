"""CoupleWidths: every class moves as one, what cannot move says why, and the weights stay within the baseline's."""

import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from helpers.graphs import golden, run_pass
from helpers.models import (
    HAZARDS,
    Chain,
    FixedView,
    Grouped,
    ManyInputsOutputs,
    Model,
    Residual,
    SharedLayer,
    TwoReaders,
    conv3x3,
    flat,
    loss_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

import bnnfx
from bnnfx import Config, LayerConfig
from bnnfx.graph.record import record_of
from bnnfx.graph.resize import resize
from bnnfx.nn import ActivationBinarizer, BinaryConv2d, BinaryLinear
from bnnfx.passes.convert.couple_widths import CoupleWidths
from bnnfx.schemes import get_scheme

HALF = math.sqrt(0.5)
EXACT = {"parity": "exact"}


def run(model, config=None, inputs=None, scheme="binaryduo"):
    return run_pass(CoupleWidths, model, scheme, config, inputs)


def widths(gm):
    """Output channels of every convolution and linear layer, by name."""
    return {name: m.weight.shape[0] for name, m in gm.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def weights(model, behind_ternary=()):
    """Weights of all convolutions and linear layers; those behind a ternary activation are split to twice the inputs.

    Of a graph, those that it calls itself: what is inside of a leaf belongs to that.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    if isinstance(model, fx.GraphModule):
        layers = {name: layers[name] for name in {str(node.target) for node in model.graph.nodes} & set(layers)}
    assert layers and set(behind_ternary) <= set(layers)
    return sum(m.weight.numel() * (2 if name in behind_ternary else 1) for name, m in layers.items())


def notes(ran):
    return {remark.subject: remark.reason for remark in ran.report.notes}


def test_chain():
    ran = run(Chain())
    assert ran.after == ran.before
    assert widths(ran.gm) == {"stem": 5, "conv1": 5, "conv2": 11, "fc1": 11, "fc2": 4}
    assert ran.gm.fc1.in_features == 11 * 4 and ran.gm.bn3.num_features == 11
    assert ran.report.applied == ["stem", "conv1", "conv2", "fc1"]
    assert ran.report.changed
    assert notes(ran) == {
        "stem": "has 5 instead of 8 output channels",
        "conv1": "has 5 instead of 8 output channels",
        "conv2": "has 11 instead of 16 output channels",
        "fc1": "has 11 instead of 16 output channels",
        "stem, conv1, conv2, fc1": "the layers of these widths start from the first entries of their float weights "
        "along each axis; weights that were trained before have lost their function",
        "weights": f"the split network will have {weights(ran.gm, ran.context.binary)} in its convolutions and linear "
        "layers, 2408 of them in binary layers; the binary network of full width has 3032 and 2752",
    }


def test_residual_add_ties():
    ran = run(Residual(), Config(options={"width_factor": 0.5}))
    assert widths(ran.gm) == {"stem.0": 4, "block.conv1": 4, "block.conv2": 4, "fc": 4}
    assert notes(ran)["stem.0"] == "has 4 instead of 8 output channels, with block.conv2"
    assert ran.report.applied == ["stem.0", "block.conv1"]


def test_concatenation():
    gm = run(TwoReaders()).gm
    assert widths(gm) == {"stem": 5, "left": 5, "right": 5, "last": 4}
    assert gm.last.in_channels == 15


def test_groups():
    gm = run(Grouped()).gm
    assert widths(gm) == {"stem": 6, "depthwise": 6, "grouped": 9, "tall": 3, "dilated": 4, "last": 3}
    assert (gm.depthwise.groups, gm.grouped.groups) == (6, 3)
    gm(*Grouped().inputs())


def test_shared_layer():
    ran = run(SharedLayer())
    assert widths(ran.gm) == {"stem": 5, "conv": 5, "last": 4}
    assert ran.gm.conv.in_channels == 5


def test_given_from_outside():
    ran = run(ManyInputsOutputs())
    assert widths(ran.gm) == {"stem": 5, "conv1": 8, "conv2": 8, "last": 4}
    assert ran.refused == {
        "conv1": "its width stays 8: 'add' combines it with a value whose width is given from outside",
    }


def test_view_by_numbers():
    ran = run(FixedView())
    assert widths(ran.gm) == {"stem": 5, "conv": 8, "fc1": 16, "fc2": 11, "fc3": 4}
    assert ran.refused["conv"] == "its width stays 8: 'view' does more with its channels than can be followed"


class PReluAndNorms(Model):
    """Parameters per channel that are no batch norm: PReLU with a slope per channel and with one, group norm."""

    shapes = ((2, 3, 6, 9),)

    def __init__(self):
        super().__init__()
        self.stem, self.prelu, self.one = conv3x3(3, 8), nn.PReLU(8), nn.PReLU()
        self.conv1, self.norm = conv3x3(8, 12), nn.GroupNorm(4, 12)
        self.conv2, self.fc = conv3x3(12, 6), nn.Linear(6 * 54, 3)

    def forward(self, x):
        x = self.one(self.prelu(self.stem(x)))
        return self.fc(torch.flatten(self.conv2(self.norm(self.conv1(x))), 1))


def test_parameters_per_channel():
    gm = run(PReluAndNorms()).gm
    assert widths(gm) == {"stem": 5, "conv1": 8, "conv2": 4, "fc": 3}
    assert (gm.prelu.num_parameters, gm.one.num_parameters, gm.norm.num_channels) == (5, 1, 8)
    assert gm.fc.in_features == 4 * 54
    assert gm(*PReluAndNorms().inputs()).shape == (2, 3)


def test_float_layers_between_float_layers_keep_their_width():
    """Only what a binary layer reads or writes is narrowed."""
    config = Config(layers={"*": LayerConfig(binarize=False), "conv1": LayerConfig(binarize=True)})
    assert widths(run(Chain(), config).gm) == {"stem": 5, "conv1": 5, "conv2": 16, "fc1": 16, "fc2": 4}


def test_other_schemes_and_factor_1_change_nothing():
    for scheme, options in (("bireal", {}), ("binaryduo", {"width_factor": 1})):
        ran = run(Chain(), Config(options=options), scheme=scheme)
        assert not ran.report.changed
        assert (ran.report.applied, ran.report.refused, ran.report.notes) == ([], [], [])


def test_shapes_of_before_are_dropped():
    x = Chain().inputs()
    assert run(Chain(), inputs=x).context.shapes == {}
    assert run(Chain(), Config(options={"width_factor": 1.0}), inputs=x).context.shapes


def test_first_entries_of_the_float_weights_and_no_random_number():
    model = Chain()
    model.conv1.weight.requires_grad_(False)
    state = torch.random.get_rng_state()
    gm = run(model).gm
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(gm.conv2.weight, model.conv2.weight[:11, :5])
    assert torch.equal(gm.fc1.weight, model.fc1.weight[:11, :44])
    assert torch.equal(gm.bn2.weight, model.bn2.weight[:11])
    assert [name for name, p in gm.named_parameters() if not p.requires_grad] == ["conv1.weight"]


# Config.widths


def test_explicit_widths_win():
    config = Config(widths={"conv*": 6, "conv2": 10, "stem": 8})
    ran = run(Chain(), config)
    assert widths(ran.gm) == {"stem": 8, "conv1": 6, "conv2": 10, "fc1": 11, "fc2": 4}
    assert "stem" not in ran.report.applied


@pytest.mark.parametrize("scheme", bnnfx.schemes())
def test_explicit_widths_in_any_scheme(scheme):
    model, config = Residual(), Config(widths={"block.conv2": 6, "block.conv1": 12})
    if get_scheme(scheme).network_options.get("shortcut_per_convolution"):
        with pytest.raises(ValueError, match=r"'block\.conv1' and 'block\.conv2' are tied"):
            bnnfx.convert(model, scheme, config=config)
        config = Config(widths={"block.conv2": 6})
    gm = bnnfx.convert(model, scheme, config=config)
    outputs = {name: gm.get_submodule(name).out_channels for name in ("stem.0", "block.conv1", "block.conv2")}
    assert outputs == {"stem.0": 6, "block.conv1": config.widths.get("block.conv1", 6), "block.conv2": 6}
    loss_of(gm, model.inputs()).backward()


def test_wider_layers_are_initialized():
    torch.manual_seed(0)
    model = Chain()
    gm = run(model, Config(widths={"conv1": 20})).gm
    assert gm.conv1.weight.shape == (20, 5, 3, 3)
    assert torch.equal(gm.conv1.weight[:8], model.conv1.weight[:, :5])
    assert gm.conv1.weight[8:].std() > 0.01 and gm.conv1.weight.isfinite().all()
    assert gm.bn1.weight.tolist() == [1] * 20


def test_contradictory_widths():
    with pytest.raises(ValueError, match=r"'stem\.0' and 'block\.conv2' are tied.* 6 is asked .* first, 4 .* second"):
        run(Residual(), Config(widths={"stem.0": 6, "block.*": 4}))
    assert widths(run(Residual(), Config(widths={"stem.0": 4, "block.*": 4})).gm)["stem.0"] == 4


@pytest.mark.parametrize(
    ("make", "layer", "width", "reason"),
    [
        (Chain, "fc2", 5, "'fc2' is an output of the model"),
        (Grouped, "grouped", 8, "it must be a multiple of 3, because of the groups"),
        (ManyInputsOutputs, "conv1", 4, "combines it with a value"),
    ],
)
def test_width_that_cannot_be(make, layer, width, reason):
    with pytest.raises(ValueError, match=f"cannot give '{layer}' {width} output channels.*{reason}"):
        run(make(), Config(widths={layer: width}))
    ran = run(make(), Config(widths={f"{layer[:-1]}?": width}))  # a glob may select what cannot follow
    assert reason in ran.refused[layer]


def test_depthwise_by_its_own_name():
    assert widths(run(Grouped(), Config(widths={"depthwise": 3})).gm)["stem"] == 3


def test_width_of_a_name_that_selects_nothing():
    with pytest.raises(
        ValueError, match=r"Config\.widths selects no layer with 'conv9', 'bn\?'; the layers are: stem, "
    ):
        run(Chain(), Config(widths={"conv9": 3, "bn?": 3, "conv1": 4}))


@pytest.mark.parametrize("entry", [{"conv1": 0}, {"conv1": 2.0}, {"conv1": True}, {"conv1": "8"}, {nn.Conv2d: 8}])
def test_widths_are_positive_integers_by_name(entry):
    with pytest.raises(ValueError, match=r"Config\.widths maps names or globs to positive integers; got"):
        Config(widths=entry)


@pytest.mark.parametrize("factor", [0, -1, 1.5, "0.7", True, float("nan")])
def test_width_factor_out_of_range(factor):
    with pytest.raises(ValueError, match=r"width_factor.* is a number"):
        run(Chain(), Config(options={"width_factor": factor}))


def test_unknown_parity():
    with pytest.raises(ValueError, match="parity is 'factor' or 'exact'; got 'nearly'"):
        run(Chain(), Config(options={"parity": "nearly"}))


@pytest.mark.parametrize(
    ("option", "value"), [("width_factor", 1.0), ("parity", "exact"), ("shortcut_per_convolution", True)]
)
def test_options_of_the_network_are_not_for_single_layers(option, value):
    with pytest.raises(ValueError, match=f"'conv1'.*'{option}', which is an option of the whole network"):
        run(Chain(), Config(layers={"conv1": LayerConfig(options={option: value})}))


# parity


class Vgg7(Model):
    """BinaryDuo's network for CIFAR-10, without its pools in the way of the shapes: 64, 64, 128, 128, 512, 512, 10."""

    shapes = ((2, 3, 32, 32),)

    def __init__(self):
        super().__init__()
        pool, relu = nn.MaxPool2d(2), nn.ReLU()
        self.features = nn.Sequential(
            *(conv3x3(3, 64), nn.BatchNorm2d(64), relu),
            *(conv3x3(64, 64), pool, nn.BatchNorm2d(64), relu),
            *(conv3x3(64, 128), pool, nn.BatchNorm2d(128), relu),
            *(conv3x3(128, 128), pool, nn.BatchNorm2d(128), relu),
            *(nn.Conv2d(128, 512, 4, bias=False), nn.BatchNorm2d(512), relu),
            *(nn.Conv2d(512, 512, 1, bias=False), nn.BatchNorm2d(512), relu),
            nn.Conv2d(512, 10, 1, bias=False),
        )

    def forward(self, x):
        return self.features(x)


def test_published_vgg7():
    """Hyungjun-K1m/BinaryDuo: 1,573,229 weights when decoupled, 1,575,616 of the baseline."""
    model = Vgg7()
    assert weights(model) == 1_575_616
    config = Config(widths={"features.15": 336, "features.18": 512})
    ran = run(model, config)
    assert list(widths(ran.gm).values()) == [45, 45, 90, 90, 336, 512, 10]
    assert weights(ran.gm, ran.context.binary) == 1_573_229
    assert " 1573229 " in notes(ran)["weights"] and " 1575616 " in notes(ran)["weights"]


@pytest.mark.parametrize("explicit", [{}, {"features.18": 512}])
def test_exact_parity_of_vgg7(explicit):
    ran = run(Vgg7(), Config(options=EXACT, widths=explicit))
    found = widths(ran.gm)
    step = 3 * 9 + 2 * found["features.3"] * 9  # what one more channel of the stem costs, in it and in the next layer
    assert found["features.0"] < 64
    assert 0 <= 1_575_616 - weights(ran.gm, ran.context.binary) < step
    assert explicit.items() <= found.items()


@pytest.mark.parametrize("name", HAZARDS)
@pytest.mark.parametrize("parity", ["factor", "exact"])
def test_hazards_run_and_stay_within_the_baseline(name, parity):
    model = HAZARDS[name]()
    x = model.inputs()
    config = Config(options={"parity": parity})
    ran = run(model, config)
    numbers = [int(number) for number in re.findall(r"\d+", notes(ran)["weights"])] if ran.report.applied else None
    if numbers:
        assert numbers[0] == weights(ran.gm, ran.context.binary)
        binary = set(ran.context.binary)
        inside = [m for key, m in ran.gm.named_modules() if key in binary]
        assert numbers[1] == sum(2 * m.weight.numel() for m in inside)
        if not ran.refused:  # a layer whose width is given from outside may cost more than the others save
            assert numbers[0] <= numbers[2]
            assert parity == "exact" or numbers[1] <= numbers[3]
    for shapes in ({}, {"example_inputs": x}):
        gm = bnnfx.convert(copy.deepcopy(model), "binaryduo", config=config, **shapes)
        assert [o.shape for o in flat(gm(*x))] == [o.shape for o in flat(model(*x))]
        loss_of(gm, x).backward()


@pytest.mark.parametrize("name", ["chain", "grouped", "residual"])
def test_exact_parity_is_deterministic(name):
    first, second = (widths(run(HAZARDS[name](), Config(options=EXACT)).gm) for _ in range(2))
    assert first == second


# random networks


class Random(Model):
    """A stem, and then whatever the steps say, of maps of 8 rows and 6 columns."""

    shapes = ((2, 3, 8, 6),)

    def __init__(self, program):
        super().__init__()
        self.program, self.layers, sizes = program, nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1)]), [8]
        self.plan = []
        for kind, first, second, width in program:
            a, b = first % len(sizes), second % len(sizes)
            if kind in ("add", "gate") and sizes[a] != sizes[b]:
                kind = "cat"
            if kind == "grouped" and (sizes[a] % 2 or width % 2):
                kind = "conv"
            layer = {
                "conv": lambda a=a, w=width: nn.Conv2d(sizes[a], w, 3, padding=1),
                "grouped": lambda a=a, w=width: nn.Conv2d(sizes[a], w, 1, groups=2),
                "depthwise": lambda a=a: nn.Conv2d(sizes[a], 2 * sizes[a], 3, padding=1, groups=sizes[a]),
                "norm": lambda a=a: nn.BatchNorm2d(sizes[a]),
                "prelu": lambda a=a: nn.PReLU(sizes[a]),
            }.get(kind, nn.Identity)()
            self.plan.append((kind, a, b))
            self.layers.append(layer)
            sizes.append({"cat": sizes[a] + sizes[b], "depthwise": 2 * sizes[a]}.get(kind, sizes[a]))
            if kind in ("conv", "grouped"):
                sizes[-1] = width
        self.mid, self.last = nn.Linear(sizes[-1] * 48, 6), nn.Linear(6, 3)

    def forward(self, x):
        values = [self.layers[0](x)]
        for (kind, a, b), layer in zip(self.plan, list(self.layers)[1:], strict=True):
            one, other = values[a], values[b]
            values.append(
                {
                    "cat": lambda one=one, other=other: torch.cat([one, other], 1),
                    "add": lambda one=one, other=other: one + other,
                    "gate": lambda one=one, other=other: one * torch.sigmoid(other),
                    "chunk": lambda one=one: torch.cat(one.chunk(2, 1)[::-1], 1),
                }.get(kind, lambda one=one, layer=layer: layer(one))()
            )
        return self.last(self.mid(torch.flatten(values[-1], 1)))


STEPS = st.tuples(
    st.sampled_from(["conv", "grouped", "depthwise", "norm", "prelu", "cat", "add", "gate", "relu", "chunk"]),
    *(st.integers(0, 9), st.integers(0, 9), st.sampled_from([3, 4, 8, 10])),
)


OPTIONS = st.sampled_from([{"width_factor": HALF}, {"width_factor": 0.4}, {"width_factor": 0.9}, EXACT])


@settings(deadline=None, max_examples=60)
@given(st.lists(STEPS, min_size=1, max_size=9), OPTIONS, st.sampled_from([None, 4, 6, 12]), st.booleans())
def test_random_networks_run_and_keep_their_operations(program, options, stem, given_shapes):
    """Widths of one class that came apart, as an explicit one or a search would make them, could not be added."""
    model = Random(program)
    x = model.inputs()
    arguments = {"example_inputs": x} if given_shapes else {}
    try:
        config = Config(options=options, widths={} if stem is None else {"layers.0": stem})
        gm = bnnfx.convert(model, "binaryduo", config=config, **arguments)
        assert stem in (None, gm.get_submodule("layers.0").out_channels)
    except ValueError as refused:
        assert "cannot give 'layers.0'" in str(refused)
        gm = bnnfx.convert(model, "binaryduo", config=Config(options=options), **arguments)
    assert gm(*x).shape == (2, 3)
    loss_of(gm, x).backward()
    reports = {report.name: report for report in record_of(gm).reports}
    assert reports["CoupleWidths"].applied or options == EXACT  # the linear layer in the middle at least
    for module in gm.modules():
        if isinstance(module, BinaryConv2d) and module.groups > 2:
            assert module.weight.shape[1] == 1  # depthwise it was and is


def test_wrongly_resized_network_would_be_noticed():
    gm = bnnfx.convert(Chain(), "binaryduo")
    resize(gm.bn1, 4, 4)
    with pytest.raises(RuntimeError):
        gm(*Chain().inputs())


def test_ternary_activations_and_binary_layers_are_made_of_the_narrow_layers():
    gm = bnnfx.convert(Chain(), "binaryduo")
    kinds = [type(m).__name__ for m in gm.modules() if isinstance(m, BinaryConv2d | BinaryLinear | ActivationBinarizer)]
    assert sorted(kinds) == ["BinaryConv2d"] * 2 + ["BinaryLinear"] + ["TernaryActivation"] * 3
    assert gm.conv2.weight.shape == (11, 5, 3, 3)


def test_graph_is_not_touched():
    assert run(Residual()).after == golden("""
        x = input
        stem_0 = Conv2d(x)
        stem_1 = BatchNorm2d(stem_0)
        block_conv1 = Conv2d(stem_1)
        block_bn1 = BatchNorm2d(block_conv1)
        block_conv2 = Conv2d(block_bn1)
        block_bn2 = BatchNorm2d(block_conv2)
        add = add(block_bn2, stem_1)
        block_relu_1 = ReLU block.relu(add)
        pool = AdaptiveAvgPool2d(block_relu_1)
        flatten = flatten(pool, 1)
        fc = Linear(flatten)
        return fc
    """)


class Separable(Model):
    """Depthwise and pointwise convolutions in turn: split, each depthwise one reads two channels per filter."""

    def __init__(self):
        super().__init__()
        layers = [conv3x3(3, 16)]
        for _ in range(2):
            layers += [conv3x3(16, 16, groups=16), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(16, 4, 1))

    def forward(self, x):
        return self.layers(x)


def test_factor_is_lowered_for_depthwise_convolutions():
    everywhere = Config(keep_float=("first", "last", "downsample"))
    ran = run(Separable(), everywhere)
    names = ran.context.binary
    at_11, at_10 = (2 * 2 * (9 * w + w * w) for w in (11, 10))
    assert at_11 > 2 * (9 * 16 + 16 * 16) >= at_10
    assert set(widths(ran.gm).values()) == {10, 4}
    assert sum(2 * ran.gm.get_submodule(name).weight.numel() for name in names) == at_10
    assert notes(ran)["width_factor"].startswith("is 0.6250 instead of 0.7071")
    for config in (replace(everywhere, options={"width_factor": 0.72}), replace(everywhere, widths={"layers.0": 11})):
        assert 11 in widths(run(Separable(), config).gm).values()


def test_depthwise_convolution_of_one_channel():
    """Two channels become one: it is still counted as depthwise, in the baseline too."""
    model = nn.Sequential(
        *(conv3x3(3, 2), nn.BatchNorm2d(2), conv3x3(2, 2, groups=2), nn.BatchNorm2d(2), nn.Conv2d(2, 6, 1)),
        *(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)),
    )
    ran = run(model)
    assert ran.gm.get_submodule("2").weight.shape == (1, 1, 3, 3)
    assert f" {weights(model)} " in notes(ran)["weights"]
