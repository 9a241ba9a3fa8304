"""What a converted graph keeps of a model beside its layers, through copies and pickles, and what it says it lacks."""

import copy
import io
import pickle
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.models import Chain
from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel

import bnnfx
from bnnfx import ConversionError
from bnnfx.nn import BinaryConv2d

X = Chain().inputs()


def copied(gm: nn.Module) -> Any:
    return copy.deepcopy(gm)


def pickled(gm: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(gm))


def saved(gm: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def averaged(gm: nn.Module) -> Any:
    return AveragedModel(gm).module


def twice(gm: nn.Module) -> Any:
    return copied(pickled(copied(gm)))


FORMS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda gm: gm,
    **{form.__name__: form for form in (copied, pickled, saved, averaged, twice)},
}


# --- train() ---------------------------------------------------------------------------------------------------------


class FrozenNorms(Chain):
    """As detection networks do it: some batch norms never train."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.bn0.eval()
        self.bn2.eval()
        return self


class FreezesStages(Chain):
    """As mmdetection does it; the method returns nothing."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if mode:
            self.bn0.eval()
            for parameter in (*self.stem.parameters(), *self.bn0.parameters()):
                parameter.requires_grad_(False)


class DropsAlways(Chain):
    """A dropout that stays on, for the spread of its results."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(x))

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.drop.train()
        return self


def in_other_mode(gm: nn.Module, training: bool) -> set[str]:
    """The layers that stay in the other mode; whatever else that may be has no layers."""
    gm.train(training)
    return {name for name, m in gm.named_modules() if m.training != training and not list(m.children())}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inputs", [None, X], ids=["plain", "shaped"])
def test_norms_that_train_leaves_in_eval_stay_so(form: str, inputs: Any) -> None:
    gm = FORMS[form](bnnfx.convert(FrozenNorms(), "xnor", example_inputs=inputs))
    assert in_other_mode(gm, True) == {"bn0", "bn2"}
    assert in_other_mode(gm, False) == set()
    before = {name: gm.get_submodule(name).running_mean.clone() for name in ("bn0", "bn1", "bn2")}
    gm.train()(torch.randn(4, 3, 8, 9))
    moved = {name for name, mean in before.items() if not torch.equal(gm.get_submodule(name).running_mean, mean)}
    assert moved == {"bn1"}


def test_without_its_own_train_nothing_is_held() -> None:
    model = Chain()
    model.bn0.eval()  # by hand: the next train() switches it, in the model as in the graph
    gm = bnnfx.convert(model, "xnor")
    assert not gm.bn0.training
    assert in_other_mode(gm, True) == set()


@pytest.mark.parametrize("form", FORMS)
def test_parameters_that_train_freezes(form: str) -> None:
    model = FreezesStages()
    gm = FORMS[form](bnnfx.convert(model, "xnor", example_inputs=X))
    assert all(p.requires_grad for p in gm.parameters()) and all(p.requires_grad for p in model.parameters())
    gm.train()
    frozen = {name for name, p in gm.named_parameters() if not p.requires_grad}
    assert model.stem.bias is None
    assert frozen == {"stem.weight", "bn0.weight", "bn0.bias"}
    assert in_other_mode(gm, True) == {"bn0"} and in_other_mode(gm, False) == set()


def test_dropout_that_stays_on_is_held_and_not_lowered() -> None:
    gm = bnnfx.convert(DropsAlways(), "xnor", example_inputs=X)
    assert in_other_mode(gm, False) == {"drop"} and in_other_mode(gm, True) == set()
    with pytest.raises(
        ConversionError, match=r"'drop' stays in training after eval\(\).*let the model's own train\(\)"
    ):
        bnnfx.lower(gm, X)

    class Drops(DropsAlways):
        train = nn.Module.train

    bnnfx.lower(bnnfx.convert(Drops(), "xnor", example_inputs=X), X)


def test_frozen_norms_lower_as_they_are() -> None:
    gm = bnnfx.convert(FrozenNorms(), "xnor", example_inputs=X)
    gm.train()(*X)
    packed = bnnfx.lower(gm, X)
    assert bnnfx.verify(gm, packed, X)
    packed.train()


# --- attributes ------------------------------------------------------------------------------------------------------


class Described(Chain):
    """A model with all kinds of attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = ["cat", "dog"]
        self.settings = SimpleNamespace(size=(8, 9), mean={"r": 0.5})
        self.kind = torch.float32
        self.kept = "a name of ours"
        self.code = "a name of torch.fx"
        self.layers = [self.conv1]
        self.by_name = {"first": {"weight": self.conv1.weight}}
        self.own = self.describe
        self.unpicklable = lambda x: x

    def describe(self) -> str:
        """Only the class has it."""
        return ", ".join(self.classes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lower", [False, True], ids=["trainable", "packed"])
def test_plain_attributes_stay(form: str, lower: bool) -> None:
    model = Described()
    gm = bnnfx.convert(model, "xnor", example_inputs=X)
    gm = FORMS[form](bnnfx.lower(gm, X) if lower else gm)
    assert (gm.classes, gm.settings.size, gm.settings.mean, gm.kind) == (
        ["cat", "dog"],
        (8, 9),
        {"r": 0.5},
        torch.float32,
    )
    assert Described.describe(gm) == "cat, dog"  # how a method is called of the result
    assert "def forward" in gm.code and isinstance(gm.kept, dict)
    # what holds layers or weights would hold copies that nobody trains
    assert [name for name in ("layers", "by_name", "own", "unpicklable", "describe") if hasattr(gm, name)] == []


def test_attributes_are_the_graphs_own() -> None:
    model = Described()
    gm = bnnfx.convert(model, "xnor")
    gm.classes.append("cow")
    assert model.classes == ["cat", "dog"]
    gm.settings = "changed"
    other = copied(gm)
    assert (other.settings, other.classes) == ("changed", ["cat", "dog", "cow"])
    del gm.settings
    assert not hasattr(copied(gm), "settings")


# --- hooks -----------------------------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """Blocks that are traced into, with layers that stay and such that become binary."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.deep = nn.Sequential(Blocks.Inner())
        self.last = nn.Conv2d(8, 4, 1)

    class Inner(nn.Module):
        """A block of one's own."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.deep(self.block(self.bn(self.stem(x)))))  # type: ignore[no-any-return]


def looks(module: nn.Module, *given: Any) -> None:
    """A hook that needs values, which tracing does not have."""
    module.seen = [float(x.mean()) for x in (*given[0], *given[1:]) if isinstance(x, Tensor)]


def doubles(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2.0


def writes(module: nn.Module, inputs: Any, output: Tensor) -> None:
    output.mul_(2.0)


def doubles_before(module: nn.Module, inputs: Any) -> Any:
    return (inputs[0] * 2.0,)


def sets_weight(module: nn.Module, inputs: Any) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data * 2 + 1


def behind(hook: Any) -> Callable[[nn.Module], Any]:
    return lambda module: module.register_forward_hook(hook)


def before(hook: Any) -> Callable[[nn.Module], Any]:
    return lambda module: module.register_forward_pre_hook(hook)


CHANGING = {
    **{"returns": behind(doubles), "writes": behind(writes), "returns before": before(doubles_before)},
    **{
        "sets the weight": before(sets_weight),
        "with keywords": lambda module: module.register_forward_hook(
            lambda m, args, kwargs, output: output * 3.0, with_kwargs=True
        ),
    },
}
LOOKING = {"behind": behind(looks), "before": before(looks)}
IMAGE = (torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0)),)


def binary(gm: nn.Module) -> set[str]:
    return {name for name, module in gm.named_modules() if isinstance(module, BinaryConv2d)}


@pytest.mark.parametrize("path", ["", "block", "deep", "deep.0"])
@pytest.mark.parametrize("name", LOOKING)
def test_hook_that_looks_keeps_nothing_float(name: str, path: str) -> None:
    model = Blocks()
    LOOKING[name](model.get_submodule(path))
    with pytest.warns(UserWarning, match=rf"does not keep the hooks of '{path or 'Blocks'}' \(register them on"):
        gm = bnnfx.convert(model, "xnor", example_inputs=IMAGE)
    assert binary(gm) == {"block.0", "deep.0.conv"}
    gm.get_submodule("block.0").register_forward_hook(looks)  # what the warning says
    gm(*IMAGE)
    assert len(gm.get_submodule("block.0").seen) == 2
    bnnfx.lower(gm, IMAGE)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "twice"])
def test_hooks_of_layers_that_stay_stay(form: str) -> None:
    model = Blocks()
    paths = ("stem", "bn", "block.0", "deep.0.conv", "deep.0.norm")  # two of them become binary
    for path in paths:
        model.get_submodule(path).register_forward_hook(looks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = FORMS[form](bnnfx.convert(model, "xnor", example_inputs=IMAGE))
    assert binary(gm) == {"block.0", "deep.0.conv"}
    gm(*IMAGE)
    assert [len(gm.get_submodule(path).seen) for path in paths] == [2] * len(paths)


@pytest.mark.parametrize("path", ["block", "deep", "deep.0"])
@pytest.mark.parametrize("name", CHANGING)
def test_block_whose_hook_changes_values_is_kept_whole(name: str, path: str) -> None:
    model = Blocks()
    CHANGING[name](model.get_submodule(path))
    with pytest.warns(UserWarning, match=f"'{path}' is kept as a float leaf, it has a hook that changes"):
        gm = bnnfx.convert(model, "xnor", example_inputs=IMAGE)
    assert binary(gm) == {"block.0", "deep.0.conv"} - {f"{path}.0", f"{path}.conv", f"{path}.0.conv"}
    hooked = gm.get_submodule(path)
    assert hooked._forward_hooks or hooked._forward_pre_hooks


@pytest.mark.parametrize("path", ["", "bn", "block.1"])
@pytest.mark.parametrize("name", CHANGING)
def test_layer_of_torch_whose_hook_changes_values(name: str, path: str) -> None:
    """Nothing that is known of a batch norm would be true of it."""
    model = Blocks()
    handle = CHANGING[name](model.get_submodule(path))
    with pytest.raises(ConversionError, match=rf"'{path or 'Blocks'}' has a hook that changes.*remove the hook\."):
        bnnfx.convert(model, "xnor", example_inputs=IMAGE)
    handle.remove()
    assert binary(bnnfx.convert(model, "xnor", example_inputs=IMAGE)) == {"block.0", "deep.0.conv"}


def test_hooks_of_what_is_not_called_change_nothing() -> None:
    model = Blocks()
    model.unused, model.parts = nn.ReLU(), nn.ModuleList([nn.ReLU()])
    for module in (model.unused, model.parts, model.parts[0]):
        behind(doubles)(module)
    with pytest.warns(UserWarning, match=r"hooks of 'unused', 'parts', 'parts\.0'"):
        assert binary(bnnfx.convert(model, "xnor", example_inputs=IMAGE)) == {"block.0", "deep.0.conv"}


def test_without_inputs_a_hook_may_change_values() -> None:
    model = Blocks()
    handles = [behind(looks)(model.deep)]
    with pytest.warns(UserWarning, match="'deep' is kept as a float leaf, it has a hook that changes"):
        assert binary(bnnfx.convert(model, "xnor")) == {"block.0"}
    handles.append(behind(looks)(model.bn))
    with pytest.raises(ConversionError, match=r"'bn' has a hook, which may change values.*or give example_inputs"):
        bnnfx.convert(model, "xnor")
    with pytest.warns(UserWarning, match="does not keep the hooks of 'deep'"):
        assert binary(bnnfx.convert(model, "xnor", example_inputs=IMAGE)) == {"block.0", "deep.0.conv"}
    for handle in handles:
        handle.remove()
    assert binary(bnnfx.convert(model, "xnor")) == {"block.0", "deep.0.conv"}


@pytest.mark.parametrize("path", ["", "stem", "bn", "block.0", "block.0_sign", "deep.0.norm", "last"])
@pytest.mark.parametrize("name", CHANGING)
def test_lower_refuses_hooks_that_change_values(name: str, path: str) -> None:
    gm = bnnfx.convert(Blocks(), "xnor")
    if name == "sets the weight" and not list(gm.get_submodule(path).parameters()):
        pytest.skip("it has no weight")
    handle = CHANGING[name](gm.get_submodule(path))
    with pytest.raises(ConversionError, match=r"has a hook that changes.*remove the hook"):
        bnnfx.lower(gm, IMAGE)
    handle.remove()
    bnnfx.lower(gm, IMAGE)


def test_lower_takes_off_hooks_that_look(tmp_path: Any) -> None:
    gm = bnnfx.convert(Blocks(), "xnor")
    for module in gm.modules():
        module.register_forward_hook(looks)
    packed = bnnfx.lower(gm, IMAGE)
    assert all(module._forward_hooks for module in gm.modules())
    assert not any(module._forward_hooks for module in packed.modules())
    assert bnnfx.verify(gm, bnnfx.export_onnx(packed, tmp_path / "model.onnx"), IMAGE)


def test_a_users_block_that_stays_whole_keeps_its_hook_to_the_file(tmp_path: Any) -> None:
    model = Blocks()
    behind(doubles)(model.deep.get_submodule("0"))
    with pytest.warns(UserWarning, match=r"'deep\.0' is kept"):
        gm = bnnfx.convert(model, "xnor", example_inputs=IMAGE)
    path = bnnfx.export_onnx(gm, tmp_path / "model.onnx", example_inputs=IMAGE)
    assert bnnfx.verify(gm, path, IMAGE)


@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.block.register_full_backward_hook(lambda *_: None),
        lambda m: m.block.register_full_backward_pre_hook(lambda *_: None),
        lambda m: m.block[0].weight.register_hook(lambda gradient: None),
        lambda m: m.stem.weight.register_post_accumulate_grad_hook(lambda parameter: None),
        lambda m: m.register_state_dict_post_hook(lambda *_: None),
        lambda m: m.register_load_state_dict_pre_hook(lambda *_: None),
    ],
    ids=["backward", "backward pre", "weight", "accumulated", "state", "load"],
)
def test_other_hooks_are_told(register: Callable[[Any], Any]) -> None:
    model = Blocks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bnnfx.convert(model, "xnor", example_inputs=IMAGE)
    register(model)
    with pytest.warns(UserWarning, match="does not keep the hooks of"):
        assert binary(bnnfx.convert(model, "xnor", example_inputs=IMAGE)) == {"block.0", "deep.0.conv"}


def test_one_warning_for_all_that_is_lost() -> None:
    class Own(Blocks):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {"model": super().state_dict(*args, **kwargs)}

        def describe(self) -> str:  # its absence is no secret: the call fails
            return "own"

    model = Own()
    for module in model.modules():
        module.register_forward_hook(looks)
    with pytest.warns(UserWarning) as said:
        gm = bnnfx.convert(model, "xnor", example_inputs=IMAGE)
    (text,) = [str(warning.message) for warning in said]
    assert text == (
        "the converted graph does not keep the hooks of 'Own', 'block', 'deep', 'deep.0' "
        "(register them on layers of the result), and what Own.state_dict does beyond torch's own (call it as a "
        "function of the result)"
    )
    with pytest.raises(AttributeError):
        gm.describe()
    assert Own.describe(gm) == "own"


def test_drawing_and_counting_call_no_hooks_with_what_tracing_has(tmp_path: Any) -> None:
    model = Blocks()
    seen: list[Any] = []
    model.block.register_forward_hook(lambda module, x, y: seen.append(y))
    bnnfx.draw(model, tmp_path / "model.svg")
    bnnfx.summary(model, IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bnnfx.convert(model, "xnor", example_inputs=IMAGE)
    assert len(seen) > 0
    assert [x for x in seen if isinstance(x, fx.Proxy)] == []


def test_a_lock_is_no_attribute_that_could_stay() -> None:
    """It cannot be copied, and so is refused before; what is copied but not pickled is left out."""
    model = Chain()
    model.lock = threading.Lock()
    with pytest.raises(ConversionError, match=r"del model\.lock"):
        bnnfx.convert(model, "xnor")
