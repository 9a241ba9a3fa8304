"""Whatever is handed over in place of a plain module: refused for what it is, and the remedy named works."""

import copy
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Chain
from torch import Tensor, fx, nn
from torch.ao.quantization import (
    get_default_qat_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    prepare_qat,
)
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

import bnnfx
from bnnfx import ConversionError, StageError
from bnnfx.graph.given_models import copy_of
from bnnfx.nn import BinaryConv2d

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about its own future
X = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))


def _qat_eager() -> nn.Module:
    model = Chain().train()
    model.qconfig = get_default_qat_qconfig("x86")
    return prepare_qat(model)  # type: ignore[no-any-return]


def _ddp(model: nn.Module) -> nn.Module:
    """As it is made, without a process group, which a test should not start."""
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    return wrapped


INPUTS = Chain().inputs()
BEFORE = "pass the float model from before that"
MADE_FROM = "pass the nn.Module that it was made from"
WRAPPED: dict[str, tuple[Callable[[nn.Module], Any], str, str, Callable[[Any], Any] | None]] = {
    "compiled": (torch.compile, "returned by torch.compile", r"pass model\._orig_mod", lambda m: m._orig_mod),
    "data parallel": (nn.DataParallel, "is a DataParallel", r"pass model\.module", lambda m: m.module),
    "distributed": (_ddp, "is a DistributedDataParallel", r"pass model\.module", lambda m: m.module),
    "averaged": (AveragedModel, "is a AveragedModel", r"pass model\.module", lambda m: m.module),
    "scripted": (torch.jit.script, "is TorchScript", MADE_FROM, None),
    "traced": (lambda m: torch.jit.trace(m.eval(), INPUTS), "is TorchScript", MADE_FROM, None),
    "exported": (lambda m: torch.export.export(m, INPUTS), "that torch.export made", MADE_FROM, None),
    "unlifted": (lambda m: torch.export.export(m, INPUTS).module(), "graph of aten operators", MADE_FROM, None),
    "class": (type, "is a class", "pass an instance", lambda m: m()),
    "weights": (lambda m: m.state_dict(), "is a dictionary", "build the module, and give it the weights", None),
    "function": (lambda m: m.forward, r"is no torch\.nn\.Module", "pass the module itself", None),
    "qat": (
        lambda m: prepare_qat_fx(m.train(), get_default_qat_qconfig_mapping("x86"), INPUTS),
        *("prepared for it: '.*' is a torch.ao", BEFORE, None),
    ),
    "eager qat": (lambda m: _qat_eager(), "prepared for it: '.*' is a torch.ao", BEFORE, None),
    "quantized": (
        lambda m: convert_fx(prepare_fx(m.eval(), get_default_qconfig_mapping("x86"), INPUTS)),
        *("is quantized or", BEFORE, None),
    ),
    "dynamic": (
        lambda m: torch.ao.quantization.quantize_dynamic(m, {nn.Linear}),
        *("is quantized or", BEFORE, None),
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_is_no_plain_module(name: str, tmp_path: Path) -> None:
    wrap, reason, remedy, unwrap = WRAPPED[name]
    model = Chain()
    given = wrap(model)
    with pytest.raises(ConversionError, match=f"{reason}.* The remedy: {remedy}"):
        bnnfx.convert(given, "xnor", example_inputs=INPUTS)
    with pytest.raises(StageError, match=f"lower takes .*{reason}.* The remedy: {remedy}"):
        bnnfx.lower(given, INPUTS)
    float_model = Chain() if unwrap is None else unwrap(given)
    assert isinstance(bnnfx.convert(float_model, "xnor", example_inputs=INPUTS).conv1, BinaryConv2d)


@pytest.mark.parametrize("name", ["compiled", "data parallel", "distributed", "averaged"])
def test_wrapped_graph(name: str) -> None:
    """What wraps a converted graph is not lowered, what is in it is."""
    wrap, reason, remedy, unwrap = WRAPPED[name]
    gm = bnnfx.convert(Chain(), "xnor")
    with pytest.raises(StageError, match=f"{reason}.* The remedy: {remedy}"):
        bnnfx.lower(wrap(gm), INPUTS)
    assert unwrap is not None
    bnnfx.lower(unwrap(wrap(gm)), INPUTS)


def test_float_model_is_not_lowered() -> None:
    with pytest.raises(StageError, match=r"got a Chain\. Call bnnfx\.convert first\."):
        bnnfx.lower(Chain(), INPUTS)


def test_converted_twice() -> None:
    gm = bnnfx.convert(Chain(), "xnor")
    with pytest.raises(ConversionError, match="before, with scheme 'xnor', and is in stage trainable: train it"):
        bnnfx.convert(gm, "bireal")
    with pytest.raises(ConversionError, match="in stage packed: export it"):
        bnnfx.convert(bnnfx.lower(gm, INPUTS), "bireal")


def test_model_to_be_quantized_is_a_float_model() -> None:
    """It is written with `FloatFunctional`, whose home is that of quantized modules."""
    model = Chain()
    model.add = torch.ao.nn.quantized.FloatFunctional()
    assert isinstance(bnnfx.convert(model, "xnor").conv1, BinaryConv2d)


class Around(nn.Module):
    """Another model as a submodule."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1), nn.Conv2d(3, 3, 1)
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.last(self.conv(self.stem(x))))


@pytest.mark.parametrize("name", ["compiled", "data parallel", "scripted"])
def test_as_a_submodule_it_is_a_leaf_with_its_reason(name: str) -> None:
    wrap, reason, remedy, _ = WRAPPED[name]
    with pytest.warns(UserWarning, match=f"'inner' is kept as a float leaf, it .*{reason}"):
        gm = bnnfx.convert(Around(wrap(Chain())), "xnor", example_inputs=INPUTS)
    assert isinstance(gm.conv, BinaryConv2d)
    layers = [layer for layer in bnnfx.explain(gm).layers if layer.name.startswith("inner.")]
    assert [re.search(remedy, layer.findings[0].remedy) is None for layer in layers] == [False] * len(layers)
    assert len(layers) == (0 if name == "scripted" else 5)  # those of TorchScript cannot be told


# --- what cannot be copied --------------------------------------------------------------------------------------------


class Keeping(Chain):
    """A model that keeps a map."""

    def forward(self, x: Tensor) -> Tensor:
        self.feature = x * self.stem.weight.mean()
        return super().forward(x)


def made(change: Callable[[Any], object], kind: type[Chain] = Chain) -> Chain:
    model = kind()
    change(model)
    model(*model.inputs())
    return model


def keep_once(module: nn.Module, inputs: object, output: Tensor) -> None:
    """A hook that ends itself."""
    module.seen = output
    module._forward_hooks.clear()


UNCOPYABLE = {
    "weight norm": (
        lambda: made(lambda m: nn.utils.weight_norm(m.conv1)),
        r"'conv1': its weight is computed by weight_norm\. The remedy: torch\.nn\.utils\.remove_weight_norm\(layer\)",
        lambda m: nn.utils.remove_weight_norm(m.conv1),
    ),
    "spectral norm": (
        lambda: made(lambda m: nn.utils.spectral_norm(m.conv1)),
        r"'conv1': its weight is computed by spectral_norm\. .*torch\.nn\.utils\.remove_spectral_norm\(layer\)",
        lambda m: nn.utils.remove_spectral_norm(m.conv1),
    ),
    "pruned": (
        lambda: made(
            lambda m: [prune.l1_unstructured(layer, "weight", 0.5) for layer in (m.conv1, m.conv2)]  # type: ignore[no-untyped-call]
        ),
        r"'conv1', 'conv2': its weight is computed by a pruning mask\. .*prune\.remove\(layer, 'weight'\)",
        lambda m: [prune.remove(layer, "weight") for layer in (m.conv1, m.conv2)],  # type: ignore[no-untyped-call]
    ),
    "pruned bias": (
        lambda: made(lambda m: prune.random_unstructured(m.fc2, "bias", 0.5)),  # type: ignore[no-untyped-call]
        r"'fc2': its bias is .*prune\.remove\(layer, 'bias'\)",
        lambda m: prune.remove(m.fc2, "bias"),  # type: ignore[no-untyped-call]
    ),
    "kept map": (
        lambda: made(lambda m: None, Keeping),
        r"model\.feature is a tensor with a gradient history.*The remedy: del model\.feature",
        lambda m: delattr(m, "feature"),
    ),
    "kept and detached": (
        lambda: made(lambda m: None, Keeping),
        r"or let it keep a \.detach\(\)",
        lambda m: setattr(m, "feature", m.feature.detach()),
    ),
    "kept by a layer": (
        lambda: made(lambda m: m.bn0.register_forward_hook(keep_once)),
        r"'bn0': model\.bn0\.seen is a tensor.*The remedy: del model\.bn0\.seen",
        lambda m: delattr(m.bn0, "seen"),
    ),
    "lock": (
        lambda: made(lambda m: setattr(m, "lock", threading.Lock())),
        r"model\.lock holds something that cannot be copied, in a lock\. The remedy: del model\.lock",
        lambda m: delattr(m, "lock"),
    ),
}


@pytest.mark.parametrize("name", UNCOPYABLE)
def test_model_that_cannot_be_copied(name: str, tmp_path: Path) -> None:
    make, message, remedy = UNCOPYABLE[name]
    model = make()
    with pytest.raises(Exception):  # noqa: B017 (it is the case that this is about)
        copy.deepcopy(model)
    ways: list[Callable[[], object]] = [
        lambda: bnnfx.convert(model, "xnor", example_inputs=model.inputs()),
        lambda: bnnfx.convert(model, "xnor"),
        lambda: bnnfx.summary(model, model.inputs()),
        lambda: bnnfx.draw(model, tmp_path / "model.svg"),
    ]
    for way in ways:
        with pytest.raises(ConversionError, match=f"cannot be copied.*{message}"):
            way()
    remedy(model)
    for way in ways:
        way()
    assert isinstance(bnnfx.convert(model, "xnor", example_inputs=model.inputs()).conv1, BinaryConv2d)


def test_spectral_norm_before_a_forward() -> None:
    """It can be copied then; the layer stays float with the same remedy, as with a parametrization."""
    model = Chain()
    nn.utils.spectral_norm(model.conv1)
    copy_of(model)
    finding = bnnfx.explain(bnnfx.convert(model, "xnor"))["conv1"].findings[0]
    assert "remove_spectral_norm(layer)" in finding.remedy
    nn.utils.remove_spectral_norm(model.conv1)
    assert isinstance(bnnfx.convert(model, "xnor").conv1, BinaryConv2d)
    parametrizations.weight_norm(model.conv1)
    finding = bnnfx.explain(bnnfx.convert(model, "xnor"))["conv1"].findings[0]
    assert "remove_parametrizations" in finding.remedy
    parametrize.remove_parametrizations(model.conv1, "weight")
    assert isinstance(bnnfx.convert(model, "xnor").conv1, BinaryConv2d)


def test_graph_that_cannot_be_copied_is_not_lowered() -> None:
    gm = bnnfx.convert(Chain(), "xnor")
    nn.utils.weight_norm(gm.fc2)
    gm(*INPUTS)
    with pytest.raises(ConversionError, match=r"'fc2': .*remove_weight_norm\(layer\)"):
        bnnfx.lower(gm, INPUTS)
    nn.utils.remove_weight_norm(gm.fc2)
    bnnfx.lower(gm, INPUTS)


def test_rewriting_a_converted_graph_again() -> None:
    """A feature extractor is made of the float model; of the converted one it would lose what bnnfx knows."""
    from bnnfx._torchvision import import_torchvision

    import_torchvision()
    from torchvision.models.feature_extraction import create_feature_extractor

    gm = bnnfx.convert(Chain(), "xnor")
    ways: list[Callable[[], object]] = [
        lambda: create_feature_extractor(gm, ["conv2"]),
        lambda: prepare_qat_fx(gm, get_default_qat_qconfig_mapping("x86"), INPUTS),
        lambda: fx.symbolic_trace(gm),
    ]
    for way in ways:
        with pytest.raises(ConversionError, match=r"Rewrite the float model .* and convert the result"):
            way()
    features = create_feature_extractor(Chain(), {"conv2": "features", "fc2": "logits"})
    converted = bnnfx.convert(features, "xnor", example_inputs=INPUTS)
    assert isinstance(converted.conv1, BinaryConv2d)
    assert set(converted.eval()(*INPUTS)) == {"features", "logits"}
    bnnfx.lower(converted, INPUTS)


def test_around_a_converted_graph() -> None:
    gm = bnnfx.convert(Chain(), "xnor")
    with pytest.raises(StageError, match=r"no graph of bnnfx any more.*convert the result; or pass the graph inside"):
        bnnfx.lower(nn.Sequential(gm, nn.ReLU()), INPUTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bnnfx.lower(bnnfx.convert(nn.Sequential(Chain(), nn.ReLU()), "xnor"), INPUTS)
