"""`convert`: what it keeps of the model, what it refuses and how, and that its result trains, copies and saves."""

import copy
import io
import pickle
import re

import numpy as np
import pytest
import torch
from helpers.graphs import full_width, lowerable, text
from helpers.models import (
    HAZARDS,
    Chain,
    DropoutBeforeLinear,
    ManyInputsOutputs,
    NoBatchNorm,
    Residual,
    UntraceableForward,
    UntraceableSubmodule,
    flat,
    loss_of,
)
from torch import nn

import bnnfx
from bnnfx import Config, ConversionError, ExampleInputError, LayerConfig
from bnnfx.graph.record import record_of
from bnnfx.nn import BinaryConv2d, BinaryLinear
from bnnfx.schemes import get_scheme

SCHEMES = bnnfx.schemes()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def binary_names(gm):
    return {name for name, module in gm.named_modules() if isinstance(module, BinaryConv2d | BinaryLinear)}


def snapshot(model):
    """Everything of a model that a careless conversion could change."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [(name, id(module), type(module), module.training, repr(module)) for name, module in model.named_modules()],
        [(name, id(p), p.requires_grad, p._version) for name, p in model.named_parameters()],
        [(name, list(m._forward_hooks.items()), list(m._forward_pre_hooks)) for name, m in model.named_modules()],
    )


@pytest.mark.parametrize("name", HAZARDS)
def test_model_is_not_changed(name, scheme="rbnn"):
    model = HAZARDS[name]()
    layers = (nn.Conv2d, nn.Linear)  # one of these with a hook stays float
    handles = [m.register_forward_hook(lambda *_: None) for m in model.modules() if not isinstance(m, layers)]
    tensors, *structure = snapshot(model)
    bnnfx.convert(model, scheme, example_inputs=model.inputs())
    after, *structure_after = snapshot(model)
    assert structure_after == structure
    assert len(handles) == sum(len(m._forward_hooks) for m in model.modules()) > 0
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[key], tensors[key]) for key in tensors)


def test_training_the_result_leaves_the_model_alone():
    model = Chain()
    before = copy.deepcopy(model.state_dict())
    gm = bnnfx.convert(model, "xnor")
    loss_of(gm, model.inputs()).backward()
    torch.optim.SGD(gm.parameters(), 0.1).step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", HAZARDS)
def test_second_conversion_gives_the_same_graph(name, scheme="rbnn"):
    model = HAZARDS[name]()
    first, second = (bnnfx.convert(model, scheme) for _ in range(2))
    assert first.code == second.code
    assert text(first) == text(second)
    assert list(first.state_dict()) == list(second.state_dict())
    assert record_of(first) == record_of(second)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", HAZARDS)
def test_float_parameters_keep_their_names(name, scheme):
    model = HAZARDS[name]()
    gm = bnnfx.convert(model, scheme, config=full_width(scheme))
    missing, unexpected = gm.load_state_dict(model.state_dict(), strict=False)
    assert unexpected == []
    ours = {name for name, module in gm.named_modules() if type(module).__module__.startswith("bnnfx.")}
    inserted = {
        name for name, m in gm.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and "_bn" in name
    }
    ours -= binary_names(gm)  # what a binary layer itself holds is the float layer's
    for key in missing:
        owner = key.rpartition(".")[0]
        assert owner in ours or owner in inserted, key
    for key, value in model.state_dict().items():
        assert torch.equal(gm.state_dict()[key], value), key


def test_deleted_parameter_would_be_noticed():
    gm = bnnfx.convert(Chain(), "xnor")
    del gm.fc2
    assert gm.load_state_dict(Chain().state_dict(), strict=False).unexpected_keys == ["fc2.weight", "fc2.bias"]


def test_frozen_parameters_stay_frozen():
    model = Chain()
    model.conv1.weight.requires_grad_(False)
    gm = bnnfx.convert(model, "xnor")
    assert [name for name, p in gm.named_parameters() if not p.requires_grad] == ["conv1.weight"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_kept(training, scheme):
    gm = bnnfx.convert(NoBatchNorm().train(training), scheme, example_inputs=NoBatchNorm().inputs())
    assert {module.training for module in gm.modules()} == {training}


def test_mode_of_a_single_module_is_kept():
    model = Chain()
    model.bn0.eval()
    gm = bnnfx.convert(model, "xnor", example_inputs=model.inputs())
    assert [name for name, module in gm.named_modules() if not module.training] == ["bn0"]


# --- which layers stay float -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep_float", "binary"),
    [
        (("first", "last", "downsample"), {"block.conv1", "block.conv2"}),
        (("first", "last"), {"block.conv1", "block.conv2", "block.downsample.0"}),
        (("first",), {"block.conv1", "block.conv2", "block.downsample.0", "fc"}),
        (("last",), {"stem.0", "block.conv1", "block.conv2", "block.downsample.0"}),
        (("downsample",), {"stem.0", "block.conv1", "block.conv2", "fc"}),
        ((), {"stem.0", "block.conv1", "block.conv2", "block.downsample.0", "fc"}),
    ],
)
def test_keywords(keep_float, binary):
    gm = bnnfx.convert(Residual(downsample=True), "bireal", config=Config(keep_float=keep_float))
    assert binary_names(gm) == binary


def test_identity_shortcut_is_no_downsample():
    gm = bnnfx.convert(Residual(), "bireal", config=Config(keep_float=("downsample",)))
    assert binary_names(gm) == {"stem.0", "block.conv1", "block.conv2", "fc"}


def test_first_and_last_are_all_at_the_boundary():
    """Two inputs and two outputs: every layer that touches one is kept."""
    gm = bnnfx.convert(ManyInputsOutputs(), "bireal", config=Config(keep_float=("last",)))
    assert binary_names(gm) == {"stem", "conv1"}
    gm = bnnfx.convert(ManyInputsOutputs(), "bireal", config=Config(keep_float=("first",)))
    assert binary_names(gm) == {"conv1", "last"}  # conv2 reads the second input


@pytest.mark.parametrize(
    ("layers", "binary"),
    [
        ({nn.Conv2d: False}, {"fc1"}),
        ({nn.Linear: False}, {"conv1", "conv2"}),
        ({nn.Module: False, "conv?": True}, {"conv1", "conv2"}),
        ({"conv*": True, nn.Module: False}, {"conv1", "conv2"}),
        ({"conv*": False, "conv2": True}, {"conv2", "fc1"}),
        ({"conv2": True, "conv*": False}, {"conv2", "fc1"}),
        ({nn.Conv2d: True, "conv*": False, "conv1": True}, {"stem", "conv1", "fc1"}),
        ({"*": True}, {"stem", "conv1", "conv2", "fc1", "fc2"}),
        ({"fc2": True}, {"conv1", "conv2", "fc1", "fc2"}),
    ],
)
def test_precedence_is_type_glob_name(layers, binary):
    config = Config(layers={key: LayerConfig(binarize=value) for key, value in layers.items()})
    assert binary_names(bnnfx.convert(Chain(), "bireal", config=config)) == binary


def test_options_merge_by_the_same_precedence():
    config = Config(
        options={"initial_share": 0.1},
        layers={
            "conv1": LayerConfig(options={"initial_share": 0.4}),
            "conv*": LayerConfig(options={"initial_share": 0.3, "weight_gradient": "full"}),
            nn.Conv2d: LayerConfig(options={"initial_share": 0.2, "centre": True}),
        },
    )
    gm = bnnfx.convert(Chain(), "rbnn", config=config)
    shares = {name: gm.get_submodule(name).binarizer.beta.sin() for name in ("fc1", "conv2", "conv1")}
    for (name, share), wanted in zip(shares.items(), (0.1, 0.3, 0.4), strict=True):
        # asin, a rounding to float32, sin: each within an ulp of a number below 1
        assert torch.all((share - wanted).abs() < 4 * torch.finfo(torch.float32).eps), name
    assert gm.conv1.binarizer.weight_gradient == "full"
    assert gm.fc1.binarizer.weight_gradient == "code"
    assert (gm.conv1_sign.centre, gm.fc1_sign.centre) == (True, False)


@pytest.mark.parametrize("name", ["conv3", "fc*x", "relu"])
def test_unmatched_name(name):
    with pytest.raises(ValueError, match="selects no layer with") as error:
        bnnfx.convert(Chain(), "xnor", config=Config(layers={name: LayerConfig(binarize=False)}))
    assert repr(name) in str(error.value)
    assert "stem, conv1, conv2, fc1, fc2" in str(error.value)


@pytest.mark.parametrize("keep_float", [("frist",), "first", ("first", 3)])
def test_unknown_keyword(keep_float):
    with pytest.raises(ValueError, match=r"Config\.keep_float.*'first', 'last', 'downsample'"):
        Config(keep_float=keep_float)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("keep_float", None),
        ("keep_float", ("first", 3)),
        ("keep_float", (["first"],)),
        ("layers", None),
        ("layers", ["conv1"]),
        ("options", None),
        ("options", [("centre", True)]),
        ("widths", None),
        ("widths", {"conv1": True}),
    ],
)
def test_malformed_config(field, value):
    with pytest.raises(ValueError, match=rf"Config\.{field} (is|maps) .*; got "):
        Config(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("binarize", "no"), ("binarize", 0), ("options", None)])
def test_malformed_layer_config(field, value):
    with pytest.raises(ValueError, match=rf"LayerConfig\.{field} is .*; got "):
        LayerConfig(**{field: value})


@pytest.mark.parametrize("layers", [{"conv1": False}, {3: LayerConfig()}])
def test_malformed_layers(layers):
    with pytest.raises(ValueError, match=r"Config\.layers maps"):
        Config(layers=layers)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, "xnor", Config])
def test_what_is_no_config(config):
    with pytest.raises(ValueError, match=r"config is a bnnfx\.Config, or None for the usual one; got "):
        bnnfx.convert(Chain(), "xnor", config=config)


def named(*names: str) -> nn.Module:
    """Convolutions of these names."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({name: nn.Conv2d(8, 8, 1) for name in names})

        def forward(self, x):
            for layer in self.layers.values():
                x = layer(x)
            return x

    return Named().eval()


@pytest.mark.parametrize("name", ["a-b", "1x1", "é ü", "a/b", "self", "torch", "{", "q'q", "match"])
def test_names_that_are_no_identifiers(name, tmp_path):
    model, x = named("first", name, "last"), torch.randn(2, 8, 5, 5)
    gm = bnnfx.convert(model, "xnor")
    gm.load_state_dict(model.state_dict(), strict=False)
    packed = bnnfx.lower(pickle.loads(pickle.dumps(gm)), (x,))
    assert bnnfx.verify(gm, bnnfx.export_onnx(packed, tmp_path / "m.onnx"), (x,))
    (layer,) = [layer for layer in bnnfx.explain(packed).layers if layer.packed]
    assert layer.name == f"layers.{name}"


@pytest.mark.parametrize("name", ["class", "None", 'q"q', "line\nbreak"])
def test_names_that_no_graph_can_have(name):
    text = re.escape(f"The name {f'layers.{name}.bias'!r} has a part that torch.fx cannot write")
    with pytest.raises(ConversionError, match=text):
        bnnfx.convert(named("first", name, "last"), "xnor")


def test_examples_and_weights_without_values():
    """Shapes are checked; what would need values is not known."""
    x = Chain().inputs()[0]
    expected = text(bnnfx.convert(Chain(), "xnor", example_inputs=(x,)))
    for weights in ("cpu", "meta"):
        for values in ("cpu", "meta"):
            gm = bnnfx.convert(Chain().to(weights), "xnor", example_inputs=(x.to(values),))
            assert text(gm) == expected, (weights, values)
    with pytest.raises(ExampleInputError, match="do not fit the model"):
        bnnfx.convert(Chain(), "xnor", example_inputs=(x.to("meta")[:, :1],))


def test_unknown_scheme_lists_the_known():
    with pytest.raises(ValueError, match="'bnn'") as error:
        bnnfx.convert(Chain(), "bnn")
    assert ", ".join(SCHEMES) in str(error.value)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("where", ["all", "layer"])
def test_unknown_option(scheme, where):
    options = {"no_such_option": 1}
    config = Config(options=options) if where == "all" else Config(layers={"conv1": LayerConfig(options=options)})
    with pytest.raises(ValueError, match=f"Scheme '{scheme}' has no option 'no_such_option'; its options are"):
        bnnfx.convert(Chain(), scheme, config=config)


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("rbnn", {"initial_share": 0.0}),
        ("rbnn", {"initial_share": 1.5}),
        ("rbnn", {"weight_gradient": "paper"}),
        ("bireal", {"weight_gradient": "full"}),
    ],
)
def test_bad_value_of_an_option(scheme, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        bnnfx.convert(Chain(), scheme, config=Config(options=options))


OTHER_KINDS = {bool: ["no", "False", 0, None], int: ["1", True, 1.5], float: ["0.5", True, None], str: [True, 1, None]}


@pytest.mark.parametrize("where", ["all", "layer"])
def test_values_of_another_kind(where):
    """No option of any scheme is taken for its truth value."""
    met = set()
    for scheme in map(get_scheme, SCHEMES):
        defaults = scheme.options if where == "layer" else {**scheme.options, **scheme.network_options}
        for name, default in defaults.items():
            for value in OTHER_KINDS[type(default)]:
                given = {name: value}
                config = (
                    Config(options=given) if where == "all" else Config(layers={"conv1": LayerConfig(options=given)})
                )
                text = f"Option '{name}' of scheme '{scheme.name}' is .*; got {re.escape(repr(value))}"
                with pytest.raises(ValueError, match=text):
                    bnnfx.convert(Chain(), scheme.name, config=config)
                met.add(type(default))
    assert met == set(OTHER_KINDS)


def test_numbers_of_any_class():
    gm = bnnfx.convert(Chain(), "binaryduo", config=Config(options={"weight_bits": np.int64(1), "width_factor": 1}))
    assert bnnfx.explain(gm).scheme == "binaryduo"


def test_nothing_to_convert_names_the_first_obstacle_and_the_remedy():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(ConversionError, match="Nothing in this model can be binarized") as error:
        bnnfx.convert(model, "xnor")
    assert "2 layer(s) stay float, the first is '0': the first layer stays float" in str(error.value)
    assert "leave 'first' out of Config.keep_float" in str(error.value)


def test_no_layer_at_all():
    with pytest.raises(ConversionError, match="no Conv1d, Conv2d or Linear in it"):
        bnnfx.convert(nn.Sequential(nn.ReLU()), "xnor")


def test_all_layers_hidden_in_a_leaf():
    model = UntraceableSubmodule()
    model.stem = model.conv = model.last = nn.Identity()
    with pytest.raises(ConversionError, match=r"'inner\.0' is kept as a float leaf"):
        bnnfx.convert(model, "xnor")


def test_untraceable_forward_names_the_model_and_the_remedy():
    with pytest.raises(ConversionError, match=r"UntraceableForward\.forward cannot be traced") as error:
        bnnfx.convert(UntraceableForward(), "xnor")
    assert "submodule of its own" in str(error.value)


def test_not_a_module():
    with pytest.raises(ConversionError, match=r"the function given is no torch\.nn\.Module"):
        bnnfx.convert(lambda x: x, "xnor")


def test_untraceable_submodule_is_a_float_leaf():
    model = UntraceableSubmodule()
    with pytest.warns(UserWarning, match=r"'inner\.0' is kept as a float leaf"):
        gm = bnnfx.convert(model, "xnor", example_inputs=model.inputs())
    assert type(gm.get_submodule("inner.0")) is type(model.inner[0])
    assert type(gm.get_submodule("inner.0.conv")) is nn.Conv2d
    assert binary_names(gm) == {"conv"}
    reasons = [remark.reason for remark in record_of(gm).refusals() if remark.subject == "inner.0"]
    assert len(reasons) == 1
    assert "torch.fx cannot trace it" in reasons[0]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ((torch.zeros(2, 4, 8, 8),), "'stem'"),
        ((torch.zeros(2, 3, 6, 6),), "'fc1'"),
        ((), "takes 1 input"),
        ((torch.zeros(2, 3, 8, 8),) * 2, "takes 1 input"),
        (torch.zeros(2, 3, 8, 8), "got Tensor"),
        (([1.0],), "got \\(list\\)"),
        ((torch.zeros(()),), "got \\(Tensor\\)"),
    ],
)
def test_wrong_example_inputs(inputs, said):
    with pytest.raises(ExampleInputError, match=said):
        bnnfx.convert(Chain(), "xnor", example_inputs=inputs)


def test_example_inputs_leave_no_trace():
    model = Chain()
    with_inputs = bnnfx.convert(model, "bireal", example_inputs=model.inputs())
    without = bnnfx.convert(model, "bireal")
    assert with_inputs.code == without.code
    assert all(torch.equal(a, b) for a, b in zip(with_inputs.buffers(), without.buffers(), strict=True))


# --- the result is an ordinary module --------------------------------------------------------------------------------


def through_torch_save(gm):
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda gm: pickle.loads(pickle.dumps(gm)),
    "torch.save": through_torch_save,
    "pickle of deepcopy": lambda gm: pickle.loads(pickle.dumps(copy.deepcopy(gm))),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("how", COPIES)
def test_copies_train_and_lower(how, scheme):
    model = Residual()
    x = model.inputs()
    gm = bnnfx.convert(model, scheme)
    again = COPIES[how](gm)
    assert again is not gm
    assert record_of(again) == record_of(gm)
    # unpickling traces anew: names of calls of functions may be renumbered, and those of a module's second and later
    # calls, of which the first may be gone; a module's first call keeps its name
    nodes, nodes_again = ([n for n in g.graph.nodes if n.op in ("placeholder", "call_module")] for g in (gm, again))
    assert [n.target for n in nodes_again] == [n.target for n in nodes]
    own = [(n.name, m.name) for n, m in zip(nodes, nodes_again, strict=True) if n.name == n.target.replace(".", "_")]
    assert len(own) > 5 and all(before == after for before, after in own)
    gm.eval(), again.eval()
    assert torch.equal(gm(*x), again(*x))
    loss_of(again.train(), x).backward()
    torch.optim.SGD(again.parameters(), 0.1).step()
    assert all(p.grad is None for p in gm.parameters())
    packed = bnnfx.lower(lowerable(again), x)
    # the folded batch norms round otherwise, and no bit of this input is within rounding of its threshold
    torch.testing.assert_close(packed(*x), again.eval()(*x), rtol=0, atol=1e-4)
    assert record_of(COPIES[how](packed)) == record_of(packed)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_double_precision(scheme):
    model = Chain()
    gm = bnnfx.convert(model, scheme).to(torch.float64)
    loss = loss_of(gm, model.inputs(dtype=torch.float64))
    loss.backward()
    grads = [p.grad for p in gm.parameters()]
    assert {p.dtype for p in gm.parameters()} == {torch.float64}
    assert all(g is not None and g.dtype is torch.float64 and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bfloat16_autocast_step_is_finite(scheme):
    model = Chain()
    gm = bnnfx.convert(model, scheme)
    with torch.autocast("cpu", torch.bfloat16):
        output = gm(*model.inputs())
    assert output.dtype is torch.bfloat16
    output.float().square().mean().backward()
    torch.optim.SGD(gm.parameters(), 0.1).step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gm.parameters())
    assert all(p.isfinite().all() for p in gm.parameters())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs_and_outputs(as_dict, scheme):
    model = ManyInputsOutputs(as_dict)
    x, skip = model.inputs()
    gm = bnnfx.convert(model, scheme, example_inputs=(x, skip))
    outputs, expected = gm(x, skip=skip), model(x, skip)
    assert type(outputs) is type(expected)
    assert [o.shape for o in flat(outputs)] == [o.shape for o in flat(expected)]
    if as_dict:
        assert list(outputs) == list(expected)
    gm.eval()
    assert not torch.equal(flat(gm(x, skip))[0], flat(gm(x, -skip))[0])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", HAZARDS)
def test_step_changes_the_loss(name, scheme):
    model = HAZARDS[name]()
    x = model.inputs()
    gm = bnnfx.convert(model, scheme, example_inputs=x)
    target = [torch.zeros_like(o) for o in flat(gm(*x))]
    optimizer = torch.optim.SGD(gm.parameters(), 0.01)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)  # the same dropout masks
        loss = sum((o - t + 1).square().mean() for o, t in zip(flat(gm(*x)), target, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] != losses[0]


def test_dropout_is_live_in_training_only():
    model = DropoutBeforeLinear()
    x = model.inputs()
    gm = bnnfx.convert(model, "bireal")
    assert not torch.equal(gm(*x), gm(*x))
    gm.eval()
    assert torch.equal(gm(*x), gm(*x))
