"""What `summary` counts, against torch's own counter of operations, figures by hand, and the files that are written."""

import copy
import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from helpers.models import HAZARDS, IMAGE, Gate, Model, SharedLayer, UntraceableForward, conv3x3
from onnx import TensorProto, helper
from rich.console import Console
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import bnnfx
from bnnfx import Config, ExampleInputError
from bnnfx._torchvision import import_torchvision
from bnnfx.inspect import Cost
from bnnfx.nn import ActivationBinarizer, BinaryConv2d, BinaryLinear, SignActivation
from bnnfx.numerics.surrogates import approx_sign

WRITTEN = ("grouped", "residual downsample", "no batch norm", "tuple of outputs", "shared layer")
"""Those of the models above that are exported, which takes seconds each."""

OPEN_SIZES = 64_000
"""Bytes of a file that a packed graph cannot know: nodes, names and functions."""


def macs_by_torch(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Of one sample; torch counts two operations each, and convolutions and matrix products only."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(*inputs)
    total = counter.get_total_flops()
    assert total and total % (2 * len(inputs[0])) == 0
    return total // (2 * len(inputs[0]))


def with_batch(inputs: tuple[Tensor, ...], batch: int) -> tuple[Tensor, ...]:
    return tuple(x[:1].expand(batch, *x.shape[1:]).contiguous() for x in inputs)


def hazard(name: str) -> Model:
    torch.manual_seed(0)
    return HAZARDS[name]()


def work(cost: Cost) -> tuple[int, int, int, int]:
    """What has to be the same in every form of a model."""
    return cost.one_bit_parameters, cost.binary_macs, cost.float_macs, cost.mean_additions


class Ternary(ActivationBinarizer):
    """Three levels, as a coupled network has them."""

    levels = (0.0, 0.5, 1.0)

    def binarize(self, x: Tensor) -> Tensor:
        return 0.5 * ((x >= 0.25).to(x) + (x >= 0.75).to(x))


class Heaviside(ActivationBinarizer):
    levels = (0.0, 1.0)

    def binarize(self, x: Tensor) -> Tensor:
        return (x >= 0.5).to(x)


def row(summary: bnnfx.Summary, name: str):
    return next(layer for layer in summary.layers if layer.name == name)


@pytest.mark.parametrize("name", HAZARDS)
def test_float_macs_are_those_that_torch_counts(name):
    model = hazard(name)
    total = bnnfx.summary(model, model.inputs()).totals
    assert total.float_macs == macs_by_torch(model, model.inputs())
    assert (total.binary_macs, total.one_bit_parameters, total.flops) == (0, 0, total.float_macs)


@cache
def forms(name: str) -> tuple[nn.Module, fx.GraphModule, fx.GraphModule]:
    """A model in float, trainable and packed."""
    model = hazard(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is kept as a float leaf")
        gm = bnnfx.convert(model, "bireal", example_inputs=model.inputs())
    return model, gm, bnnfx.lower(gm, model.inputs())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a packed model, written once."""
    folder = tmp_path_factory.mktemp("files")

    def write_once(name: str) -> Path:
        path = folder / f"{name}.onnx"
        return path if path.exists() else bnnfx.export_onnx(forms(name)[2], path)

    return write_once


@pytest.mark.parametrize("name", HAZARDS)
def test_packed_and_trainable_graphs_have_the_same_work(name):
    _, gm, packed = forms(name)
    inputs = hazard(name).inputs()
    total = bnnfx.summary(gm, inputs).totals
    assert total.binary_macs + total.float_macs == macs_by_torch(gm, inputs)
    layers = [module for module in gm.modules() if isinstance(module, BinaryConv2d | BinaryLinear)]
    assert total.one_bit_parameters == sum(layer.weight.numel() for layer in layers) > 0
    assert work(bnnfx.summary(packed, inputs).totals) == work(total)  # one of them branches on values


@pytest.mark.parametrize("name", WRITTEN)
def test_files_have_the_same_work_and_all_their_bytes(name, file):
    written = bnnfx.summary(file(name)).totals
    assert work(written) == work(bnnfx.summary(forms(name)[2]).totals)
    assert written.packed_bytes == file(name).stat().st_size


@pytest.mark.parametrize("name", WRITTEN[:2])
def test_files_in_standard_operators_have_the_same_work(name, tmp_path):
    packed = forms(name)[2]
    path = bnnfx.export_onnx(packed, tmp_path / "standard.onnx", dialect="standard")
    written, expected = bnnfx.summary(path).totals, bnnfx.summary(packed).totals
    assert work(written) == work(expected) and written.packed_bytes == path.stat().st_size


@pytest.mark.parametrize("name", HAZARDS)
def test_the_batch_changes_nothing(name, file):
    models = [*forms(name), *([file(name)] if name in WRITTEN else [])]
    for model in models:
        one, three = (bnnfx.summary(model, with_batch(hazard(name).inputs(), batch)) for batch in (1, 3))
        assert one.layers == three.layers and one.totals.flops


@pytest.mark.parametrize("name", ["grouped", "tuple of outputs"])
@pytest.mark.filterwarnings("ignore:A fan-in of")
def test_run_time_means_are_counted_apart(name, tmp_path):
    model = hazard(name)
    gm = bnnfx.convert(model, "rbnn", config=Config(options={"centre": True}))
    inputs = model.inputs()
    seen = []
    hooks = [
        module.register_forward_hook(lambda m, args, output: seen.append(output[0].numel()))
        for module in gm.modules()
        if isinstance(module, ActivationBinarizer)
    ]
    gm.eval()(*inputs)
    for hook in hooks:
        hook.remove()
    total = bnnfx.summary(gm, inputs).totals
    assert total.mean_additions == sum(seen) > 0
    assert total.flops == total.float_macs + total.binary_macs / 64
    packed = bnnfx.lower(gm, inputs)
    dialect = "bnnfx" if name == "grouped" else "standard"
    for form in (packed, bnnfx.export_onnx(packed, tmp_path / "model.onnx", dialect=dialect)):
        assert work(bnnfx.summary(form).totals) == work(total)


@pytest.fixture(scope="module")
def resnet18():
    try:
        torchvision = import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


@pytest.mark.parametrize("scheme", ["xnor", "rbnn"])
def test_packed_bytes_foretell_the_file(resnet18, scheme, tmp_path):
    inputs = (torch.zeros(1, 3, 64, 48),)
    gm = bnnfx.convert(resnet18, scheme, example_inputs=inputs)
    packed = bnnfx.lower(gm, inputs)
    foretold = [bnnfx.summary(form, inputs).totals.packed_bytes for form in (gm, packed)]
    path = bnnfx.export_onnx(packed, tmp_path / "resnet18.onnx")
    size = path.stat().st_size
    assert size > 4_000_000
    for bytes_ in foretold:
        assert abs(bytes_ - size) <= 0.02 * size + OPEN_SIZES
    rows = bnnfx.summary(path).layers
    assert sum(layer.cost.packed_bytes for layer in rows) == size
    assert rows[-1].name == "graph and functions" and rows[-1].cost.packed_bytes < OPEN_SIZES


@pytest.mark.parametrize("name", WRITTEN)
def test_constants_of_the_packed_graph_are_those_of_the_file(name, file):
    """Odd channel counts, linear layers behind a flatten: bytes are foretold but for the few that the exporter adds."""
    rows = bnnfx.summary(file(name)).layers
    constants = sum(layer.cost.packed_bytes for layer in rows if layer.kind not in ("file", "constants"))
    foretold = bnnfx.summary(forms(name)[2]).totals.packed_bytes
    # equal tensors, such as biases of zero, are stored once; a batch norm of a float layer goes into its bias
    assert 0 <= foretold - constants <= 8 * 16 * 8
    assert constants / foretold > 0.75


def test_known_figures(resnet18):
    """Float ResNet-18 as Bi-Real Net's section 4.4 has it: 374.1 Mbit; and its rows as torch's modules are."""
    summary = bnnfx.summary(resnet18, (torch.zeros(1, 3, 224, 224),))
    assert (f"{summary.totals.mbit:.1f}", f"{summary.totals.flops:.2e}") == ("374.1", "1.81e+09")
    assert row(summary, "conv1").cost == Cost(float_parameters=9408, float_macs=118_013_952, packed_bytes=37_632)
    assert row(summary, "conv1").output_shape == (64, 112, 112)
    assert row(summary, "bn1").cost == Cost(batch_norm_channels=64, packed_bytes=512)


def test_rows_of_a_small_network():
    """Grouped, dilated, strided, not square; bits by hand."""
    layers = [
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        SignActivation(approx_sign),
        BinaryConv2d(6, 4, (3, 1), stride=(2, 1), padding=(1, 0), groups=2),
        nn.Conv2d(4, 5, 2, dilation=(1, 2)),
    ]
    summary = bnnfx.summary(nn.Sequential(*layers), (torch.zeros(2, 3, 9, 12),))
    first, norm, binary, last = summary.layers
    assert first.cost == Cost(float_parameters=162, float_macs=162 * 7 * 10, packed_bytes=648)
    assert norm.cost == Cost(batch_norm_channels=6, packed_bytes=48)
    assert (binary.kind, str(binary.operands), binary.output_shape) == ("BinaryConv2d", "1-bit x 1-bit", (4, 4, 10))
    # 4 filters of 3 rows of 8 bytes, and 4 biases
    expected = Cost(one_bit_parameters=36, float_parameters=4, binary_macs=36 * 40, packed_bytes=4 * 3 * 8 + 16)
    assert binary.cost == expected
    assert last.cost == Cost(float_parameters=85, float_macs=80 * 3 * 8, packed_bytes=340)
    total = summary.totals
    assert total.parameter_bits == 36 + 32 * (162 + 4 + 85 + 12)
    assert total.flops == 162 * 70 + 36 * 40 / 64 + 80 * 24


@pytest.mark.parametrize(
    ("binarizer", "layer", "operands"),
    [
        (SignActivation(approx_sign), BinaryConv2d(8, 8, 3), "1-bit x 1-bit"),
        (Heaviside(), BinaryConv2d(8, 8, 3), "1-bit x 1-bit"),
        (Ternary(), BinaryConv2d(8, 8, 3), "1-bit x ternary"),
        (Heaviside(), nn.Conv2d(8, 8, 3), "float x 1-bit"),
        (Ternary(), nn.Conv2d(8, 8, 3), "float x ternary"),
        (nn.ReLU(), nn.Conv2d(8, 8, 3), "float x float"),
        (nn.ReLU(), BinaryConv2d(8, 8, 3), "1-bit x float"),
    ],
    ids=str,
)
@pytest.mark.parametrize("between", [[], [nn.Dropout()], [nn.Identity(), nn.MaxPool2d(2)]], ids=["", "dropout", "pool"])
def test_the_divisor_needs_both_operands_in_one_bit(binarizer, layer, operands, between):
    summary = bnnfx.summary(nn.Sequential(binarizer, *between, layer), (torch.zeros(1, 8, 9, 9),))
    (only,) = [found for found in summary.layers if found.operands is not None]
    macs = only.cost.binary_macs + only.cost.float_macs
    assert str(only.operands) == operands and macs
    assert only.cost.flops == (macs / 64 if operands == "1-bit x 1-bit" else macs)
    assert bool(only.cost.one_bit_parameters) == operands.startswith("1-bit")
    mixed = ("1-bit" in operands) and operands != "1-bit x 1-bit"
    assert any("1 layer with one operand in one bit" in note for note in summary.notes()) == mixed


def test_bits_stay_bits_through_views_and_concatenation():
    class Joined(nn.Module):
        def __init__(self, other):
            super().__init__()
            self.one, self.other = Heaviside(), other
            self.fc = BinaryLinear(2 * 4 * 9, 3)

        def forward(self, x):
            return self.fc(torch.cat([self.one(x), self.other(x)], 1).flatten(1))

    x = (torch.zeros(2, 4, 3, 3),)
    assert str(row(bnnfx.summary(Joined(Heaviside()), x), "fc").operands) == "1-bit x 1-bit"
    assert str(row(bnnfx.summary(Joined(Ternary()), x), "fc").operands) == "1-bit x float"
    assert str(row(bnnfx.summary(Joined(nn.ReLU()), x), "fc").operands) == "1-bit x float"


def test_a_layer_that_is_called_twice_has_its_parameters_once():
    model = SharedLayer()
    for form in (model, bnnfx.convert(model, "bireal")):
        summary = bnnfx.summary(form, model.inputs())
        first, second = (layer.cost for layer in summary.layers if layer.name == "conv")
        assert first.parameter_bits and not second.parameter_bits and not second.packed_bytes
        assert first.flops == second.flops > 0


def test_tied_weights_are_counted_once():
    a, b = nn.Linear(8, 8), nn.Linear(8, 8)
    b.weight = a.weight
    total = bnnfx.summary(nn.Sequential(a, b), (torch.zeros(1, 8),)).totals
    assert (total.float_parameters, total.float_macs) == (64 + 8 + 8, 128)


def test_nothing_with_a_weight():
    summary = bnnfx.summary(nn.Sequential(nn.ReLU(), nn.Flatten()), (torch.zeros(2, 3, 4),))
    assert summary.layers == () and summary.totals == Cost() and "total" in str(summary)


def test_functions_with_parameters_and_other_layers():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters, self.matrix = nn.Parameter(torch.ones(6, 3, 3, 3)), nn.Parameter(torch.ones(6, 5))
            self.up, self.scale = nn.ConvTranspose2d(6, 6, 2, stride=2, groups=2), nn.Parameter(torch.ones(6, 1, 1))
            self.norm, self.act, self.token = nn.LayerNorm(5), nn.PReLU(), nn.Linear(5, 7)
            self.line = nn.Conv1d(7, 2, 3)

        def forward(self, x):
            x = self.up(F.conv2d(x, self.filters)) * self.scale
            x = self.act(self.norm(x.flatten(2).transpose(1, 2) @ self.matrix))
            x = self.line(self.token(x).transpose(1, 2))
            return x @ x.transpose(1, 2)

    model, x = Mixed(), (torch.randn(2, 3, 5, 6),)
    summary = bnnfx.summary(model, x)
    kinds = {layer.name if layer.kind == "matmul" else layer.kind: layer.cost for layer in summary.layers}
    assert kinds["matmul_1"].float_macs == 2 * 46 * 2 and kinds["matmul_1"].float_parameters == 0
    assert kinds["conv2d"].float_macs == 162 * 12 and kinds["conv2d"].float_parameters == 162
    assert kinds["ConvTranspose2d"].float_macs == 6 * 3 * 4 * 12
    assert kinds["matmul"].float_macs == 48 * 30 and kinds["matmul"].float_parameters == 30
    assert kinds["Linear"].float_macs == 48 * 35 and kinds["Conv1d"].float_macs == 42 * 46
    # scale, layer norm, slope
    assert summary.totals.other_parameters == 6 + 10 + 1
    assert summary.totals.float_parameters == 162 + 72 + 6 + 30 + 35 + 7 + 42 + 2


FUNCTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], int]] = {
    "grouped": (lambda x, w: F.conv1d(x, w, groups=2, padding=1), (4, 3, 3), 8 * 4 * 9),
    "transposed": (lambda x, w: F.conv_transpose1d(x, w, stride=2, groups=2), (6, 2, 3), 8 * 6 * 6),
    "linear": (F.linear, (4, 8), 6 * 4 * 8),
    "weight in front": (lambda x, w: w @ x, (4, 6), 4 * 6 * 8),
    "vector": (lambda x, w: x @ w, (8,), 6 * 8),
    "einsum": (lambda x, w: torch.einsum("ncl,oc->nlo", x, w), (4, 6), 8 * 4 * 6),
    "added": (lambda x, w: torch.addmm(x[:, 1, :4], x[:, 0], w), (8, 4), 8 * 4),
    "bilinear": (lambda x, w: F.bilinear(x, x + 1, w), (3, 8, 8), 6 * 3 * (8 * 8 + 8)),
}
"""Of a sequence `[N, 6, 8]` and a weight: the function, the shape of the weight, and what one sample takes."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_macs_of_functions(name):
    class Calls(nn.Module):
        def __init__(self, call, shape):
            super().__init__()
            self.weight, self.call = nn.Parameter(torch.zeros(shape)), call

        def forward(self, x):
            return self.call(x, self.weight)

    call, shape, macs = FUNCTIONS[name]
    (row,) = bnnfx.summary(Calls(call, shape), (torch.randn(2, 6, 8),)).layers
    assert (row.cost.float_macs, row.cost.float_parameters) == (macs, torch.Size(shape).numel())
    assert str(row.operands) == "float x float" and row.input_shape in ((6, 8), (8,))


def test_layers_inside_what_cannot_be_traced():
    model = UntraceableForward()
    for sign in (1.0, -1.0):  # the branch not taken is not counted
        x = (sign * torch.ones(IMAGE),)
        summary = bnnfx.summary(model, x)
        assert [layer.name for layer in summary.layers] == ([] if sign < 0 else ["conv"])
    gate, x = Gate(3), (torch.ones(IMAGE),)
    gate.conv.weight.data.fill_(1.0)
    summary = bnnfx.summary(nn.Sequential(conv3x3(3, 3), nn.ReLU(), gate, nn.ReLU(), gate), x)
    assert [layer.name for layer in summary.layers] == ["0", "2.conv", "2.conv"]
    first, second = (layer.cost for layer in summary.layers[1:])
    assert (first.float_macs, first.float_parameters) == (9 * 64, 12)
    assert second == Cost(float_macs=9 * 64)


def test_the_model_stays_as_it_was():
    model = hazard("untraceable submodule").train()
    model.stem.eval()
    state = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="kept as a float leaf"):
        gm = bnnfx.convert(model, "bireal")
    for form in (model, gm):
        modes = [module.training for module in form.modules()]
        bnnfx.summary(form, model.inputs())
        assert modes == [module.training for module in form.modules()] and len(set(modes)) == 2
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in form.modules())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_models_without_memory():
    """On the device "meta" there are shapes only."""
    with torch.device("meta"):
        model, x = hazard("chain"), torch.zeros(IMAGE)
    gm = bnnfx.convert(model, "rbnn")
    real = bnnfx.convert(hazard("chain"), "rbnn")
    assert bnnfx.summary(gm, (x,)).layers == bnnfx.summary(real, (torch.zeros(IMAGE),)).layers


def test_forms_of_printing():
    model = hazard("chain")
    summary = bnnfx.summary(bnnfx.convert(model, "bireal"), model.inputs())
    described = json.loads(json.dumps(summary.to_dict()))
    assert described["totals"]["flops"] == summary.totals.flops
    assert sum(layer["binary_macs"] for layer in described["layers"]) == summary.totals.binary_macs > 0
    assert [layer["name"] for layer in described["layers"]] == [layer.name for layer in summary.layers]
    table = [line for line in summary.to_markdown().splitlines() if line.startswith("|")]
    assert len(table) == len(summary.layers) + 3 and len({line.count("|") for line in table}) == 1
    assert f"| {summary.totals.binary_macs:,} |" in table[-1]
    text = str(summary)
    assert "GraphModule" not in text and "Chain (trainable, bireal)" in text and "binary MACs / 64" in text
    for width in (80, 250):
        with (console := Console(width=width)).capture() as capture:
            console.print(summary)
        assert "conv1" in capture.get()


def test_errors(tmp_path, chain_files):
    model = hazard("chain")
    with pytest.raises(ExampleInputError, match="summary needs example_inputs"):
        bnnfx.summary(model)
    with pytest.raises(ExampleInputError, match=r"such as \(x,\)"):
        bnnfx.summary(model, torch.zeros(IMAGE))
    with pytest.raises(ExampleInputError, match=r"'stem' .* cannot take x"):
        bnnfx.summary(model, (torch.zeros(1, 4, 8, 8),))
    with pytest.raises(ExampleInputError, match="batch of the example inputs is empty"):
        bnnfx.summary(model, (torch.zeros(0, 3, 8, 8),))
    with pytest.raises(TypeError, match="got a int"):
        bnnfx.summary(3)
    with pytest.raises(bnnfx.ModelFileError, match="There is no file"):
        bnnfx.summary(tmp_path / "none.onnx")
    with pytest.raises(ExampleInputError, match=r"takes 1 input\(s\)"):
        bnnfx.summary(chain_files / "chain.onnx", (torch.zeros(IMAGE), torch.zeros(IMAGE)))
    with pytest.raises(ExampleInputError, match=r"is \?x3x8x8, at least one sample; got 2x3x9x9"):
        bnnfx.summary(chain_files / "chain.onnx", (torch.zeros(2, 3, 9, 9),))


def test_files_of_others(chain_files):
    """A float file, whose batch norms torch folds away; with and without inputs."""
    model = hazard("chain")
    path = chain_files / "original.onnx"
    summary, expected = bnnfx.summary(path), bnnfx.summary(model, model.inputs()).totals
    assert summary.totals.float_macs == expected.float_macs
    assert summary.totals.binary_macs == summary.totals.other_parameters == 0
    assert summary.totals.packed_bytes == path.stat().st_size
    assert bnnfx.summary(path, with_batch(model.inputs(), 5)).layers == summary.layers


def write(path, nodes, inputs, output, constants):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * 4)],
        [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_products_and_sums_in_a_file(tmp_path):
    """A linear layer as ONNX spells it, a transposed convolution, a weight that two nodes read, a weight computed."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="[red]product"),
        helper.make_node("Add", ["bias", "a"], ["b"], name="sum"),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Identity", ["v"], ["v2"]),
        helper.make_node("Gemm", ["d", "v2"], ["e"], transB=1),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Reshape", ["e", "sizes"], ["f"]),
        helper.make_node("ConvTranspose", ["f", "u"], ["g"], strides=[2, 2], group=2),
        helper.make_node("MatMul", ["g", "g"], ["y"]),
    ]
    nodes[4], nodes[5] = nodes[5], nodes[4]
    constants = {
        "w": torch.ones(4, 4),
        "bias": torch.ones(4),
        "v": torch.ones(36, 12),
        "sizes": torch.tensor([0, 4, 3, 3]),
        "u": torch.ones(4, 1, 2, 2),
    }
    path = write(tmp_path / "a.onnx", nodes, {"x": ["n", 3, 4]}, "y", constants)
    summary = bnnfx.summary(path)
    macs = [layer.cost.float_macs for layer in summary.layers if layer.operands]
    assert macs == [48, 48, 432, 16 * 9]
    assert summary.totals.float_parameters == 16 + 4 + 432 + 16
    assert summary.totals.other_parameters == 0 and summary.totals.packed_bytes == path.stat().st_size
    assert summary.layers[0].name == "[red]product"
    with (console := Console(width=200)).capture() as capture:
        console.print(summary)
    assert "[red]product" in capture.get()


def test_a_file_with_open_sizes_needs_inputs(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    path = write(tmp_path / "a.onnx", nodes, {"x": ["n", 3, "h", 5]}, "y", {"w": torch.ones(2, 3, 3, 3)})
    with pytest.raises(ExampleInputError, match=r"leaves sizes of input x \(\?x3x\?x5\) open; give example_inputs"):
        bnnfx.summary(path)
    assert bnnfx.summary(path, (torch.zeros(2, 3, 4, 5),)).totals.float_macs == 54 * 2 * 3
