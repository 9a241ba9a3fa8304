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
from bnnfx.inspect.bit_trace import Bits, BitTrace, trace_bits
from bnnfx.inspect.verification import compare

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


def trace(bits: list[list[bool]], compared: list[list[float]] | None, terms: int = 4) -> BitTrace:
    """A hand-made record of two samples at one node."""
    values = None if compared is None else np.array(compared, np.float32)
    return BitTrace({"sign": Bits(np.array(bits), values)}, [np.ones((len(bits), 2), np.float32)], terms=terms)


def test_rounding_at_the_threshold_is_tolerated_up_to_the_bound() -> None:
    """Largest value 1, four terms: the bound is 4 * 2**-23."""
    at = trace([[True, True], [True, False]], [[1.0, 0.0], [1.0, -1.0]])
    for margin, explained in ((STEP, True), (4 * STEP, True), (5 * STEP, False), (0.5, False)):
        near = trace([[True, False], [True, False]], [[1.0, -margin], [1.0, -1.0]])
        result = compare(at, near)
        (node,) = result.nodes
        assert bool(result) is explained
        assert (node.differing, node.unexplained) == (1, 0 if explained else 1)
        assert node.margin == pytest.approx(margin, rel=1e-6) and result.diverged == 1


def test_integers_are_never_tolerated() -> None:
    a = trace([[True, True]], [[1.0, 0.0]])
    assert not compare(a, trace([[True, False]], None))
    assert not compare(trace([[True, False]], None), trace([[True, True]], None))


def test_what_follows_from_a_tolerated_bit_is_not_held_against_a_model() -> None:
    def both(first: bool, second: bool, value: float) -> BitTrace:
        record = trace([[True, first], [True, True]], [[1.0, value], [1.0, 1.0]])
        record.bits["later"] = Bits(np.array([[second], [True]]), None)
        record.outputs = [np.array([[1.0, 0.0 if second else 9.0], [1.0, 0.0]], np.float32)]
        return record

    result = compare(both(True, True, 0.0), both(False, False, -STEP))
    assert result and (result.differing_bits, result.diverged) == (2, 1)
    assert result.outputs[0].difference == 0.0 and result.outputs[0].predictions == 1
    # the same later difference in the sample that did not diverge counts
    other = both(False, False, -STEP)
    other.bits["later"].bits[1] = False
    wrong = compare(both(True, True, 0.0), other)
    assert not wrong and [node.unexplained for node in wrong.nodes] == [0, 1]


def test_a_stem_that_rounds_differently(gm: fx.GraphModule, packed: fx.GraphModule, x: Tensor) -> None:
    """A stem value of exactly 0 and one unit below it: one bit turns, which is tolerated; a larger shift is not."""

    def rounded(a: fx.GraphModule, b: fx.GraphModule) -> bnnfx.Verification:
        records = trace_bits(a, (x,)), trace_bits(b, (x,))
        for record in records:
            record.constants.clear()  # the threshold is moved in place of the stem's values
        return compare(*records)

    a, b = copy.deepcopy(packed), copy.deepcopy(packed)
    name = next(n.args[1].target for n in packed.graph.nodes if n.name == "a_sign")
    trace_a = trace_bits(a, (x,))
    values = trace_a.bits["a_sign"].compared
    assert values is not None
    smallest, scale = float(np.abs(values).min()), float(np.abs(values).max())
    value = values.flat[int(np.abs(values).argmin())]
    a.get_buffer(str(name)).fill_(float(value))  # now it lies on the threshold
    b.get_buffer(str(name)).fill_(float(np.nextafter(np.float32(value), np.float32(np.inf))))
    result = rounded(a, b)
    assert smallest < scale and result.nodes[0].differing == 1 and result, str(result)
    b.get_buffer(str(name)).fill_(float(value) + 1e-3 * scale)
    wrong = rounded(a, b)
    assert not wrong and wrong.first_difference is not None and wrong.first_difference.name == "a_sign"


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
