"""A fault in any single pass, or in a step of the export, ends in an error of ours: the checks by value see it.

The passes are those of `bnnfx.pipelines`; for each there is a list of faults, or the reason why none can be seen.
"""

import importlib
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest
import torch
from helpers.refusals import SamePadded
from helpers.ternary import networks, trainable
from helpers.tokens import ByHand, Mixed
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnnfx
from bnnfx import Config, ConversionError, ExportError
from bnnfx.graph.dataflow import calls, packed_op
from bnnfx.graph.pass_runner import watch_passes
from bnnfx.graph.record import PassReport, Record
from bnnfx.graph.stage import Stage
from bnnfx.nn import HeavisideActivation
from bnnfx.nn.comparison import compare
from bnnfx.nn.frozen_norm import frozen_batch_norm
from bnnfx.nn.halves import shift_halves
from bnnfx.passes.convert.call_layers_by_module import CallLayersByModule
from bnnfx.passes.convert.canonicalize_calls import CanonicalizeCalls
from bnnfx.passes.convert.functionalize_inplace import FunctionalizeInplace
from bnnfx.passes.convert.read_subclasses_as_layers import ReadSubclassesAsLayers
from bnnfx.passes.lower.compare_for_float_layers import CompareForFloatLayers
from bnnfx.passes.lower.drop_inference_identities import DropInferenceIdentities
from bnnfx.passes.lower.fold_batchnorm_to_affine import FoldBatchNormToAffine
from bnnfx.passes.lower.fold_constants import FoldConstants
from bnnfx.passes.lower.fold_epilogue_to_threshold import FoldEpilogueToThreshold
from bnnfx.passes.lower.freeze_batchnorm import FreezeBatchNorm
from bnnfx.passes.lower.fuse_epilogue_into_convolution import FuseEpilogueIntoConvolution
from bnnfx.passes.lower.fuse_replication_into_convolution import FuseReplicationIntoConvolution
from bnnfx.passes.lower.keep_channels_last import KeepChannelsLast
from bnnfx.passes.lower.move_maxpool_behind_pack import MoveMaxPoolBehindPack
from bnnfx.passes.lower.pack_layers import PackLayers
from bnnfx.passes.lower.read_sequences_as_maps import ReadSequencesAsMaps
from bnnfx.passes.lower.settle_mode import SettleMode
from bnnfx.passes.lower.settle_sizes import SettleSizes
from bnnfx.passes.split.move_shift_upstream import MoveShiftUpstream
from bnnfx.passes.split.replicate_before_batchnorm import ReplicateBeforeBatchNorm
from bnnfx.passes.split.split_activations import SplitActivations
from bnnfx.pipelines import CONVERT, LOWER, SPLIT, AnyPass
from bnnfx.verification import checks
from bnnfx.verification.bit_trace import trace_graph


def x() -> Tensor:
    return torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Something for every pass of `lower` but those for ternary activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0, self.tanh = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardtanh()
        self.a, self.pool, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(8)
        self.b, self.bn2, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(8)
        self.c, self.bn3 = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.shortcut, self.bn4 = nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12)
        self.d, self.dropout, self.head = nn.Conv2d(12, 12, 3, padding=1), nn.Dropout(), nn.Linear(12, 5)
        self.gain, self.spread = nn.Parameter(torch.randn(12, 1, 1)), nn.Parameter(torch.rand(12, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tanh(self.bn0(self.stem(x)))
        x = self.bn1(self.pool(self.a(x)))
        x = self.act(self.bn2(self.b(x)))
        x = self.bn3(self.c(x)) + self.bn4(self.shortcut(x))
        y = self.d(x) * (self.gain * (self.spread + 0.1).rsqrt()) + x
        return self.head(self.dropout(y.mean((2, 3))))


def network() -> fx.GraphModule:
    """Trained for a step, so to say: every channel has bits of both signs, and batch norms have gammas of both."""
    torch.manual_seed(0)
    gm = bnnfx.convert(Network(), "bireal", config=Config(keep_float=("first", "last", "downsample")))
    gm.get_submodule("act").weight.data.uniform_(0.1, 0.9)  # type: ignore[union-attr, operator]
    return settled(gm)


def settled(gm: fx.GraphModule) -> fx.GraphModule:
    for module in gm.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.copy_(torch.tensor([1.0, -0.5, 2.0, -1.5]).repeat(module.num_features // 4))
            module.bias.data.normal_(0, 0.1)
            module.momentum = 1.0
    with torch.no_grad():
        gm.train()(x())
    return gm.eval()


def by_hand() -> nn.Module:
    """A linear layer that calls torch's function."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), ByHand(576, 8), nn.Linear(8, 8), nn.Linear(8, 4))


def subclass() -> nn.Module:
    """A convolution that pads as TensorFlow does."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), SamePadded(8, 8, 3, stride=2), nn.Conv2d(8, 8, 1))


def tokens() -> fx.GraphModule:
    """Linear layers on `[N, T, C]`, trained for a step."""
    torch.manual_seed(0)
    pixels = nn.Sequential(nn.Flatten(2), nn.Linear(192, 8))  # of each channel
    model = nn.Sequential(pixels, Mixed(8, 16, nn.LayerNorm, nn.Softshrink(0.1)))
    gm = bnnfx.convert(model, "bireal", config=Config(keep_float=("first",), adapt=()))
    with torch.no_grad():
        gm(x())
    return gm.eval()


class Ternary(nn.Module):
    """A network of which `split` makes one with copies of maps, and a float layer on bits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.a, self.bn1 = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.b(self.bn1(self.a(self.bn(self.stem(x))))))
        return self.head(self.c(x).mean((2, 3)))


def ternary() -> fx.GraphModule:
    torch.manual_seed(0)
    return bnnfx.convert(Ternary(), "binaryduo", config=Config(keep_float=("first", "last"))).eval()


def residual_ternary() -> fx.GraphModule:
    """Two layers read one activation, and one of them adds to the stream of the other."""
    torch.manual_seed(0)
    return settled(trainable(networks()["two layers, one activation"](), 0).float())


def halves() -> fx.GraphModule:
    return bnnfx.split(ternary())


def float_on_bits() -> fx.GraphModule:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), HeavisideActivation(), nn.Conv2d(4, 4, 1))
    return bnnfx.convert(nn.Sequential(*layers), "xnor", config=Config(keep_float=("first", "last"))).eval()


class Inplace(nn.Module):
    """A stem that writes in place and spells its functions in several ways, in the forward of the whole model."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(x), 0.2, inplace=True)
        x.add_(0.25)
        return F.max_pool2d(self.b(self.a(x)), 2, stride=1).flatten(1)


def inplace() -> nn.Module:
    torch.manual_seed(0)
    return Inplace().eval()


class Functional(nn.Module):
    """A batch norm that is called as a function, in either mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.batch_norm(self.a(x), self.mean, self.var, training=self.training)).mean((2, 3))


def by_mode() -> fx.GraphModule:
    torch.manual_seed(0)
    return bnnfx.convert(Functional(), "xnor", config=Config(keep_float=())).eval()


class Resized(nn.Module):
    """A slice and a window of a map, by its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.narrow(x, 2, x.shape[2] // 4, x.shape[2] // 2)).mean((2, 3))


def resized() -> fx.GraphModule:
    torch.manual_seed(0)
    return bnnfx.convert(Resized(), "xnor", config=Config(keep_float=())).eval()


Fault = Callable[[fx.GraphModule], object]
"""Edits the graph that a pass left; gives nothing, false, where it found nothing to edit."""


def constant(name: str, change: Callable[[Tensor], Tensor], where: Callable[[str], bool] = lambda n: True) -> Fault:
    """Change the first constant whose name ends so."""

    def fault(gm: fx.GraphModule) -> object:
        read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
        for found, value in (*gm.named_buffers(), *gm.named_parameters()):
            if found in read and found.rstrip("_0123456789").endswith(name) and where(found):
                value.data.copy_(change(value.data.clone()))
                return True
        return False

    return fault


def parameter(name: str, change: Callable[[Tensor], Tensor]) -> Fault:
    """Change a parameter of a module."""

    def fault(gm: fx.GraphModule) -> object:
        value = gm.get_parameter(name)
        value.data.copy_(change(value.data.clone()))
        return True

    return fault


def argument(applies: Callable[[fx.Node], bool], index: int, change: Callable[[Any], Any]) -> Fault:
    """Change an argument of the first node that is one of these."""

    def fault(gm: fx.GraphModule) -> object:
        for node in gm.graph.nodes:
            if applies(node):
                node.update_arg(index, change(node.args[index]))
                return True
        return False

    return fault


def skip(applies: Callable[[fx.Node], bool]) -> Fault:
    """Let the readers of a node read its first input."""

    def fault(gm: fx.GraphModule) -> object:
        for node in gm.graph.nodes:
            if applies(node):
                node.replace_all_uses_with(node.all_input_nodes[0])
                gm.graph.erase_node(node)
                return True
        return False

    return fault


def keyword(applies: Callable[[fx.Node], bool], name: str, value: object) -> Fault:
    """Give the first node that is one of these another keyword argument."""

    def fault(gm: fx.GraphModule) -> object:
        for node in gm.graph.nodes:
            if applies(node) and node.kwargs.get(name) != value:
                node.update_kwarg(name, value)
                return True
        return False

    return fault


def setting(kind: type[nn.Module], name: str, value: object) -> Fault:
    """Give the modules of a type another setting."""

    def fault(gm: fx.GraphModule) -> object:
        found = [module for module in gm.modules() if type(module) is kind]
        for module in found:
            setattr(module, name, value)
        return found

    return fault


def is_module(name: str) -> Callable[[fx.Node], bool]:
    return lambda node: node.op == "call_module" and node.target == name


def is_convolution(node: fx.Node) -> bool:
    op = packed_op(node)
    return op is not None and "weight" in op.tensors


def attribute(name: str, change: Callable[[Any], Any]) -> Fault:
    """Change an attribute of the first packed operator that has it."""

    def fault(gm: fx.GraphModule) -> object:
        for node in gm.graph.nodes:
            op = packed_op(node)
            if op is not None and name in op.attributes:
                index = op.inputs + op.attributes.index(name)
                node.update_arg(index, change(node.args[index]))
                return True
        return False

    return fault


def flip_first_byte(value: Tensor) -> Tensor:
    value.view(-1)[0] ^= 0x0F
    return value


def one_more(value: Tensor) -> Tensor:
    return value + 1


def a_little_more(value: Tensor) -> Tensor:
    return value * 1.01


@dataclass(frozen=True)
class Faults:
    """What may go wrong in one pass.

    Attributes:
        model: a trainable graph, or for passes of `convert` a model, that the pass rewrites.
        faults: by what they are.
    """

    model: Callable[[], Any]
    faults: dict[str, Fault]


CHANGES = "it changes by design what the network computes"

TABLE: dict[str, Faults | str] = {
    FunctionalizeInplace.__name__: Faults(
        inplace,
        {
            "a twin with another slope": keyword(lambda n: calls(n, F.leaky_relu), "negative_slope", 0.25),
            "a write is lost": skip(lambda n: n.target in (torch.add, "add")),
        },
    ),
    CallLayersByModule.__name__: Faults(
        by_hand,
        {"another weight": lambda gm: [gm.get_submodule("1").weight.data.mul_(1.5)]},  # type: ignore[union-attr, operator]
    ),
    ReadSubclassesAsLayers.__name__: Faults(
        subclass,
        {
            "another side": argument(lambda n: calls(n, F.pad), 1, lambda pads: pads[::-1]),
            "another window": setting(nn.Conv2d, "dilation", (1, 2)),
        },
    ),
    CanonicalizeCalls.__name__: Faults(
        inplace,
        {
            "another stride": setting(nn.MaxPool2d, "stride", 2),
            "another sign": setting(nn.LeakyReLU, "negative_slope", -0.2),
        },
    ),
    "SelectLayers": "it decides and rewrites nothing",
    "SkipActivations": CHANGES,
    "InsertBatchNorm": CHANGES,
    "NormalizeGated": CHANGES,
    "AddShortcutPerConvolution": CHANGES,
    "ReplaceRelu": CHANGES,
    "CoupleWidths": CHANGES,
    "PadInFront": CHANGES,
    "BinarizeLayers": CHANGES,
    SplitActivations.__name__: Faults(
        residual_ternary,
        {
            "no shift": skip(lambda n: calls(n, shift_halves)),
            "a half of a weight": parameter("c.weight", lambda weight: torch.cat([weight[:, :4], -weight[:, 4:]], 1)),
        },
    ),
    MoveShiftUpstream.__name__: Faults(
        residual_ternary,
        {
            "no shift": parameter("na.bias", lambda beta: torch.cat([beta[4:], beta[4:]])),
            "the scale of one copy": parameter("na.weight", lambda gamma: torch.cat([gamma[:4], gamma[4:] * 1.5])),
        },
    ),
    ReplicateBeforeBatchNorm.__name__: Faults(
        residual_ternary,
        {
            "a shift": parameter("nb.bias", lambda beta: beta + 0.25),
            "the scale of one copy": parameter("nb.weight", lambda gamma: torch.cat([gamma[:4], gamma[4:] * 1.5])),
        },
    ),
    SettleMode.__name__: Faults(
        by_mode, {"the arguments of training": keyword(lambda n: calls(n, F.batch_norm), "training", True)}
    ),
    SettleSizes.__name__: Faults(
        resized,
        {"another start": argument(lambda n: calls(n, torch.narrow), 2, lambda start: start + 1)},
    ),
    DropInferenceIdentities.__name__: Faults(
        network,
        {"an activation is dropped": skip(is_module("act")), "a batch norm is dropped": skip(is_module("bn3"))},
    ),
    FoldConstants.__name__: Faults(
        network,
        {
            "a constant": constant("_constant", a_little_more),
            "a sign": constant("_constant", lambda value: -value),
        },
    ),
    FreezeBatchNorm.__name__: Faults(
        network,
        {
            "epsilon": argument(lambda n: calls(n, frozen_batch_norm), 5, lambda eps: eps + 0.1),
            "the variance is the mean": lambda gm: [
                n.update_arg(1, n.args[2]) for n in gm.graph.nodes if calls(n, frozen_batch_norm)
            ],
            "no beta": argument(lambda n: calls(n, frozen_batch_norm), 4, lambda beta: None),
        },
    ),
    CompareForFloatLayers.__name__: Faults(
        float_on_bits,
        {
            "the upper level": argument(lambda n: calls(n, compare), 3, lambda high: high + 0.5),
            "the threshold": constant("_threshold", lambda value: value + 0.3),
        },
    ),
    PackLayers.__name__: Faults(
        network,
        {
            "a weight bit": constant("_weight_bits", lambda bits: bits ^ 1),
            "a scale": constant("c_scale", a_little_more),
            "a bias": constant("c_bias", lambda value: value + 0.01),
            "a threshold": constant("_sign_threshold", lambda value: value + 0.1),
            "an axis": attribute("pads", lambda pair: [0, 2]),
        },
    ),
    ReadSequencesAsMaps.__name__: Faults(
        tokens,
        {
            "a scale per channel": constant("_per_channel", a_little_more),
            "a batch norm is dropped": skip(lambda n: calls(n, frozen_batch_norm)),
            "an activation is dropped": skip(is_module("1.act")),
        },
    ),
    FuseReplicationIntoConvolution.__name__: Faults(
        halves,
        {
            "the scale of one copy": constant("a_scale", lambda scale: torch.cat([scale[:6] * 1.5, scale[6:]])),
            "the bias of one copy": constant("b_bias", lambda bias: torch.cat([bias[:6], bias[6:] + 0.5])),
        },
    ),
    MoveMaxPoolBehindPack.__name__: Faults(
        network,
        {
            "AND for OR": constant("_and_mask", lambda value: value ^ 0xFF),
            "an axis": attribute("kernel_shape", lambda pair: [2, 1]),
        },
    ),
    FoldEpilogueToThreshold.__name__: Faults(
        network,
        {
            "off by two": constant("a_threshold", lambda value: value + 2),
            "the other way": constant("_flip", flip_first_byte),
        },
    ),
    FoldBatchNormToAffine.__name__: Faults(
        network,
        {
            "a scale": constant("bn3_scale", a_little_more),
            "a bias": constant("bn3_bias", lambda value: value + 0.01),
        },
    ),
    FuseEpilogueIntoConvolution.__name__: Faults(
        network,
        {
            "a slope": constant("_slope", a_little_more),
            "a threshold": constant("c_sign_threshold", lambda value: value + 0.1),
            "another scale": constant("bn3_scale", a_little_more),
        },
    ),
    KeepChannelsLast.__name__: Faults(
        network,
        {
            "a matrix": constant("_weight_folded", a_little_more),
            "the bias that moved": constant("c_bias", lambda value: value + 0.01),
            "the axes of a mean": argument(
                lambda n: (n.op == "call_method" and n.target == "mean") or calls(n, torch.mean), 1, lambda axes: [3]
            ),
            "the pixels of a stride": argument(
                lambda n: calls(n, operator.getitem) and isinstance(n.args[1], tuple),
                1,
                lambda slices: (slices[0], slice(1, None, 2), slices[2]),
            ),
        },
    ),
}


ALL: tuple[AnyPass, ...] = (*CONVERT, *SPLIT, *LOWER)
CASES = [(name, fault) for name, faults in TABLE.items() if isinstance(faults, Faults) for fault in faults.faults]


def test_every_pass_is_in_the_table() -> None:
    """By introspection of the pipelines: a new pass has its faults here, or the reason why they cannot be seen."""
    assert list(TABLE) == [kind.__name__ for kind in ALL]
    assert len([name for name, faults in TABLE.items() if isinstance(faults, Faults)]) + len(STEPS) >= 15
    assert all(isinstance(TABLE[kind.__name__], Faults) for kind in (*SPLIT, *LOWER))


@contextmanager
def faulty(name: str, fault: Fault) -> Iterator[list[str]]:
    """A fault in the graph that a pass leaves; the code of the graphs before and behind it is kept."""
    applied: list[str] = []

    def edit(report: PassReport, gm: fx.GraphModule) -> None:
        if report.name == name:
            assert report.applied, f"{name} rewrites nothing here"
            before = {key: value.clone() for key, value in gm.state_dict().items()}, gm.code, str(gm)
            assert fault(gm), f"nothing to edit behind {name}"
            gm.graph.lint()
            gm.recompile()
            after = gm.state_dict(), gm.code, str(gm)
            same = all(torch.equal(value, after[0][key]) for key, value in before[0].items())
            assert not same or before[1:] != after[1:], "the fault changes nothing"
            applied.append(name)

    with watch_passes(edit):
        yield applied


@pytest.mark.parametrize(("name", "fault"), CASES, ids=[f"{name}: {fault}" for name, fault in CASES])
def test_fault_in_a_pass(name: str, fault: str) -> None:
    faults = TABLE[name]
    assert isinstance(faults, Faults)
    model = faults.model()

    def run() -> object:
        if any(kind.__name__ == name for kind in LOWER):
            return bnnfx.lower(model, (x(),))
        if any(kind.__name__ == name for kind in SPLIT):
            return bnnfx.split(model, (x(),))
        return bnnfx.convert(model, "xnor", example_inputs=(x(),))

    run()  # as it is, all is well
    with faulty(name, faults.faults[fault]) as applied, pytest.raises(ConversionError) as error:
        run()
    assert applied
    assert "check=False" in str(error.value)


def test_without_the_check_a_faulty_graph_comes_out() -> None:
    faults = TABLE["PackLayers"]
    assert isinstance(faults, Faults)
    model = faults.model()
    with faulty("PackLayers", faults.faults["a bias"]) as applied:
        packed = bnnfx.lower(model, (x(),), check=False)
    assert applied and not bnnfx.verify(model, packed, (x(),))


# --- the export ---


def nudge(array: np.ndarray) -> np.ndarray:
    return array * np.asarray(1.01, array.dtype) if array.dtype.kind == "f" else array


def edit_initializer(model: ir.Model, part: str, change: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Change the first constant of a file that has this in its name."""
    for value in model.graph.initializers.values():
        assert value.name is not None and value.const_value is not None
        if part in value.name:
            value.const_value = ir.tensor(change(value.const_value.numpy().copy()), name=value.name)
            return True
    return False


def behind(edit: Callable[[Any], bool]) -> Callable[[Any], Any]:
    """A step of the export with a fault in the model that it gives, or was given and has edited."""

    def wrap(step: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any) -> Any:
            result = step(*arguments)
            APPLIED.append(edit(arguments[0] if result is None else result))
            return result

        return faulty

    return wrap


APPLIED: list[bool] = []


def start_later(model: ir.Model) -> bool:
    """Each second pixel, but the others: the size stays."""
    return edit_initializer(model, "_starts", lambda starts: np.full_like(starts, 1))


def edit_function(functions: list[onnx.FunctionProto]) -> bool:
    """A comparison the other way round, where there is one."""
    nodes = [node for function in functions for node in function.node if node.op_type == "GreaterOrEqual"]
    for node in nodes:
        node.op_type = "Less"
    return bool(nodes)


def edit_proto(model: onnx.ModelProto) -> bool:
    tensor = next(t for t in model.graph.initializer if t.name.endswith("head.bias"))
    array = onnx.numpy_helper.to_array(tensor) + np.float32(0.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return True


def lose_a_map(maps: list[Any]) -> bool:
    maps.pop()
    return True


def other_padding(attributes: dict[str, Any]) -> bool:
    found = "pads" in attributes
    if found:
        attributes["pads"] = [attributes["pads"][0], *[0] * 3]
    return found


ONNX_FILE = "bnnfx.backends.onnx.onnx_file"
STEPS: dict[str, tuple[str, str, Callable[[Any], bool]]] = {
    "the exporter's constants": ("bnnfx", f"{ONNX_FILE}._export", lambda m: edit_initializer(m, "head.weight", nudge)),
    "the weights of a kernel": (
        "bnnfx",
        f"{ONNX_FILE}._name_as_packed_graph",
        lambda m: edit_initializer(m, "b_weight_bits", lambda bits: bits ^ np.uint8(1)),
    ),
    "merged slices": ("bnnfx", f"{ONNX_FILE}._merge_slices", start_later),
    "the functions": ("bnnfx", f"{ONNX_FILE}.function_protos", edit_function),
    "attributes": ("bnnfx", "bnnfx.backends.onnx.symbolic.to_onnx", other_padding),
    "the list of packed maps": ("bnnfx", "bnnfx.backends.onnx.packed_maps.packed_maps_of", lose_a_map),
    "inlined functions": ("standard", f"{ONNX_FILE}.with_standard_operators", edit_proto),
}
"""Steps of the export: the dialect, the function that takes the step, and a fault in what it gives."""


@pytest.mark.parametrize("step", STEPS)
def test_fault_in_the_export(step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dialect, function, edit = STEPS[step]
    packed = bnnfx.lower(network(), (x(),), check=False)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    module, _, name = function.rpartition(".")
    APPLIED.clear()
    monkeypatch.setattr(function, behind(edit)(getattr(importlib.import_module(module), name)))
    with pytest.raises(ExportError, match="check=False"):
        bnnfx.export_onnx(packed, path, dialect=dialect)
    assert any(APPLIED)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"] and path.read_bytes() == b"before"
    bnnfx.export_onnx(packed, path, dialect=dialect, check=False)
    assert path.read_bytes() != b"before"


def test_runtime_that_cannot_run_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As one that is too old for the opset."""

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("opset 99 is under development")

    packed = bnnfx.lower(network(), (x(),))
    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(ExportError, match="ONNX Runtime cannot run the file: opset 99 is under development"):
        bnnfx.export_onnx(packed, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    bnnfx.export_onnx(packed, tmp_path / "m.onnx", check=False)


def test_only_the_first_samples_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(checks, "trace_graph", lambda *a, **k: sizes.append(len(a[1][0])) or trace_graph(*a, **k))
    bnnfx.lower(network(), (x().repeat(5, 1, 1, 1),))
    assert sizes == [2, 2]


def test_examples_without_values_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "trace_graph", lambda *a, **k: pytest.fail("there is nothing to compare"))
    bnnfx.lower(network(), (x().to("meta"),))


def test_large_inputs_are_tried_with_one_sample() -> None:
    for side, samples in ((100, 2), (1000, 1)):
        record = Record(Stage.PACKED, inputs=((torch.Size((7, 3, side, side)), torch.float32),))
        assert [tuple(given.shape) for given in checks._random(record)] == [(samples, 3, side, side)]
