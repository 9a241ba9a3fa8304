"""explain: the true reason for every refusal there is, and the edit that it offers works."""

import ast
import copy
import inspect
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Chain, Model, Residual, SharedLayer, conv3x3
from helpers.plugins import install
from helpers.refusals import ALL, CASES, STOPPING, Case, One
from torch import Tensor, nn
from torch.nn import functional as F

import bnnfx
from bnnfx import Config, ConversionError, LayerConfig
from bnnfx.frontend import trace
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal, Remark
from bnnfx.passes.convert.binarize_layers import BinarizeLayers
from bnnfx.passes.convert.call_layers_by_module import CallLayersByModule
from bnnfx.passes.convert.read_subclasses_as_layers import ReadSubclassesAsLayers
from bnnfx.passes.convert.select_layers import SelectLayers
from bnnfx.passes.lower.fold_batchnorm_to_affine import FoldBatchNormToAffine
from bnnfx.passes.lower.fuse_epilogue_into_convolution import FuseEpilogueIntoConvolution
from bnnfx.schemes import get_scheme, schemes

DECIDING = (CallLayersByModule, ReadSubclassesAsLayers, SelectLayers, BinarizeLayers)


@pytest.mark.parametrize("name", CASES)
def test_reason(name: str) -> None:
    case = CASES[name]
    explanation = case.explain()
    found = case.findings(explanation)
    assert len(found) >= 1, str(explanation)
    assert {bool(finding.remedy) for finding in found} == {case.edited is not None}
    if case.layer:
        layer = explanation[case.layer]
        decides = found[0].by in {pass_.__name__ for pass_ in DECIDING}
        assert layer.binarized is not (decides and found[0].subject == case.layer)
        if found[0].by in (FoldBatchNormToAffine.__name__, FuseEpilogueIntoConvolution.__name__):
            assert layer.fused is False


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.edited is not None])
def test_remedy(name: str) -> None:
    """With the edit, nothing is said any more: the layer is binary; if lowered, packed, fused and run by a kernel."""
    case = CASES[name]
    (remedy, *_) = (finding.remedy for finding in case.findings(case.explain()))
    edited = edit(case, remedy)
    explanation = edited.explain()
    assert edited.findings(explanation) == [], str(explanation)
    if case.layer:
        layer = explanation[edited.layer]
        assert layer.binarized
        assert [finding for finding in layer.findings if finding.by == SelectLayers.__name__] == []
        if case.lower:
            assert (layer.packed, layer.fused, layer.kernel) == (True, True, True), str(explanation)


@pytest.mark.parametrize("name", STOPPING)
def test_what_stops_says_why_and_what_helps(name: str) -> None:
    case = STOPPING[name]
    with pytest.raises(ConversionError) as caught:
        case.explain()
    (said,) = str(caught.value).split("'", 1)[1:]
    reason, _, remedy = said.partition("; ")
    assert case.reason in reason and case.layer.replace(".0", "") in reason and len(remedy) > 10
    assert case.edited is not None
    replace(case, **case.edited).explain()


def edit(case: Case, remedy: str) -> Case:
    """The case with its remedy applied; where the remedy itself is an argument of convert, that one."""
    changes: dict[str, Any] = dict(case.edited or {})
    if changes.get("config") == "remedy":
        changes["config"] = eval(remedy.partition(", or ")[0], {"Config": Config, "LayerConfig": LayerConfig})
    if changes.get("scheme") == "remedy":
        changes["scheme"] = remedy.split("'")[1]
    return replace(case, **changes)


# --- the set is complete ---


def sites() -> set[tuple[str, int]]:
    """File and line of everything in the compiler that makes a refusal, or a note that is none."""
    files = [path for folder in bnnfx.passes.__path__ for path in Path(folder).glob("*/*.py")]
    files += Path(bnnfx.nn.__file__).parent.glob("*.py")  # what layers and binarizers refuse
    found = {(path.name, node.lineno) for path in files for node in made(path, "Refusal", "note")}
    return found | {("trace.py", node.lineno) for node in made(Path(trace.__file__), "Remark")}


def made(path: Path, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", None)
            if name in names:
                yield node


def test_every_refusal_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[str, int]] = set()

    def watched(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **named: Any) -> None:
            frame = sys._getframe(1)
            seen.add((Path(frame.f_code.co_filename).name, frame.f_lineno))
            function(*arguments, **named)

        return call

    monkeypatch.setattr(Refusal, "__init__", watched(Refusal.__init__))
    monkeypatch.setattr(Remark, "__init__", watched(Remark.__init__))
    monkeypatch.setattr(Pass, "note", watched(Pass.note))
    for case in CASES.values():
        case.explain()
    for case in STOPPING.values():
        with pytest.raises(ConversionError):
            case.explain()
    assert len(sites()) > 30
    assert sites() - seen == set(), "no case in refusals.py meets what is refused there"


def test_every_refusal_of_a_scheme_has_a_case() -> None:
    default = bnnfx.Scheme.__dataclass_fields__["refuses"].default
    reasons = {
        (name, node.value.value)
        for name in schemes()
        if get_scheme(name).refuses is not default
        for node in ast.walk(ast.parse(inspect.getsource(get_scheme(name).refuses)))
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and node.value.value is not None
    }
    assert reasons
    met = {(case.scheme, f.reason) for case in CASES.values() for f in case.findings(case.explain())}
    assert reasons - met == set()


# --- every layer is named ---


KINDS: dict[str, Callable[[], nn.Module]] = {
    **{kind.__name__: (lambda kind=kind: kind(8, 8, 1)) for kind in (nn.Conv3d, nn.ConvTranspose1d)},
    **{kind.__name__: (lambda kind=kind: kind(8, 8, 1)) for kind in (nn.ConvTranspose2d, nn.ConvTranspose3d)},
    **{kind.__name__: (lambda kind=kind: kind(8, 8)) for kind in (nn.RNN, nn.LSTM, nn.GRU, nn.GRUCell, nn.LSTMCell)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_layer_of_a_type_that_is_not_supported(kind: str) -> None:
    layer = bnnfx.explain(bnnfx.convert(One(KINDS[kind]()), "bireal", config=ALL))["layer"]
    assert (layer.kind, layer.binarized, layer.operators) == (kind, False, ())
    assert layer.findings[0].reason == f"nn.{kind} is not supported; nn.Conv1d, nn.Conv2d and nn.Linear are"


class Attention(Model):
    """Self-attention, which is written out unless it has options that are not."""

    shapes = ((2, 5, 8),)

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.last(self.attention(x, x, x)[0] + x)


def test_attention_and_the_layer_inside_it() -> None:
    model = Attention()
    explanation = bnnfx.explain(bnnfx.convert(model, "bireal", example_inputs=model.inputs(), config=ALL))
    binarized = {layer.name for layer in explanation.layers if layer.binarized}
    assert binarized == {"embed", "attention.in_proj", "attention.out_proj", "last"}
    with pytest.warns(UserWarning, match="'attention' is kept as a float leaf, it adds keys and values of its own"):
        explanation = bnnfx.explain(bnnfx.convert(Attention(add_zero_attn=True), "bireal", config=ALL))
    assert {layer.name for layer in explanation.layers} == {"embed", "attention", "attention.out_proj", "last"}
    assert [finding.reason.split(",")[0] for finding in explanation["attention"].findings] == [
        *("kept as a float leaf", "nn.MultiheadAttention is not supported; nn.Conv1d")
    ]
    assert "inside 'attention', which is kept" in explanation["attention.out_proj"].findings[0].reason


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "conv1d": lambda m, x: F.conv1d(x.flatten(2), m.weight[..., 0]),
    "conv_transpose2d": lambda m, x: F.conv_transpose2d(x, m.weight),
    "linear": lambda m, x: F.linear(x, m.weight[..., 0, 0]),
    "einsum": lambda m, x: torch.einsum("nchw,oc->nohw", x, m.weight[..., 0, 0]),
    "matmul": lambda m, x: x.matmul(m.weight[..., 0, 0]),
}


class Calls(Model):
    """A function of a value and of a parameter."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.weight, self.call = conv3x3(3, 8), nn.Parameter(torch.randn(8, 8, 1, 1)), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, self.stem(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_with_a_parameter(name: str) -> None:
    layers = bnnfx.explain(bnnfx.convert(Calls(FUNCTIONS[name]), "bireal", config=ALL)).layers
    (called,) = [layer for layer in layers if layer.name != "stem"]
    assert (called.name, called.kind, called.binarized) == (name, name, False)
    assert called.findings[0].reason == f"{name} is called as a function"


def test_product_of_two_values_is_no_layer() -> None:
    model = Calls(lambda m, x: x.matmul(x.transpose(2, 3)))
    assert [layer.name for layer in bnnfx.explain(bnnfx.convert(model, "bireal", config=ALL)).layers] == ["stem"]


# --- what is known, and when ---


def test_trainable_and_packed() -> None:
    model = Chain()
    bnn = bnnfx.convert(model, "xnor")
    before, after = bnnfx.explain(bnn), bnnfx.explain(bnnfx.lower(bnn, model.inputs()))
    names = ["stem", "conv1", "conv2", "fc1", "fc2"]
    assert [layer.name for layer in before.layers] == [layer.name for layer in after.layers] == names
    assert (before.stage, after.stage) == ("trainable", "packed")
    for name in names:
        binary = name in ("conv1", "conv2", "fc1")
        assert before[name].binarized is after[name].binarized is after[name].packed is binary
        assert (before[name].packed, before[name].fused, before[name].operators) == (None, None, ())
        assert after[name].kernel is (True if binary else None)
    assert after["conv1"].operators == ("BinaryConv2dThreshold",)
    log = {entry.name: entry for entry in after.passes}
    assert log[BinarizeLayers.__name__].applied == ("conv1", "conv2", "fc1") and log[BinarizeLayers.__name__].changed
    assert [entry.name for entry in before.passes] == [entry.name for entry in after.passes][: len(before.passes)]


@pytest.mark.parametrize("weight_bits", [1, 32])
def test_coupled_split_and_packed(weight_bits: int) -> None:
    """A 1-bit weight behind a ternary activation is binary, a float one is not; stages agree on it."""
    model = Residual(downsample=True)
    coupled = bnnfx.convert(model, "binaryduo", config=Config(options={"weight_bits": weight_bits}))
    split = bnnfx.split(coupled)
    packed = bnnfx.lower(split, model.inputs())
    stages = [bnnfx.explain(gm) for gm in (coupled, split, packed)]
    binary = {"block.conv1", "block.conv2"} if weight_bits == 1 else set()
    for explanation in stages:
        assert {layer.name for layer in explanation.layers if layer.binarized} == binary
        assert explanation["block.downsample.0"].findings[0].reason == "the downsample layer stays float"
        if weight_bits == 32:
            said = explanation["block.conv1"].findings
            (kept,) = [finding for finding in said if "its weight stays float" in finding.reason]
            assert kept.by == BinarizeLayers.__name__ and kept.remedy.endswith("they are weight_bits=32 here")
    assert [explanation.stage for explanation in stages] == ["trainable", "trainable", "packed"]
    assert {layer.name for layer in stages[2].layers if layer.packed} == binary
    assert all(stages[2][name].kernel and stages[2][name].operators for name in binary)
    logs = [[log.name for log in explanation.passes] for explanation in stages]
    assert logs[1][: len(logs[0])] == logs[0] and logs[2][: len(logs[1])] == logs[1]
    assert {"SplitActivations", "MoveShiftUpstream"} <= set(logs[1]) - set(logs[0])


def test_layer_that_is_called_twice() -> None:
    model = SharedLayer()
    packed = bnnfx.lower(bnnfx.convert(model, "bireal"), model.inputs())
    assert len(bnnfx.explain(packed)["conv"].operators) == 2  # bits for its own second call, floats for the last layer
    assert bnnfx.explain(packed)["conv"].kernel is True


def test_nested_names_are_not_mistaken() -> None:
    """`a.b` and `a_b` make the same name of a buffer."""
    model = nn.Sequential()
    model.add_module("a", nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    model.add_module("a_0", nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 4, 5, 5)
    explanation = bnnfx.explain(bnnfx.lower(bnnfx.convert(model, "bireal", config=ALL), (x,)))
    assert explanation["a.0"].operators == ("BinaryConv2dThreshold",)
    assert explanation["a_0"].operators == ("BinaryConv2dFloat",)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda gm: pickle.loads(pickle.dumps(gm))])
@pytest.mark.parametrize("lowered", [False, True])
def test_copies_keep_it(copied: Callable[[Any], Any], lowered: bool) -> None:
    model = Residual(downsample=True)
    gm = bnnfx.convert(model, "bireal")
    gm = bnnfx.lower(gm, model.inputs()) if lowered else gm
    assert bnnfx.explain(copied(gm)) == bnnfx.explain(gm)


# --- passes of other packages ---


THEIRS = """
from bnnfx.graph.pass_runner import Pass
from bnnfx.graph.record import Refusal, Role
from bnnfx.passes.convert.binarize_layers import BinarizeLayers
from bnnfx.passes.convert.canonicalize_calls import CanonicalizeCalls
from bnnfx.passes.convert.insert_batchnorm import InsertBatchNorm
from bnnfx.passes.lower.keep_channels_last import KeepChannelsLast

class Says(Pass):
    subjects, binarizes = (), False
    def __init_subclass__(cls):
        cls.requires = cls.ensures = cls.after.ensures
    def match(self):
        return self.subjects
    def allowed(self, match):
        return None if self.binarizes else Refusal(f"{type(self).__name__} says so", "ask it")
    def rewrite(self, match, plan):
        pass
    def subject(self, match):
        return match

class Remarks(Says):
    after, subjects = CanonicalizeCalls, ("fc2", "conv2")

class Decides(Says):
    after, subjects, role = InsertBatchNorm, ("fc2",), Role.DECIDES

class Binarizes(Says):
    after, subjects, role, binarizes = BinarizeLayers, ("fc2",), Role.BINARIZES, True

class Fuses(Says):
    after, subjects, role = KeepChannelsLast, ("conv1",), Role.FUSES
"""


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda gm: pickle.loads(pickle.dumps(gm))])
def test_roles_of_passes_of_other_packages(copied: Callable[[Any], Any], monkeypatch, tmp_path) -> None:
    """A pass says itself whether what it refuses stays float or is left behind a layer."""
    model = Chain()
    ours = bnnfx.explain(bnnfx.lower(bnnfx.convert(model, "xnor"), model.inputs()))
    entries = {name.lower(): f"theirs:{name}" for name in ("Remarks", "Decides", "Binarizes", "Fuses")}
    install(monkeypatch, tmp_path, "theirs", "bnnfx.passes", entries, THEIRS)
    both = bnnfx.explain(copied(bnnfx.lower(bnnfx.convert(model, "xnor"), model.inputs())))
    assert [finding.by for finding in ours["fc2"].findings] == ["SelectLayers"]
    assert [finding.by for finding in both["fc2"].findings] == ["SelectLayers", "Decides", "Remarks"]
    assert (ours["fc2"].binarized, both["fc2"].binarized) == (False, True)
    assert (ours["conv1"].fused, both["conv1"].fused) == (True, False)
    assert both["conv2"].fused and both["conv2"].findings[0].by == "Remarks"


def test_missing_library_leaves_the_kernel_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = Chain()
    packed = bnnfx.lower(bnnfx.convert(model, "xnor"), model.inputs())
    bnnfx.runtime.library.has_kernel.cache_clear()
    monkeypatch.setattr(bnnfx, "__path__", [str(tmp_path)])
    layer = bnnfx.explain(packed)["conv1"]
    assert (layer.packed, layer.kernel) == (True, None)


@pytest.mark.parametrize("given", [nn.Conv2d(1, 1, 1), None, "model.onnx"])
def test_anything_else_is_refused(given: Any) -> None:
    with pytest.raises(bnnfx.StageError, match=r"convert or bnnfx\.lower returned; got a"):
        bnnfx.explain(given)


def test_unknown_layer() -> None:
    with pytest.raises(KeyError, match="conv9"):
        bnnfx.explain(bnnfx.convert(Chain(), "xnor"))["conv9"]


# --- as text ---


def test_forms_hold_the_same() -> None:
    case = CASES["no step"]
    explanation = case.explain()
    reason, remedy = "'gelu' behind it is no step of an epilogue", "use only what is"
    text, markdown = str(explanation), explanation.to_markdown()
    joined = " ".join(text.replace("│", " ").split())
    for words in ("a.0", "Conv2d", "BinaryConv2dAddFloat", "scheme bireal, stage packed: 2 of 3 layers are binary"):
        assert words in joined and words in markdown
    assert reason in markdown and remedy in markdown
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 120
    assert json.loads(json.dumps(explanation.to_dict()))["layers"][0]["findings"][0]["remedy"].startswith(remedy)


def test_names_that_look_like_markup() -> None:
    explanation = bnnfx.explain(bnnfx.convert(nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3))), "xnor"))
    finding = replace(explanation.layers[0].findings[0], reason="a | b [bold]x[/bold]")
    spoiled = replace(explanation, layers=(replace(explanation.layers[0], findings=(finding,)),))
    assert "a | b [bold]x[/bold]" in str(spoiled) and "\\[" not in str(spoiled)
    rows = [line for line in spoiled.to_markdown().splitlines() if "x[/bold]" in line]
    assert len(rows) == 1 and rows[0].replace("\\|", "").count("|") == 8
