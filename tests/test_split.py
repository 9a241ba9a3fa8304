"""`split`: the same function before and after, for every wiring; what it refuses; how it lowers."""

import copy
import operator
import pickle
import random
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import ternary
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnnfx
from bnnfx import ConversionError, StageError
from bnnfx.graph.dataflow import module_of
from bnnfx.graph.record import Record, attach, record_of
from bnnfx.graph.stage import Stage
from bnnfx.nn import BinaryConv2d, HeavisideActivation, ScaledSign, SignActivation, TernaryActivation, WeightBinarizer
from bnnfx.nn.halves import mean_of_halves, shift_halves
from bnnfx.numerics.surrogates import clipped_identity
from bnnfx.schemes import get_scheme
from bnnfx.verification.bit_trace import trace_bits
from bnnfx.verification.comparison import compare

NETWORKS = ternary.networks()
every_network = pytest.mark.parametrize("name", NETWORKS)
SIZE = (3, 8, 6)


def made(name: str, seed: int = 0) -> fx.GraphModule:
    torch.manual_seed(seed)
    return ternary.trainable(NETWORKS[name](), seed)


def images(seed: int = 0, batch: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, *SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def flat(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def assert_close(a: fx.GraphModule, b: fx.GraphModule, x: Tensor) -> None:
    """Within 1e-12 of the largest output: sums of a few hundred float64 terms; no value is that near to a threshold."""
    pairs = list(zip(flat(a(x)), flat(b(x)), strict=True))
    assert pairs
    for wanted, y in pairs:
        assert y.shape == wanted.shape
        assert wanted.std() > 0
        assert float((y - wanted).abs().max()) <= 1e-12 * max(1.0, float(wanted.abs().max()))


# --- the identity ---


@every_network
@pytest.mark.parametrize("seed", range(3))
def test_computes_the_same(name: str, seed: int) -> None:
    gm = made(name, seed)
    with torch.no_grad():
        assert_close(gm, bnnfx.split(gm), images(seed))


@every_network
def test_bits_are_those_of_the_comparisons(name: str) -> None:
    """Halves come in the order of `verify`: first where x >= 0.75, then x >= 0.25, those of a group side by side."""
    gm = made(name).float()
    coupled, split = (trace_bits(g, (images(dtype=torch.float32),)) for g in (gm, bnnfx.split(gm)))
    assert list(coupled.bits) == list(split.bits)
    result = compare(coupled, split)
    assert result, str(result)
    assert any(bits.bits.any() and not bits.bits.all() for bits in split.bits.values())


@every_network
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_bit_where_nothing_rounds(name: str, seed: int) -> None:
    """Dyadic parameters and inputs, in float64: many values are exactly on a threshold, and a tie goes up."""
    gm = made(name, seed)
    generator = torch.Generator().manual_seed(seed)
    ternary.scatter_dyadic(gm, generator)
    x = ternary.dyadic(generator, 3, *SIZE).double()
    ties = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal ties
        ties += int(((inputs[0] == 0.25) | (inputs[0] == 0.75)).sum())

    split = bnnfx.split(gm)
    for module in gm.modules():
        if isinstance(module, TernaryActivation):
            module.register_forward_hook(count)
    with torch.no_grad():
        for wanted, y in zip(flat(gm(x)), flat(split(x)), strict=True):
            assert torch.equal(y, wanted)
    assert ties > 10


def test_rounding_to_even_would_differ() -> None:
    """What the ties are for: 0.25 is 0 and 0.75 is 1 for torch.round, the halves say 1/2 and 1."""
    x = torch.tensor([0.25, 0.75])
    assert torch.equal(TernaryActivation()(x), torch.tensor([0.5, 1.0]))
    assert torch.equal(torch.round(2 * x) / 2, torch.tensor([0.0, 1.0]))
    halves = HeavisideActivation()(shift_halves(torch.cat([x[:, None]] * 2, 1), 0.25))
    assert torch.equal(mean_of_halves(halves)[:, 0], torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("block", range(3))
def test_random_networks(block: int) -> None:
    met: Counter[str] = Counter()
    for seed in range(block * 12, block * 12 + 12):
        r = random.Random(seed)
        torch.manual_seed(seed)
        gm = ternary.trainable(ternary.random_network(r), seed)
        split = bnnfx.split(gm)
        with torch.no_grad():
            assert_close(gm, split, images(seed))
            ternary.scatter_dyadic(gm, torch.Generator().manual_seed(seed))
            x = ternary.dyadic(torch.Generator().manual_seed(seed), 2, *SIZE).double()
            assert torch.equal(bnnfx.split(gm)(x), gm(x)), seed
        nodes = [getattr(node.target, "__name__", "") for node in split.graph.nodes]
        met["streams"] += sum(node.target is operator.add for node in split.graph.nodes)
        met["means"] += nodes.count("mean_of_halves")
        met["constant shifts"] += nodes.count("shift_halves")
        met["groups"] += nodes.count("halves_by_group")
    assert len(met) == 4 and min(met.values()) > 0, met


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_any_network(seed: int) -> None:
    """Dyadic, so that there is no tolerance: a wiring that is not foreseen shows as another number."""
    gm = ternary.trainable(ternary.random_network(random.Random(seed)))
    generator = torch.Generator().manual_seed(seed)
    ternary.scatter_dyadic(gm, generator)
    x = ternary.dyadic(generator, 2, *SIZE).double()
    with torch.no_grad():
        assert torch.equal(bnnfx.split(gm)(x), gm(x))


@every_network
def test_first_training_step(name: str) -> None:
    """Loss and running statistics are those of the coupled network, with both halves alike."""
    gm = made(name).train()
    split, x = bnnfx.split(gm), images(batch=4)
    expected, given = (sum(y.square().mean() for y in flat(model(x))) for model in (gm, split))
    assert abs((given - expected).item()) <= 1e-12 * expected.item()
    given.backward()
    for parameter_name, parameter in split.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    before, after = dict(gm.named_buffers()), dict(split.named_buffers())
    assert list(before) == list(after)
    doubled = 0
    for key, value in after.items():
        wanted = before[key]
        if value.shape != wanted.shape:
            wanted, doubled = torch.cat([wanted, wanted]), doubled + 1
        assert torch.allclose(value, wanted, rtol=1e-12, atol=1e-14), key
    assert doubled > 0 or name in ("no batch norm", "elementwise", "input directly")  # no beta in reach of a shift


# --- the structure, as the paper has it ---


def kinds(split: fx.GraphModule, name: str) -> list[str]:
    """How a module is called: its kind and channels, and what its input is."""
    (node,) = [node for node in split.graph.nodes if node.target == name]
    module = module_of(split, node)
    source = node.all_input_nodes[0]
    what = str(source.target) if source.op == "call_module" else getattr(source.target, "__name__", source.name)
    return [type(module).__name__, str(getattr(module, "num_features", getattr(module, "in_channels", ""))), what]


def shift_of(gm: fx.GraphModule, split: fx.GraphModule, name: str) -> float:
    """How far the halves of a batch norm's beta are from the coupled one's."""
    beta, halves = gm.get_parameter(f"{name}.bias"), split.get_parameter(f"{name}.bias").unflatten(0, (2, -1))
    shifts = {float(s) for s in torch.stack([beta - halves[0], halves[1] - beta]).detach().round(decimals=9).unique()}
    (shift,) = shifts
    return shift


def test_resnet_with_a_shortcut_for_each_convolution() -> None:
    gm = made("resnet with a shortcut for each")
    split = bnnfx.split(gm)
    shifts = {name: shift_of(gm, split, name) for name in ("0.1", "3.bn1", "1.bn1", "1.bn2", "2.bn1", "3.bn2", "4.bn2")}
    assert shifts == {"0.1": 0.25, "3.bn1": 0.25, **dict.fromkeys(("1.bn1", "1.bn2", "2.bn1", "3.bn2", "4.bn2"), 0.0)}
    assert kinds(split, "3.shortcut.0")[2] == kinds(split, "5.relu")[2].replace("add", "mean_of_halves")
    assert kinds(split, "3.shortcut.2") == ["BatchNorm2d", "6", "3.shortcut.1"]
    assert kinds(split, "5.bn") == ["BatchNorm2d", "9", "5.conv"]
    assert kinds(split, "3.conv1") == ["BinaryConv2d", "8", "3.t1"]
    assert torch.equal(split.get_parameter("3.conv1.weight")[:, 4:], gm.get_parameter("3.conv1.weight") / 2)
    assert split.get_submodule("3.conv1").out_channels == 6
    targets = Counter(getattr(node.target, "__name__", "") for node in split.graph.nodes)
    assert (targets["mean_of_halves"], targets["shift_halves"]) == (2, 0)


def test_plain_resnet() -> None:
    """The batch norm inside a block has no stream to take the shift from."""
    gm = made("plain resnet")
    split = bnnfx.split(gm)
    assert {shift_of(gm, split, f"{block}.bn1") for block in (1, 2, 3, 4)} == {0.25}
    assert [shift_of(gm, split, f"{block}.bn2") for block in (1, 2, 3, 4)] == [0.0, 0.0, 0.25, 0.0]


@pytest.mark.parametrize("each", [False, True])
def test_streams_are_shifted_halves(each: bool) -> None:
    """Invariant J at every block's border: the split stream is the coupled one less 1/4, and more by it."""
    gm = ternary.trainable(ternary.Resnet(each=each))
    split = bnnfx.split(gm)

    class Values(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            self.seen = {**getattr(self, "seen", {}), n.name: super().run_node(n)}
            return self.seen[n.name]

    runs = [Values(g) for g in (gm, split)]
    with torch.no_grad():
        for run in runs:
            run.run(images())
    streams = [node.name for node in gm.graph.nodes if node.target is operator.add][:-1]
    assert len(streams) == (8 if each else 4)
    for name in streams:
        s, halves = (run.seen[name] for run in runs)
        assert torch.allclose(halves, torch.cat([s - 0.25, s + 0.25], 1), rtol=0, atol=1e-13)


def test_record_goes_on() -> None:
    gm = made("resnet with a shortcut for each")
    record = record_of(bnnfx.split(gm))
    assert record is not None and record.stage is Stage.TRAINABLE
    assert [report.name for report in record.reports] == [
        *("SplitActivations", "MoveShiftUpstream", "ReplicateBeforeBatchNorm")
    ]
    assert all(report.changed for report in record.reports)
    assert record_of(gm).reports == []  # type: ignore[union-attr]
    assert {r.subject: r.reason for r in record.refusals()} == {
        "3.shortcut.2": "stays one for both halves: no layer on bits is in front of it"
    }


def test_nothing_else_changes() -> None:
    """The coupled graph keeps its values; names, order, mode, type and `requires_grad` of the parameters stay."""
    gm = made("vgg").train()
    gm.get_parameter("conv1.weight").requires_grad_(False)
    gm.get_parameter("bn1.weight").requires_grad_(False)
    before = copy.deepcopy(gm.state_dict())
    split = bnnfx.split(gm)
    assert all(torch.equal(before[key], value) for key, value in gm.state_dict().items())
    assert [name for name, _ in gm.named_parameters()] == [name for name, _ in split.named_parameters()]
    assert list(before) == list(split.state_dict())
    flags = [{name: p.requires_grad for name, p in g.named_parameters()} for g in (gm, split)]
    assert flags[0] == flags[1] and not flags[1]["bn1.weight"]
    assert {p.dtype for p in split.parameters()} == {torch.float64}
    assert all(module.training for module in split.modules())
    assert not {id(p) for p in gm.parameters()} & {id(p) for p in split.parameters()}


class TwoInputs(nn.Module):
    """Activations read both inputs directly."""

    def __init__(self) -> None:
        super().__init__()
        self.ta, self.tb, self.a, self.b = TernaryActivation(), TernaryActivation(), *(ternary.conv(3, 4) for _ in "ab")

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(self.ta(x)), self.b(self.tb(y))


def test_several_inputs(tmp_path: Path) -> None:
    gm = ternary.trainable(TwoInputs()).float()
    split, inputs = bnnfx.split(gm), (images(dtype=torch.float32), images(1, dtype=torch.float32))
    for wanted, y in zip(gm(*inputs), split(*inputs), strict=True):
        assert torch.allclose(y, wanted, rtol=1e-5, atol=1e-6)  # float32 sums of 54 terms
    packed = bnnfx.lower(split, inputs)
    assert bnnfx.verify(split, packed, inputs)
    assert bnnfx.verify(packed, bnnfx.export_onnx(packed, tmp_path / "two.onnx"), inputs, kernels=False)


def test_is_an_ordinary_module() -> None:
    split, x = bnnfx.split(made("resnet with a shortcut for each")), images()
    for other in (copy.deepcopy(split), pickle.loads(pickle.dumps(split))):
        assert torch.equal(other(x), split(x))
        assert record_of(other).stage is Stage.TRAINABLE  # type: ignore[union-attr]
    fresh = bnnfx.split(made("resnet with a shortcut for each", seed=5))
    fresh.load_state_dict(split.state_dict())
    assert torch.equal(fresh(x), split(x))
    assert split(images(batch=7)).shape == (7, 4)
    assert bnnfx.calibrate(split, [x]).layers.keys() == {
        n for n, m in split.named_modules() if "t" in n.split(".")[-1][:1]
    }


def test_trains_under_bfloat16_autocast() -> None:
    split = bnnfx.split(made("resnet with a shortcut for each").float().train())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = split(images(dtype=torch.float32)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in split.parameters())


# --- what is refused ---


def test_graph_without_ternary_activations() -> None:
    plain = nn.Sequential(ternary.stem(4), SignActivation(clipped_identity), ternary.conv(4, 2))
    with pytest.raises(ConversionError, match=r"this graph has none; .*scheme='binaryduo'"):
        bnnfx.split(ternary.trainable(plain))


def test_graph_that_was_split() -> None:
    with pytest.raises(ConversionError, match="this graph was split before"):
        bnnfx.split(bnnfx.split(made("vgg")))


def test_graph_of_another_stage() -> None:
    x = images(dtype=torch.float32)
    packed = bnnfx.lower(bnnfx.split(made("plain resnet")), (x,))
    with pytest.raises(StageError, match=r"split takes a graph in stage trainable.*got a graph in stage packed"):
        bnnfx.split(packed)
    with pytest.raises(StageError, match="got a Sequential"):
        bnnfx.split(nn.Sequential())  # type: ignore[arg-type]


class Standardised(WeightBinarizer):
    """Signs and mean magnitude of standardised filters, as IR-Net's: a factor in front of the weight is lost."""

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        flat = weight.flatten(1)
        centred = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(weight)
        return torch.where(centred >= 0, 1.0, -1.0).to(weight), centred.abs().flatten(1).mean(1)


def network_with(binarizer: WeightBinarizer) -> fx.GraphModule:
    layer = BinaryConv2d(4, 4, 3, binarizer=binarizer)
    return ternary.trainable(nn.Sequential(ternary.stem(4), TernaryActivation(), layer))


def rotated() -> WeightBinarizer:
    rbnn = get_scheme("rbnn")
    return rbnn.weight(nn.Conv2d(4, 4, 3), rbnn.options)


@pytest.mark.parametrize("kind", ["Standardised", "RotatedSign", "CentredScaledSign"])
def test_binarizer_that_loses_the_factor_is_refused(kind: str) -> None:
    xnor = get_scheme("xnor")
    makers = {"Standardised": Standardised, "RotatedSign": rotated}
    binarizer = makers[kind]() if kind in makers else xnor.weight(nn.Conv2d(4, 4, 3), xnor.options)
    with pytest.raises(ConversionError, match=rf"'1': the layer '2' behind it has a {kind}, .* homogeneous"):
        bnnfx.split(network_with(binarizer))


def test_standardised_weights_would_break_the_identity() -> None:
    """The refusal is needed: the same network, forced through, computes something else."""
    gm = network_with(Standardised())
    gm.get_submodule("2").binarizer.homogeneous = True  # type: ignore[union-attr]
    expected, given = gm(images()), bnnfx.split(gm)(images())
    assert float((given - expected).abs().max()) > 0.1 * float(expected.abs().max())


@pytest.mark.parametrize("binarizer", [ScaledSign(), ternary.LayerScaledSign()])
def test_homogeneous_binarizers_are_that(binarizer: WeightBinarizer) -> None:
    assert binarizer.homogeneous and not WeightBinarizer().homogeneous
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for factor in (0.5, 0.125, 4.0):
        signs, scale = binarizer(weight)
        doubled, scaled = binarizer(torch.cat([factor * weight] * 2, 1))
        assert torch.equal(doubled, torch.cat([signs, signs], 1))
        assert torch.allclose(scaled, factor * scale, rtol=1e-14, atol=0)


def test_layer_that_reads_something_else_too() -> None:
    def wiring(m: ternary.Wired, x: Tensor) -> Tensor:
        x = m.s(x)
        return m.a(m.na(m.a(m.ta(x))).sign())

    gm, _ = trace_unchecked(ternary.wired(wiring, sign=SignActivation(clipped_identity)))
    with pytest.raises(ConversionError, match=r"'a' behind it is also called on '.*', which is not ternary"):
        bnnfx.split(gm)


def trace_unchecked(model: nn.Module) -> tuple[fx.GraphModule, list[object]]:
    from bnnfx.frontend.trace import trace

    gm, leaves, _ = trace(model)
    attach(gm, Record(Stage.TRAINABLE))
    return gm, list(leaves)


def test_layers_that_share_a_weight() -> None:
    model = ternary.wired(lambda m, x: m.b(m.tb(m.na(m.a(m.ta(m.s(x)))))))
    model.b.weight = model.a.weight
    with pytest.raises(ConversionError, match=r"'a' behind it shares its weight \(a.weight, b.weight\)"):
        bnnfx.split(ternary.trainable(model))


def test_weight_that_a_hook_computes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of a parametrization, which is no plain layer
        layer = nn.utils.weight_norm(nn.Conv2d(4, 4, 3))
    layer.weight = layer.weight.detach()  # a result of autograd cannot be copied
    with pytest.raises(ConversionError, match="the layer '2' behind it has its weight computed by a hook"):
        bnnfx.split(ternary.trainable(nn.Sequential(ternary.stem(4), TernaryActivation(), layer)))


def test_parametrized_layer_reads_the_mean() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    gm = ternary.trainable(nn.Sequential(ternary.stem(4), TernaryActivation(), layer))
    split = bnnfx.split(gm)
    with torch.no_grad():
        assert_close(gm, split, images())
    assert mean_of_halves in {node.target for node in split.graph.nodes}


def test_groups_that_want_different_orders() -> None:
    def wiring(m: ternary.Wired, x: Tensor) -> Tensor:
        t = m.ta(m.s(x))
        return m.a(t) + m.grouped(t)

    with pytest.raises(ConversionError, match="'a', 'grouped' read it in different groups of channels"):
        bnnfx.split(ternary.trainable(ternary.wired(wiring, grouped=ternary.conv(4, 4, groups=2))))


def test_grouped_layer_and_another_reader() -> None:
    def wiring(m: ternary.Wired, x: Tensor) -> Tensor:
        t = m.ta(m.s(x))
        return m.grouped(t) + t

    with pytest.raises(ConversionError, match=r"grouped layer 'grouped' and 'add' both read it"):
        bnnfx.split(ternary.trainable(ternary.wired(wiring, grouped=ternary.conv(4, 4, groups=2))))


# --- lowering and export ---


@every_network
def test_lowers_exactly(name: str) -> None:
    """With halves that have diverged."""
    gm, x = bnnfx.split(made(name)).float(), images(dtype=torch.float32)
    diverge(gm)
    result = bnnfx.verify(gm, bnnfx.lower(gm, (x[:1],)), (x,))
    assert result and result.nodes, str(result)


@pytest.mark.parametrize("dialect", ["bnnfx", "standard"])
@pytest.mark.parametrize("name", ["vgg", "resnet with a shortcut for each", "float weights", "grouped"])
def test_exports_exactly(name: str, dialect: str, tmp_path: Path) -> None:
    """The file's bodies of standard operators give the bits of the packed graph."""
    gm, x = bnnfx.split(made(name)).float(), images(dtype=torch.float32)
    diverge(gm)
    packed = bnnfx.lower(gm, (x[:1],))
    path = bnnfx.export_onnx(packed, tmp_path / "split.onnx", dialect=dialect)
    result = bnnfx.verify(packed, path, (x,), kernels=False)
    assert result and (result.nodes or name == "float weights"), str(result)


def diverge(gm: fx.GraphModule) -> None:
    """As after fine-tuning: gamma, beta, statistics and weights of the halves have nothing in common any more."""
    ternary.scatter(gm, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(8)
    for module in gm.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.copy_(torch.randn(module.weight.shape, generator=generator) / module.weight[0].numel())


def test_both_halves_are_thresholds_of_one_accumulator() -> None:
    """Everything between the binary layers of a chain is integers and bits, before fine-tuning and after."""
    for tuned in (False, True):
        gm = bnnfx.split(made("vgg")).float()
        if tuned:
            diverge(gm)
        packed = bnnfx.lower(gm, (images(dtype=torch.float32),))
        calls = [str(n.target).split(".")[1] for n in packed.graph.nodes if "bnnfx." in str(n.target)]
        assert calls == [
            *("pack", "binary_conv2d_twice_threshold", "max_pool2d", "binary_conv2d_twice_threshold"),
            "binary_conv2d_twice_float",  # a float layer reads its bits
        ]


def test_thresholds_at_every_accumulator() -> None:
    """All inputs of one filter, so that every accumulator occurs, with ties, gamma of both signs and 0."""
    model = nn.Sequential(
        TernaryActivation(), ternary.conv(8, 6, 1), nn.BatchNorm2d(6), TernaryActivation(), ternary.conv(6, 2, 1)
    )
    gm = bnnfx.split(ternary.trainable(model)).float()
    ternary.scatter_dyadic(gm, torch.Generator().manual_seed(1))
    gm.get_submodule("2").weight.data[:4] = torch.tensor([1.0, -1.0, 0.0, -0.5])  # type: ignore[union-attr, operator]
    x = (torch.arange(3**8)[:, None] // 3 ** torch.arange(8) % 3 / 2).view(-1, 8, 1, 1)
    packed = bnnfx.lower(gm, (x[:1],))
    assert "binary_conv2d_twice_threshold" in str([node.target for node in packed.graph.nodes])
    trainable, lowered = trace_bits(gm, (x,)), trace_bits(packed, (x,))
    assert lowered.bits["_3"].compared is None
    assert (trainable.bits["_3"].compared == 0).any()  # type: ignore[union-attr]
    assert list(trainable.bits) == list(lowered.bits)
    for name, expected in trainable.bits.items():
        assert (expected.bits == lowered.bits[name].bits).all(), name
    (output,) = compare(trainable, lowered).outputs
    assert output.difference == 0


def test_coupled_graph_is_not_lowered() -> None:
    with pytest.raises(StageError, match=r"'t1' has 3 levels \(0, 0.5, 1\). Call bnnfx.split first"):
        bnnfx.lower(made("vgg"), (images(dtype=torch.float32),))


def test_verify_compares_coupled_and_split() -> None:
    gm, x = made("resnet with a shortcut for each").float(), images(dtype=torch.float32)
    packed = bnnfx.lower(bnnfx.split(gm), (x,))
    result = bnnfx.verify(gm, packed, (x,))
    assert result and len(result.nodes) == 9, str(result)


def test_what_is_transposed_is_said() -> None:
    gm = bnnfx.split(made("resnet with a shortcut for each")).float()
    record = record_of(bnnfx.lower(gm, (images(dtype=torch.float32),)))
    (report,) = [report for report in record.reports if report.name == "KeepChannelsLast"]  # type: ignore[union-attr]
    reasons = " ".join(remark.reason for remark in report.refused)
    assert "'3.shortcut.0' works on [N, C, H, W]" in reasons and "'pad' works on [N, C, H, W]" in reasons


@pytest.mark.parametrize("block", range(2))
def test_random_networks_lower_exactly(block: int) -> None:
    for seed in range(block * 8, block * 8 + 8):
        torch.manual_seed(seed)
        gm = bnnfx.split(ternary.trainable(ternary.random_network(random.Random(seed)), seed)).float()
        if seed % 2:
            diverge(gm)
        x = images(seed, dtype=torch.float32)
        packed = bnnfx.lower(gm, (x[:1],))
        result = bnnfx.verify(gm, packed, (x,))
        assert result and result.nodes, f"seed {seed}: {result}"


def test_padding_adds_nothing() -> None:
    """All bits are 1 and all weights +1: a border that counted as 1 would show, and so would one that counted as -1."""
    model = nn.Sequential(TernaryActivation(), ternary.conv(4, 1))
    gm = bnnfx.split(ternary.trainable(model)).float()
    gm.get_parameter("1.weight").data.fill_(1.0)
    x = torch.ones(1, 4, 5, 5)
    expected = F.conv2d(torch.ones(1, 8, 5, 5), torch.ones(1, 8, 3, 3), padding=1)
    assert torch.equal(bnnfx.lower(gm, (x,))(x), expected)
    assert torch.equal(gm(x), expected)
