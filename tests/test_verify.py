"""`verify`: what it must catch, what it must tolerate, and what it counts."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from torch import Tensor, fx, nn

import bnnfx
from bnnfx import Config
from bnnfx.verification.bit_trace import Bits, BitTrace, trace_bits
from bnnfx.verification.comparison import compare

STEP = 2.0**-23


def network() -> fx.GraphModule:
    """Float stem; a chain with an integer threshold; a residual stream; a float head."""
    torch.manual_seed(0)
    gm = bnnfx.convert(Network(), "bireal").eval()
    generator = torch.Generator().manual_seed(0)
    for module in gm.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.copy_(torch.randn(module.num_features, generator=generator))
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) / 100)
    return gm


class Network(nn.Module):
    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.a, self.bn1 = nn.Conv2d(width, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.b, self.bn2 = nn.Conv2d(20, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.c, self.bn3 = nn.Conv2d(20, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.a(self.bn0(self.stem(x))))
        x = self.bn2(self.b(x))
        x = self.bn3(self.c(x)) + x
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 9, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def gm() -> fx.GraphModule:
    return network()


@pytest.fixture(scope="module")
def packed(gm: fx.GraphModule, x: Tensor) -> fx.GraphModule:
    return bnnfx.lower(gm, (x,))


@pytest.fixture(scope="module")
def path(packed: fx.GraphModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bnnfx.export_onnx(packed, tmp_path_factory.mktemp("verify") / "m.onnx")


def test_equal_pairs_in_any_order(gm: fx.GraphModule, packed: fx.GraphModule, path: Path, x: Tensor) -> None:
    forms = (gm, packed, path, str(path))
    for a in forms:
        for b in forms:
            result = bnnfx.verify(a, b, (x,))
            assert result, str(result)
            assert result.samples == 3 and len(result.nodes) == 3
            # 7x6 maps of 10, 20 and 20 channels in 3 samples
            assert [node.total for node in result.nodes] == [3 * 42 * c for c in (10, 20, 20)]


def test_equal_models_differ_nowhere(packed: fx.GraphModule, path: Path, x: Tensor) -> None:
    for result in (bnnfx.verify(packed, packed, (x,)), bnnfx.verify(path, path, (x,))):
        assert result.differing_bits == result.diverged == 0 and result.first_difference is None
        assert result.outputs[0].difference == 0.0 and not result.faults
        assert str(result).startswith("equal: 0 of 6300 bits differ")


def edited(path: Path, folder: Path, constant: Callable[[str], bool], edit: Callable[[np.ndarray], None]) -> Path:
    """A copy of the file in which one constant is changed."""
    model = onnx.load(path)
    (tensor,) = [t for t in model.graph.initializer if constant(t.name)]
    array = onnx.numpy_helper.to_array(tensor).copy()
    edit(array)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, folder / "edited.onnx")
    return folder / "edited.onnx"


def flip_bit(array: np.ndarray) -> None:
    array[0, 1, 1, 0] ^= 1


@pytest.mark.parametrize(
    ("layer", "first"), [("a_weight_bits", "b_sign"), ("b_weight_bits", "c_sign")], ids=["integers", "float stream"]
)
def test_one_flipped_weight_bit(
    packed: fx.GraphModule, path: Path, x: Tensor, tmp_path: Path, layer: str, first: str
) -> None:
    wrong = edited(path, tmp_path, lambda name: name.endswith(layer), flip_bit)
    result = bnnfx.verify(packed, wrong, (x,))
    assert not result and result.first_difference is not None
    assert result.first_difference.name == first and result.first_difference.unexplained > 0
    text = str(result)
    assert text.startswith(f"NOT EQUAL: {result.differing_bits} of 6300 bits differ") and first in text


def test_flipped_weight_bit_of_the_last_layer_shows_in_the_output(
    packed: fx.GraphModule, path: Path, x: Tensor, tmp_path: Path
) -> None:
    result = bnnfx.verify(packed, edited(path, tmp_path, lambda name: name.endswith("c_weight_bits"), flip_bit), (x,))
    assert not result and result.differing_bits == 0
    assert result.outputs[0].difference > result.outputs[0].bound


def test_threshold_off_by_one_step(packed: fx.GraphModule, path: Path, x: Tensor, tmp_path: Path) -> None:
    def shift(array: np.ndarray) -> None:
        array[np.abs(array) < 60] += 1

    wrong = edited(path, tmp_path, lambda name: name.endswith("a_threshold"), shift)
    result = bnnfx.verify(packed, wrong, (x,))
    assert not result and result.first_difference is not None and result.first_difference.name == "b_sign"


def test_rounding_of_one_node_is_a_fault_at_that_node(
    packed: fx.GraphModule, path: Path, x: Tensor, tmp_path: Path
) -> None:
    """A runtime whose convolution uses another scale by one unit in the last place: too small for any bit to show."""
    model = onnx.load(path)
    bodies = [f for f in model.functions if f.name in ("BinaryConv2dFloatBits", "BinaryConv2dAddFloat")]
    assert len(bodies) == 2
    for body in bodies:
        (unsqueeze,) = [n for n in body.node if n.op_type == "Unsqueeze" and "scale" in n.input]
        factor = onnx.helper.make_node(
            "Constant", [], ["_factor"], value=onnx.numpy_helper.from_array(np.array(1 + STEP, np.float32))
        )
        scaled = onnx.helper.make_node("Mul", ["scale", "_factor"], ["_scale"])
        unsqueeze.input[0] = "_scale"
        nodes = [factor, scaled, *body.node]
        del body.node[:]
        body.node.extend(nodes)
    onnx.save(model, tmp_path / "m.onnx")
    assert bnnfx.verify(packed, tmp_path / "m.onnx", (x,))  # the kernels do not run the function
    result = bnnfx.verify(packed, tmp_path / "m.onnx", (x,), kernels=False)
    assert not result and set(result.faults) == {"b", "c"} and min(result.faults.values()) > 0
    assert "'b' has" in str(result)


def test_constant_off_by_one_unit_is_a_fault_at_its_node(
    packed: fx.GraphModule, path: Path, x: Tensor, tmp_path: Path
) -> None:
    """No bit and no output shows it: the file is compared with the graph it should hold."""

    def nudge(array: np.ndarray) -> None:
        array[0] = np.nextafter(array[0], np.float32(np.inf))

    used = {name for node in onnx.load(path).graph.node if node.name == "c" for name in node.input}
    wrong = edited(path, tmp_path, lambda name: name in used and name.endswith("_scale"), nudge)
    result = bnnfx.verify(packed, wrong, (x,))
    assert not result and result.faults == {"c": 1} and result.differing_bits == 0


def test_constant_that_only_one_of_two_has_is_a_fault_at_its_node(packed: fx.GraphModule, x: Tensor) -> None:
    whole, lacking = trace_bits(packed, (x,)), trace_bits(packed, (x,))
    name = next(iter(whole.constants))
    removed = lacking.constants[name].pop()
    for pair in ((whole, lacking), (lacking, whole)):
        result = compare(*pair)
        assert not result and result.faults == {name: removed.nbytes}


def test_standard_dialect_is_compared_bit_by_bit(packed: fx.GraphModule, x: Tensor, tmp_path: Path) -> None:
    standard = bnnfx.export_onnx(packed, tmp_path / "standard.onnx", dialect="standard")
    result = bnnfx.verify(packed, standard, (x,))
    assert result and [node.total for node in result.nodes] == [3 * 42 * c for c in (10, 20, 20)]
    (bits,) = [t.name for t in onnx.load(standard).graph.initializer if t.name.endswith("b_weight_bits")]
    assert not bnnfx.verify(packed, edited(standard, tmp_path, lambda name: name == bits, flip_bit), (x,))


def test_outputs_that_are_no_numbers_agree_with_themselves_only() -> None:
    odd = trace([[True, True]], None)
    odd.outputs = [np.array([[np.nan, np.inf]], np.float32)]
    assert compare(odd, odd)
    for value in ([[np.nan, 1.0]], [[np.inf, np.inf]], [[np.nan, -np.inf]]):
        other = trace([[True, True]], None)
        other.outputs = [np.array(value, np.float32)]
        assert not compare(odd, other) and not compare(other, odd)


def trace(bits: list[list[bool]], compared: list[list[float]] | None, error: float = 2 * STEP) -> BitTrace:
    """A hand-made record of two samples at one node."""
    values = None if compared is None else np.array(compared, np.float32)
    errors = None if values is None else np.full_like(values, error)
    outputs = [np.ones((len(bits), 2), np.float32)]
    return BitTrace({"sign": Bits(np.array(bits), values, errors)}, outputs, [np.full_like(outputs[0], error)])


def test_rounding_at_the_threshold_is_tolerated_up_to_the_bound() -> None:
    """Each of the two may be off by two steps."""
    at = trace([[True, True], [True, False]], [[1.0, 0.0], [1.0, -1.0]])
    for margin, explained in ((STEP, True), (4 * STEP, True), (5 * STEP, False), (0.5, False)):
        near = trace([[True, False], [True, False]], [[1.0, -margin], [1.0, -1.0]])
        result = compare(at, near)
        (node,) = result.nodes
        assert bool(result) is explained
        assert (node.differing, node.unexplained) == (1, 0 if explained else 1)
        assert node.margin == pytest.approx(margin / (4 * STEP), rel=1e-6) and result.diverged == 1


def test_integers_are_never_tolerated() -> None:
    a = trace([[True, True]], [[1.0, 0.0]])
    assert not compare(a, trace([[True, False]], None))
    assert not compare(trace([[True, False]], None), trace([[True, True]], None))


def test_a_difference_excuses_none_behind_it() -> None:
    """A tolerated bit in the same sample, then one that integers decide: it was computed from the same inputs."""

    def both(second: bool, value: float) -> BitTrace:
        record = trace([[True, value >= 0]], [[1.0, value]])
        record.bits["later"] = Bits(np.array([[second]]), None)
        return record

    assert compare(both(True, 0.0), both(True, -STEP))
    wrong = compare(both(True, 0.0), both(False, -STEP))
    assert not wrong and [node.unexplained for node in wrong.nodes] == [0, 1]
    assert wrong.objection.startswith("'later' gives 1 of 1 bits otherwise")


def moved_threshold(packed: fx.GraphModule, x: Tensor, by: float) -> fx.GraphModule:
    """The graph with the threshold of its first comparison moved from one of the values compared to `by` above it."""
    name = next(str(n.args[1].target) for n in packed.graph.nodes if n.name == "a_sign")
    values = trace_bits(packed, (x,)).bits["a_sign"].compared
    assert values is not None
    value = values.flat[int(np.abs(values).argmin())]
    moved = copy.deepcopy(packed)
    moved.get_buffer(name).fill_(float(np.nextafter(np.float32(value + by), np.float32(np.inf))) if by >= 0 else value)
    return moved


def test_what_rounding_turns_is_tolerated_and_told_end_to_end(packed: fx.GraphModule, x: Tensor) -> None:
    """A stem value exactly on the threshold, and one unit below it: one bit turns, and many behind it."""

    def result(by: float) -> bnnfx.Verification:
        models = [moved_threshold(packed, x, by) for by in (-1.0, by)]
        a = trace_bits(models[0], (x,))
        b, free = trace_bits(models[1], (x,), given=a), trace_bits(models[1], (x,))
        for record in (a, b):
            record.constants.clear()  # the threshold is moved in place of the stem's values
        return compare(a, b, free)

    turned = result(0.0)
    assert turned, str(turned)
    assert [node.differing for node in turned.nodes] == [1, 0, 0] and turned.differing_bits == 1
    assert turned.moved > 1 and turned.diverged == 1, "with its own bits the network behind it goes another way"
    text = str(turned)
    assert (
        text.startswith("equal: 1 of 6300 bits differ") and f"end to end, {turned.moved} bits differ in 1 of 3" in text
    )
    assert "no output compared end to end" not in text
    wrong = result(1e-3)
    assert not wrong and wrong.first_difference is not None and wrong.first_difference.name == "a_sign"


def test_every_sample_moved_is_said() -> None:
    a = trace([[True], [True]], [[0.0], [0.0]])
    b = trace([[False], [False]], [[-STEP], [-STEP]])
    b.outputs = [np.array([[1.0, 2.0], [1.0, 1.0]], np.float32)]
    result = compare(a, b)
    assert not result and result.objection.startswith("output 0 differs by 1"), "outputs are compared in all samples"
    assert (result.diverged, result.predictions) == (2, (1,))
    assert str(result).count("no output compared end to end") == 1


@pytest.mark.parametrize("side", [0, 1])
def test_a_binarizer_that_one_side_lacks(gm: fx.GraphModule, packed: fx.GraphModule, x: Tensor, side: int) -> None:
    renamed = copy.deepcopy(packed)
    for node in renamed.graph.nodes:
        if node.name in ("b_sign", "c_sign"):
            node.name = f"other_{node.name}"
    models = (gm, renamed) if side else (renamed, gm)
    result = bnnfx.verify(*models, (x,))
    assert not result and set(result.missing) == {"b_sign", "c_sign", "other_b_sign", "other_c_sign"}
    assert "only one of the two has 'b_sign'" in str(result) and "'b_sign'" in result.objection


def test_a_file_that_says_nothing_of_its_bits(packed: fx.GraphModule, path: Path, x: Tensor, tmp_path: Path) -> None:
    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != "bnnfx.packed_maps"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, tmp_path / "m.onnx")
    result = bnnfx.verify(packed, tmp_path / "m.onnx", (x,))
    assert not result and result.missing == ("a_sign", "b_sign", "c_sign")


class Shared(nn.Module):
    """Two layers that binarize one map alike, max-pooling in front of a sign, and equal nodes for the exporter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.c, self.bn, self.last = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.a(x) + self.b(x)
        return self.last(nn.functional.max_pool2d(self.bn(self.c(x)), 2)).mean((2, 3))


def test_bits_that_were_merged_or_pooled_are_not_missing(x: Tensor, tmp_path: Path) -> None:
    gm = bnnfx.convert(Shared(), "xnor", config=Config(keep_float=("first",))).eval()
    packed = bnnfx.lower(gm, (x,))
    names = [set(trace_bits(form, (x,)).bits) for form in (gm, packed)]
    assert names[0] - names[1] == {"b_sign"} and names[1] - names[0] == {"last_sign_unpooled"}
    forms = (gm, packed, bnnfx.export_onnx(packed, tmp_path / "m.onnx"))
    for a in forms:
        for b in forms:
            result = bnnfx.verify(a, b, (x,))
            assert result and not result.missing, str(result)
    assert {"a_sign", "b_sign"} <= {node.name for node in bnnfx.verify(gm, forms[2], (x,)).nodes}


class Stem(nn.Module):
    """A float stem in front of binary layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(8, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.stem(torch.cat([x, x], 1)))).mean((2, 3))


def stem_pair(edit: Callable[[nn.Conv2d], None]) -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    """A packed graph, and another one whose stem adds up in another order, as another runtime does."""
    torch.manual_seed(0)
    model, x = Stem(), torch.randn(4, 4, 24, 24)
    with torch.no_grad():
        edit(model.stem)
    packed = bnnfx.lower(bnnfx.convert(model, "xnor", config=Config(keep_float=("first",))), (x,))
    other = copy.deepcopy(packed)
    order, stem = torch.randperm(8), other.get_submodule("stem")
    assert isinstance(stem, nn.Conv2d)
    stem.weight.data = stem.weight[:, order].clone()
    stem.register_forward_pre_hook(lambda module, args: (args[0][:, order],))
    return packed, other, x


def apart_and_old_bound(packed: fx.GraphModule, other: fx.GraphModule, x: Tensor) -> tuple[np.ndarray, float]:
    """How far the values of the stem are apart, and what their largest magnitude times the number of terms excuses."""
    a, b = (trace_bits(gm, (x,)).bits["a_sign"].compared for gm in (packed, other))
    assert a is not None and b is not None
    return np.abs(a - b), 2.0**-23 * 73 * float(np.abs(a).max())


def test_rounding_of_terms_that_cancel_is_explained() -> None:
    """Weights of 1e3 and more, whose sums are a millionth of them."""

    def cancel(stem: nn.Conv2d) -> None:
        stem.weight[:, 4:] = -stem.weight[:, :4] + torch.randn(6, 4, 3, 3) / 4e6
        stem.weight *= 1e4

    packed, other, x = stem_pair(cancel)
    apart, old = apart_and_old_bound(packed, other, x)
    assert apart.max() > old
    a = trace_bits(packed, (x,))
    b = trace_bits(other, (x,), given=a)
    b.constants.clear()
    result = compare(a, b)
    assert result.nodes[0].differing > 0 and result, str(result)


def test_large_values_elsewhere_explain_nothing() -> None:
    """One channel of a million times the others': a shift of one of those is no rounding."""

    def enlarge(stem: nn.Conv2d) -> None:
        stem.weight[0] *= 1e6

    packed, other, x = stem_pair(enlarge)
    assert bnnfx.verify(packed, other, (x,))
    other.get_submodule("stem").bias.data[3] += 0.01  # type: ignore[union-attr, operator, index]
    apart, old = apart_and_old_bound(packed, other, x)
    assert np.median(apart.reshape(4, 6, -1)[:, 3]) < old
    wrong = bnnfx.verify(packed, other, (x,))
    assert not wrong and wrong.nodes[0].unexplained > 0, str(wrong)


def test_different_models(packed: fx.GraphModule, path: Path, x: Tensor) -> None:
    other = bnnfx.convert(nn.Sequential(nn.Conv2d(3, 4, 3)), "xnor", config=Config(keep_float=()))
    with pytest.raises(ValueError, match="0 binarizers in common"):
        bnnfx.verify(packed, other, (x,))
    wider = bnnfx.convert(Network(width=12), "bireal")
    with pytest.raises(ValueError, match="420 and 504 bits per sample at 'a_sign'"):
        bnnfx.verify(path, wider, (x,))
    with pytest.raises(bnnfx.StageError, match="graphs of bnnfx"):
        bnnfx.verify(packed, Network(), (x,))  # type: ignore[arg-type]
    with pytest.raises(bnnfx.ExampleInputError, match=r"such as \(x,\)"):
        bnnfx.verify(packed, path, x)  # type: ignore[arg-type]


def test_special_inputs(packed: fx.GraphModule, gm: fx.GraphModule, path: Path, x: Tensor) -> None:
    """Zeros of both signs in one sample; an empty batch."""
    special = x.clone()
    special[0] = 0.0
    special[1] = -0.0
    assert bnnfx.verify(packed, path, (special,)) and bnnfx.verify(gm, packed, (special,))
    assert bnnfx.verify(gm, packed, (x[:1],)).samples == 1


# --- inputs and outputs at the edges ---


class Also(nn.Module):
    """Returns something beside the result of a network."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.net, self.make = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)), make

    def forward(self, x: Tensor) -> object:
        return self.make(self.net(x))


@pytest.mark.parametrize("dialect", ["bnnfx", "standard"])
@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (lambda y: (y, None), 1),
        (lambda y: {"loss": None, "y": y, "more": [None, (y.relu(), None)]}, 2),
        (lambda y: [y, y], 2),
    ],
)
def test_what_is_no_tensor_among_outputs(make, outputs, dialect, tmp_path):
    x = torch.randn(2, 3, 9, 9)
    gm = bnnfx.convert(Also(make).eval(), "xnor", example_inputs=(x,))
    packed = bnnfx.lower(gm, (x,))
    path = bnnfx.export_onnx(packed, tmp_path / "m.onnx", dialect=dialect)
    for a, b in ((gm, packed), (gm, path), (path, packed)):
        result = bnnfx.verify(a, b, (x,))
        assert result and len(result.outputs) == outputs
    assert str(gm(x)).count("None") == str(make(torch.zeros(1, 4, 1, 1))).count("None"), "the graph is as it was"


@pytest.mark.parametrize(
    ("inputs", "given"),
    [
        ((torch.zeros(0, 3, 9, 9),), r"\[0, 3, 9, 9\] on cpu"),
        ((torch.zeros(2, 3, 9, 9, device="meta"),), r"\[2, 3, 9, 9\] on meta"),
        ((), "no tensor"),
    ],
)
def test_no_sample_to_compare(inputs, given, tmp_path):
    gm = bnnfx.convert(Also(lambda y: y).eval(), "xnor")
    packed = bnnfx.lower(gm, (torch.zeros(1, 3, 9, 9),))
    path = bnnfx.export_onnx(packed, tmp_path / "m.onnx")
    for a, b in ((gm, packed), (path, path)):
        with pytest.raises(ValueError, match=f"one sample or more, and needs values; got {given}"):
            bnnfx.verify(a, b, inputs)
