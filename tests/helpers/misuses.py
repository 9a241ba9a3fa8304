"""Public functions called wrongly, in every everyday way: one row per misuse, with what must come of it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import bnnfx
from bnnfx import Config, LayerConfig, analysis
from helpers.models import Chain, Residual
from helpers.ternary import networks, trainable

Call = Callable[["Given"], Any]
Check = Callable[[Any, "Given"], bool]


class Given:
    """What calls are made of; the folder is each call's own, what is shared is left as it is.

    Attributes:
        files: a folder with `chain.onnx`, one of our files, `original.onnx`, a foreign one, and some that are broken.
        folder: where a call may write.
    """

    def __init__(self, files: Path) -> None:
        self.files = files
        self.folder = files

    @cached_property
    def x(self) -> Tensor:
        return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    @cached_property
    def gm(self) -> Any:
        torch.manual_seed(0)
        return bnnfx.convert(Chain(), "xnor").eval()

    @cached_property
    def packed(self) -> Any:
        return bnnfx.lower(self.gm, (self.x,))

    @cached_property
    def ternary(self) -> Any:
        return trainable(networks()["vgg"]()).float()

    @cached_property
    def session(self) -> bnnfx.Session:
        return bnnfx.load(self.file, threads=1)

    @property
    def file(self) -> Path:
        return self.files / "chain.onnx"

    @property
    def target(self) -> Path:
        return self.folder / "model.onnx"

    def convert(self, model: Any = None, scheme: Any = "xnor", **options: Any) -> Any:
        return bnnfx.convert(Chain() if model is None else model, scheme, **options)

    def export(self, path: Any = None, **options: Any) -> Any:
        return bnnfx.export_onnx(self.packed, self.target if path is None else path, **options)

    def adam(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters())

    def loss(self, y: Tensor, *targets: Any) -> Tensor:
        return y.square().mean()

    def mismatch(self, model: Any = None, loss: Any = None, batches: Any = None, **options: Any) -> Any:
        """Of a small network with a float weight in front of a quantized activation."""
        torch.manual_seed(0)
        model = (
            nn.Sequential(nn.Linear(4, 3), bnnfx.nn.SignActivation(torch.sign), nn.Linear(3, 1))
            if model is None
            else model
        )
        given = [(torch.ones(2, 4), torch.ones(2, 1))] if batches is None else batches
        return analysis.gradient_mismatch(model, self.loss if loss is None else loss, given, **options)


@dataclass(frozen=True)
class Misuse:
    """One call.

    Attributes:
        name: the public function, and how it is called.
        call: calls it.
        expected: of the error, a pattern that its message has; or a check of the result.
    """

    name: str
    call: Call
    expected: str | Check


def rows(function: str, calls: dict[str, tuple[Call, str | Check]]) -> list[Misuse]:
    return [Misuse(f"{function}: {how}", call, expected) for how, (call, expected) in calls.items()]


# --- what is given for the inputs, to every function that takes some -------------------------------------------------

NO_TUPLE = r"example_inputs is a tuple of tensors whose first axis is the batch.* got {}\."
INPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a tensor": (lambda x: x, NO_TUPLE.format("Tensor")),
    "an array": (lambda x: x.numpy(), NO_TUPLE.format("ndarray")),
    "a tuple of an array": (lambda x: (x.numpy(),), NO_TUPLE.format(r"\(ndarray\)")),
    "a text": (lambda x: "1x3x8x8", NO_TUPLE.format("str")),
    "a generator": (lambda x: (y for y in [x]), NO_TUPLE.format("generator")),
    "a dictionary": (lambda x: {"x": x}, NO_TUPLE.format("dict")),
    "a shape": (lambda x: tuple(x.shape), NO_TUPLE.format(r"\(int, int, int, int\)")),
    "a tuple in a tuple": (lambda x: ((x,),), NO_TUPLE.format(r"\(tuple\)")),
    "no axes": (lambda x: (torch.tensor(1.0),), NO_TUPLE.format(r"\(Tensor\)")),
    "one more": (lambda x: (x, x), "takes 1 input"),
    "none in the tuple": (lambda x: (), "takes 1 input|needs example_inputs|got no tensor"),
    "None in front": (lambda x: (None, x), "None may only be last"),
    "channels last": (lambda x: (x.permute(0, 2, 3, 1),), "do not fit the model: 'stem"),
    "no batch": (lambda x: (x[0],), "do not fit the model"),
    "another size": (lambda x: (x[..., :3],), "do not fit the model"),
    "whole numbers": (lambda x: (x.long(),), "do not fit the model"),
    "complex": (lambda x: (x.to(torch.complex64),), "do not fit the model"),
    "truth values": (lambda x: (x > 0,), "do not fit the model"),
    "quantized": (lambda x: (torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),), "quantized"),
    "sparse": (lambda x: (x.to_sparse(),), "sparse"),
}
TAKERS: dict[str, Callable[[Given, Any], Any]] = {
    "convert": lambda g, x: g.convert(example_inputs=x),
    "lower": lambda g, x: bnnfx.lower(g.gm, x),
    "split": lambda g, x: bnnfx.split(g.ternary, x),
    "export_onnx": lambda g, x: bnnfx.export_onnx(g.gm, g.target, example_inputs=x),
    "verify": lambda g, x: bnnfx.verify(g.gm, g.packed, x),
    "summary": lambda g, x: bnnfx.summary(Chain(), x),
    "draw": lambda g, x: bnnfx.draw(Chain(), g.folder / "model.svg", example_inputs=x),
    "report": lambda g, x: bnnfx.report([Chain()], g.folder / "report.html", example_inputs=x),
}
UNCHECKED = {
    # what they say of a float model does not depend on the type of its inputs
    *((function, "whole numbers") for function in ("summary", "draw", "report")),
}

FOREIGN_INPUTS = [
    Misuse(
        f"{function}: inputs are {what}",
        lambda g, take=take, make=make: take(g, make(g.x)),
        message,
    )
    for function, take in TAKERS.items()
    for what, (make, message) in INPUTS.items()
    if (function, what) not in UNCHECKED
]


# --- models -----------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A network around some forward, which is given the network's own result, and the input."""

    def __init__(self, after: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net = Chain()
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self, self.net(x), x)


class Raises(Chain):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no such head")


class NoForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)


class Keywords(Chain):
    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * mask


class Variadic(Chain):
    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(inputs[0])


class Counting(Chain):
    """Keeps a count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Alone(nn.Module):
    """No input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self) -> Tensor:
        return self.conv(torch.ones(1, 3, 8, 8))


def shared() -> nn.Module:
    """Two layers with one weight."""
    model = Residual()
    model.block.conv2.weight = model.block.conv1.weight
    return model


def changed(change: Callable[[Any], object], model: nn.Module | None = None) -> nn.Module:
    model = Chain() if model is None else model
    change(model)
    return model


def same(y: Any, wanted: Any) -> bool:
    return torch.equal(torch.as_tensor(y), torch.as_tensor(wanted))


def converted(*binary: str) -> Check:
    """The result computes something, and these layers of it are binary."""
    return lambda gm, g: [n for n in binary if not isinstance(gm.get_submodule(n), bnnfx.nn.BinaryConv2d)] == []


NO_LAYER = "Nothing in this model can be binarized. torch.fx found no Conv1d, Conv2d or Linear in it"
MODELS = rows(
    "convert",
    {
        "None": (lambda g: bnnfx.convert(None, "xnor"), "NoneType given is no torch.nn.Module"),
        "a name": (lambda g: g.convert("resnet18"), "the str given is no torch.nn.Module"),
        "a list of modules": (lambda g: g.convert([nn.Conv2d(3, 3, 3)]), "the list given is no torch.nn.Module"),
        "a tensor": (lambda g: g.convert(g.x), "the Tensor given is no torch.nn.Module"),
        "a parameter": (lambda g: g.convert(nn.Parameter(g.x)), "the Parameter given is no torch.nn.Module"),
        "an array": (lambda g: g.convert(np.zeros(3)), "the ndarray given is no torch.nn.Module"),
        "a path": (lambda g: g.convert(g.file), "the PosixPath given is no torch.nn.Module"),
        "an optimizer": (lambda g: g.convert(g.adam(Chain())), "the Adam given is no torch.nn.Module"),
        "a session": (lambda g: g.convert(g.session), "the Session given is no torch.nn.Module"),
        "a scheme for a model": (lambda g: g.convert("xnor", Chain()), "Unknown scheme|the str given"),
        "an empty Sequential": (lambda g: g.convert(nn.Sequential()), NO_LAYER),
        "an Identity": (lambda g: g.convert(nn.Identity()), NO_LAYER),
        "a ModuleList": (lambda g: g.convert(nn.ModuleList([Chain()])), "ModuleList"),
        "a ModuleDict": (lambda g: g.convert(nn.ModuleDict({"a": Chain()})), "ModuleDict"),
        "no forward": (lambda g: g.convert(NoForward()), "NoForward"),
        "no weights": (lambda g: g.convert(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))), NO_LAYER),
        "one layer, kept float": (
            lambda g: g.convert(nn.Sequential(nn.Conv2d(3, 8, 3))),
            "leave 'first' out of Config.keep_float",
        ),
        "returns None": (lambda g: g.convert(Odd(lambda m, y, x: None), example_inputs=(g.x,)), NO_LAYER),
        "returns a text": (lambda g: g.convert(Odd(lambda m, y, x: "done"), example_inputs=(g.x,)), NO_LAYER),
        "returns a number": (lambda g: g.convert(Odd(lambda m, y, x: 3.0), example_inputs=(g.x,)), NO_LAYER),
        "returns its input": (lambda g: g.convert(Odd(lambda m, y, x: x), example_inputs=(g.x,)), NO_LAYER),
        "returns nothing but a list": (lambda g: g.convert(Odd(lambda m, y, x: []), example_inputs=(g.x,)), NO_LAYER),
        "raises": (lambda g: g.convert(Raises()), "no such head"),
        "takes keywords": (lambda g: g.convert(Keywords(), example_inputs=(g.x,)), "mask"),
        "takes any number": (lambda g: g.convert(Variadic(), example_inputs=(g.x,)), converted("conv1")),
        "takes no input": (lambda g: g.convert(Alone(), example_inputs=()), "Nothing in this model can be binarized"),
        "counts its calls": (lambda g: g.convert(Counting(), example_inputs=(g.x,)), converted("conv1")),
        "a lazy layer": (
            lambda g: g.convert(changed(lambda m: setattr(m, "conv1", nn.LazyConv2d(8, 3)))),
            lambda gm, g: bnnfx.explain(gm)["conv1"].findings[0].reason == "its weight is not made yet",
        ),
        "a weight that two layers share": (
            lambda g: g.convert(shared(), example_inputs=(g.x,)),
            lambda gm, g: gm.block.conv1.weight is gm.block.conv2.weight,
        ),
        "a parametrization": (
            lambda g: g.convert(changed(lambda m: parametrizations.weight_norm(m.conv1))),
            lambda gm, g: "remove_parametrizations" in bnnfx.explain(gm)["conv1"].findings[0].remedy,
        ),
        "half": (lambda g: g.convert(Chain().half(), example_inputs=(g.x.half(),)), converted("conv1")),
        "half, with other inputs": (lambda g: g.convert(Chain().half(), example_inputs=(g.x,)), "do not fit the model"),
        "double": (
            lambda g: g.convert(Chain().double(), example_inputs=(g.x.double(),)),
            lambda gm, g: gm.conv1.weight.dtype is torch.float64,
        ),
        "complex": (lambda g: g.convert(Chain().to(torch.complex64)), "its weight is torch.complex64"),
        "no gradients": (lambda g: g.convert(Chain().requires_grad_(False)), converted("conv1")),
        "on meta": (lambda g: g.convert(Chain().to("meta"), example_inputs=(g.x,)), converted("conv1")),
        "one layer on meta": (
            lambda g: g.convert(changed(lambda m: m.conv1.to("meta")), example_inputs=(g.x,)),
            converted("conv1"),
        ),
        "NaN in a weight": (
            lambda g: g.convert(changed(lambda m: m.conv1.weight.data.fill_(np.nan)), example_inputs=(g.x,)),
            converted("conv1"),
        ),
        "a hook that returns nothing": (
            lambda g: g.convert(
                changed(lambda m: m.conv1.register_forward_hook(lambda *a: None)), example_inputs=(g.x,)
            ),
            converted("conv1"),
        ),
        "a hook that raises": (
            lambda g: g.convert(
                changed(lambda m: m.conv1.register_forward_hook(lambda *a: {}["no such key"])), example_inputs=(g.x,)
            ),
            "no such key",
        ),
        "itself as a submodule": (
            lambda g: g.convert(changed(lambda m: object.__setattr__(m, "me", m))),
            converted("conv1"),
        ),
        # --- the scheme
        "no scheme": (lambda g: bnnfx.convert(Chain(), None), "Unknown scheme None; the known ones are: binaryduo"),
        "scheme misspelled": (lambda g: g.convert(scheme="xnornet"), "Unknown scheme 'xnornet'; the known ones are"),
        "scheme in capitals": (lambda g: g.convert(scheme="XNOR"), "Unknown scheme 'XNOR'; the known ones are"),
        "scheme with a space": (lambda g: g.convert(scheme="xnor "), "Unknown scheme 'xnor '; the known ones are"),
        "scheme as a list": (lambda g: g.convert(scheme=["xnor"]), r"Unknown scheme \['xnor'\]; the known ones are"),
        "scheme as bytes": (lambda g: g.convert(scheme=b"xnor"), "Unknown scheme b'xnor'; the known ones are"),
        "scheme as the class": (lambda g: g.convert(scheme=bnnfx.Scheme), "Unknown scheme <class"),
        # --- the configuration
        "config as a dictionary": (lambda g: g.convert(config={"keep_float": ()}), "config is a bnnfx.Config"),
        "config as a class": (lambda g: g.convert(config=Config), "config is a bnnfx.Config"),
        "config of a layer": (lambda g: g.convert(config=LayerConfig()), "config is a bnnfx.Config"),
        "config with an option of another scheme": (
            lambda g: g.convert(config=Config(options={"centre": True})),
            "Scheme 'xnor' has no option 'centre'",
        ),
        "config with an option of the wrong kind": (
            lambda g: g.convert(scheme="rbnn", config=Config(options={"centre": "yes"})),
            "Option 'centre' of scheme 'rbnn' is True or False; got 'yes'",
        ),
        "config with an option out of range": (
            lambda g: g.convert(scheme="rbnn", config=Config(options={"initial_share": 7.0})),
            "initial_share",
        ),
        "config with an option that is NaN": (
            lambda g: g.convert(scheme="rbnn", config=Config(options={"initial_share": float("nan")})),
            "initial_share",
        ),
        "config with a misspelled layer": (
            lambda g: g.convert(config=Config(layers={"conv9": LayerConfig(binarize=False)})),
            "Config.layers selects no layer with 'conv9'",
        ),
        "config with a misspelled width": (
            lambda g: g.convert(config=Config(widths={"conv9": 4})),
            "Config.widths selects no layer with 'conv9'",
        ),
        "config with an option of a layer misspelled": (
            lambda g: g.convert(config=Config(layers={"conv1": LayerConfig(options={"speed": 2})})),
            "has no option 'speed'",
        ),
        "config that keeps everything float": (
            lambda g: g.convert(config=Config(layers={"*": LayerConfig(binarize=False)})),
            "stays float because Config.layers says binarize=False",
        ),
        "check as a text": (lambda g: g.convert(check="no"), "check is True or False; got 'no'"),
        "check as None": (lambda g: g.convert(check=None), "check is True or False; got None"),
        # --- inputs that are right, if odd
        "inputs as a list": (lambda g: g.convert(example_inputs=[g.x]), converted("conv1")),
        "inputs on meta": (lambda g: g.convert(example_inputs=(g.x.to("meta"),)), converted("conv1")),
        "inputs of no sample": (lambda g: g.convert(example_inputs=(g.x[:0],)), converted("conv1")),
        "inputs that are NaN": (lambda g: g.convert(example_inputs=(g.x * np.nan,)), converted("conv1")),
        "inputs that are infinite": (lambda g: g.convert(example_inputs=(g.x / 0,)), converted("conv1")),
        "inputs with gradients": (
            lambda g: g.convert(example_inputs=(g.x.clone().requires_grad_(),)),
            converted("conv1"),
        ),
        "inputs as a parameter": (lambda g: g.convert(example_inputs=(nn.Parameter(g.x),)), converted("conv1")),
        "inputs in strides": (
            lambda g: g.convert(example_inputs=(g.x.transpose(2, 3),)),
            converted("conv1"),
        ),
        "inputs of half": (lambda g: g.convert(example_inputs=(g.x.half(),)), "do not fit the model"),
        "inputs of double": (lambda g: g.convert(example_inputs=(g.x.double(),)), "do not fit the model"),
        "inputs by position": (lambda g: bnnfx.convert(Chain(), "xnor", (g.x,)), "positional argument"),
        "an argument misspelled": (lambda g: g.convert(example_input=(g.x,)), "unexpected keyword argument"),
        "no arguments": (lambda g: bnnfx.convert(), "missing 2 required"),
    },
)

# --- stages and their order -------------------------------------------------------------------------------------------

STAGED: dict[str, Callable[[Given, Any], Any]] = {
    "lower": lambda g, gm: bnnfx.lower(gm, (g.x,)),
    "split": lambda g, gm: bnnfx.split(gm),
    "calibrate": lambda g, gm: bnnfx.calibrate(gm, [g.x]),
    "export_onnx": lambda g, gm: bnnfx.export_onnx(gm, g.target, example_inputs=(g.x,)),
    "export": lambda g, gm: bnnfx.export(gm, g.target, example_inputs=(g.x,)),
    "explain": lambda g, gm: bnnfx.explain(gm),
    "verify": lambda g, gm: bnnfx.verify(gm, g.packed, (g.x,)),
}
NO_GRAPHS: dict[str, tuple[Callable[[Given], Any], str]] = {
    "None": (lambda g: None, "got a NoneType"),
    "a float model": (lambda g: Chain(), "got a Chain"),
    "a class": (lambda g: Chain, "got a type"),
    "a state": (lambda g: g.gm.state_dict(), "got a OrderedDict"),
    "a tensor": (lambda g: g.x, "got a Tensor"),
    "a foreign graph": (lambda g: torch.fx.symbolic_trace(Chain()), "got a Chain"),
    "a list of graphs": (lambda g: [g.gm], "got a list"),
}
STAGES = [
    Misuse(f"{function}: {what}", lambda g, call=call, make=make: call(g, make(g)), message)
    for function, call in STAGED.items()
    for what, (make, message) in NO_GRAPHS.items()
]
STAGES += rows(
    "lower",
    {
        "a packed graph": (
            lambda g: bnnfx.lower(g.packed, (g.x,)),
            "lower takes a graph in stage trainable.*stage packed",
        ),
        "a ternary graph": (lambda g: bnnfx.lower(g.ternary, (g.x,)), "bnnfx.split"),
        "a file": (lambda g: bnnfx.lower(g.file, (g.x,)), "got a PosixPath"),
        "no inputs": (lambda g: bnnfx.lower(g.gm), "missing 1 required"),
        "inputs that are None": (lambda g: bnnfx.lower(g.gm, None), "example_inputs is a tuple"),
        "two tensors beside each other": (lambda g: bnnfx.lower(g.gm, g.x, g.x), "positional argument"),
        "check as a number": (lambda g: bnnfx.lower(g.gm, (g.x,), check=2), "check is True or False; got 2"),
        "weights on meta": (lambda g: bnnfx.lower(copy.deepcopy(g.gm).to("meta"), (g.x,)), "has no values"),
        "NaN in a float weight": (
            lambda g: bnnfx.lower(changed(lambda m: m.fc2.weight.data.fill_(np.nan), copy.deepcopy(g.gm)), (g.x,)),
            lambda gm, g: bool(gm(g.x).isnan().all()),
        ),
        "inputs of no sample": (lambda g: bnnfx.lower(g.gm, (g.x[:0],)), lambda gm, g: same(gm(g.x), g.packed(g.x))),
        "inputs on meta": (
            lambda g: bnnfx.lower(g.gm, (g.x.to("meta"),)),
            lambda gm, g: same(gm(g.x), g.packed(g.x)),
        ),
        "inputs that are NaN": (
            lambda g: bnnfx.lower(g.gm, (g.x * np.nan,)),
            lambda gm, g: same(gm(g.x), g.packed(g.x)),
        ),
        "inputs of half": (lambda g: bnnfx.lower(g.gm, (g.x.half(),)), "do not fit the model"),
        "a graph in training": (
            lambda g: bnnfx.lower(copy.deepcopy(g.gm).train(), (g.x,)),
            lambda gm, g: same(gm(g.x), g.packed(g.x)),
        ),
        "a graph of half": (
            lambda g: bnnfx.lower(copy.deepcopy(g.gm).half(), (g.x,)),
            lambda gm, g: gm(g.x).shape == (4, 4),
        ),
    },
)
STAGES += rows(
    "split",
    {
        "nothing ternary": (lambda g: bnnfx.split(g.gm), "this graph has none"),
        "a packed graph": (lambda g: bnnfx.split(g.packed), "stage packed"),
        "split before": (lambda g: bnnfx.split(bnnfx.split(g.ternary)), "was split before"),
        "check as a text": (lambda g: bnnfx.split(g.ternary, check="no"), "check is True or False; got 'no'"),
        "a scheme": (lambda g: bnnfx.split(g.ternary, scheme="binaryduo"), "unexpected keyword argument"),
    },
)
STAGES += rows(
    "explain",
    {
        "a file": (lambda g: bnnfx.explain(g.file), "got a PosixPath"),
    },
)

# --- calibration ------------------------------------------------------------------------------------------------------


def calibrated(g: Given, batches: Any, **options: Any) -> Any:
    return bnnfx.calibrate(copy.deepcopy(g.gm), batches, **options)


CALIBRATION = rows(
    "calibrate",
    {
        "a packed graph": (lambda g: bnnfx.calibrate(g.packed, [g.x]), "stage packed"),
        "no batches": (lambda g: calibrated(g, None), "batches"),
        "a number": (lambda g: calibrated(g, 3), "batches"),
        "a batch alone": (lambda g: calibrated(g, g.x), "batches"),
        "an array": (lambda g: calibrated(g, g.x.numpy()), "batches"),
        "a text": (lambda g: calibrated(g, "data"), "batches"),
        "a dictionary": (lambda g: calibrated(g, {"x": g.x}), "batches"),
        "a list of nothing": (lambda g: calibrated(g, []), "at least one batch"),
        "a list of arrays": (lambda g: calibrated(g, [g.x.numpy()]), "ndarray"),
        "batches with labels": (lambda g: calibrated(g, [(g.x, torch.zeros(4))]), "takes 1 input"),
        "batches that are dictionaries": (lambda g: calibrated(g, [{"x": g.x}]), "dict"),
        "batches of None": (lambda g: calibrated(g, [None]), "NoneType"),
        "batches of no sample": (lambda g: calibrated(g, [g.x[:0]]), "batch 0 has none"),
        "batches on meta": (lambda g: calibrated(g, [g.x.to("meta")]), "on the device meta has none"),
        "batches of another shape": (lambda g: calibrated(g, [g.x[:, :1]]), r"Batch 0 \(.*\) does not fit the model"),
        "batches without the batch": (lambda g: calibrated(g, [g.x[0]]), r"Batch 0 \(.*\) does not fit the model"),
        "batches of whole numbers": (lambda g: calibrated(g, [g.x.long()]), r"Batch 0 \(.*\) does not fit the model"),
        "batches that are sparse": (lambda g: calibrated(g, [g.x.to_sparse()]), "sparse"),
        "a second batch that does not fit": (
            lambda g: calibrated(g, [g.x, g.x[:, :1]]),
            r"Batch 1 \(.*\) does not fit the model",
        ),
        "a generator": (
            lambda g: calibrated(g, (x for x in [g.x])),
            lambda seen, g: str(seen) == str(calibrated(g, [g.x])),
        ),
        "batch_norm as a text": (lambda g: calibrated(g, [g.x], batch_norm="no"), "batch_norm is True or False"),
        "batch by batch": (lambda g: bnnfx.calibrate(copy.deepcopy(g.gm), g.x, g.x), "positional argument"),
    },
)

# --- schedule ---------------------------------------------------------------------------------------------------------


def schedule(g: Given, epochs: Any = 4, **options: Any) -> Any:
    return bnnfx.Schedule(copy.deepcopy(g.gm), epochs, **options)


WHOLE_NUMBERS = "Schedule needs whole numbers epochs >= 1"
SCHEDULE = rows(
    "Schedule",
    {
        "a float model": (lambda g: bnnfx.Schedule(Chain(), 4), "nothing to anneal in this Chain"),
        "a packed graph": (lambda g: bnnfx.Schedule(g.packed, 4), "nothing to anneal"),
        "None": (lambda g: bnnfx.Schedule(None, 4), "nothing to anneal in this NoneType"),
        "a class": (lambda g: bnnfx.Schedule(bnnfx.nn.BinaryConv2d, 4), "nothing to anneal in this type"),
        "no epochs": (lambda g: bnnfx.Schedule(g.gm), "missing 1 required"),
        "epochs of 0": (lambda g: schedule(g, 0), WHOLE_NUMBERS),
        "epochs of -1": (lambda g: schedule(g, -1), WHOLE_NUMBERS),
        "epochs as a float": (lambda g: schedule(g, 4.0), WHOLE_NUMBERS),
        "epochs as a text": (lambda g: schedule(g, "4"), WHOLE_NUMBERS),
        "epochs as None": (lambda g: schedule(g, None), WHOLE_NUMBERS),
        "epochs as a truth value": (lambda g: schedule(g, True), WHOLE_NUMBERS),
        "epochs as numpy has them": (lambda g: list(schedule(g, np.int64(3))), lambda y, g: y == [0, 1, 2]),
        "start beyond the end": (lambda g: schedule(g, start_epoch=5), WHOLE_NUMBERS),
        "start at -1": (lambda g: schedule(g, start_epoch=-1), WHOLE_NUMBERS),
        "start as None": (lambda g: schedule(g, start_epoch=None), WHOLE_NUMBERS),
        "start at the end": (lambda g: list(schedule(g, start_epoch=4)), lambda y, g: y == []),
        "step beyond the end": (lambda g: schedule(g).step(5), r"epoch is in \[0, 4\]; got 5"),
        "step at -1": (lambda g: schedule(g).step(-1), r"epoch is in \[0, 4\]; got -1"),
        "step at NaN": (lambda g: schedule(g).step(float("nan")), r"epoch is in \[0, 4\]; got nan"),
        "step at a text": (lambda g: schedule(g).step("1"), r"epoch is .*; got '1'"),
        "step at None": (lambda g: schedule(g).step(None), "epoch is .*; got None"),
        "step without an epoch": (lambda g: schedule(g).step(), "missing 1 required"),
    },
)

# --- configurations ---------------------------------------------------------------------------------------------------

CONFIGS = rows(
    "Config",
    {
        "keep_float as a text": (lambda g: Config(keep_float="first"), "Config.keep_float is a tuple of"),
        "keep_float misspelled": (lambda g: Config(keep_float=("frist",)), "Config.keep_float is a tuple of"),
        "keep_float with None": (lambda g: Config(keep_float=(None,)), "Config.keep_float is a tuple of"),
        "keep_float with a list": (lambda g: Config(keep_float=(["first"],)), "Config.keep_float is a tuple of"),
        "keep_float as None": (lambda g: Config(keep_float=None), "Config.keep_float is a tuple of"),
        "layers as a list": (lambda g: Config(layers=["conv1"]), "Config.layers is a dictionary"),
        "layers as None": (lambda g: Config(layers=None), "Config.layers is a dictionary"),
        "layers to truth values": (lambda g: Config(layers={"conv1": False}), "Config.layers maps names"),
        "layers by number": (lambda g: Config(layers={0: LayerConfig()}), "Config.layers maps names"),
        "layers by module": (lambda g: Config(layers={Chain(): LayerConfig()}), "Config.layers maps names"),
        "layers by another class": (lambda g: Config(layers={int: LayerConfig()}), "Config.layers maps names"),
        "options as a list": (lambda g: Config(options=[("centre", True)]), "Config.options is a dictionary"),
        "options by number": (lambda g: g.convert(config=Config(options={3: True})), "has no option 3"),
        "widths of 0": (lambda g: Config(widths={"conv1": 0}), "positive integers"),
        "widths as a float": (lambda g: Config(widths={"conv1": 4.0}), "positive integers"),
        "widths as a truth value": (lambda g: Config(widths={"conv1": True}), "positive integers"),
        "widths as a text": (lambda g: Config(widths={"conv1": "4"}), "positive integers"),
        "widths by class": (lambda g: Config(widths={nn.Conv2d: 4}), "positive integers"),
        "a field misspelled": (lambda g: Config(keepfloat=()), "unexpected keyword argument"),
    },
) + rows(
    "LayerConfig",
    {
        "binarize as a text": (lambda g: LayerConfig(binarize="no"), "LayerConfig.binarize is True, False or None"),
        "binarize as a number": (lambda g: LayerConfig(binarize=0), "LayerConfig.binarize is True, False or None"),
        "options as a list": (lambda g: LayerConfig(options=["centre"]), "LayerConfig.options is a dictionary"),
        "options as None": (lambda g: LayerConfig(options=None), "LayerConfig.options is a dictionary"),
    },
)

# --- registries -------------------------------------------------------------------------------------------------------


def scheme(**fields: Any) -> Any:
    known = {"name": "mine", "title": "", "source": "", "activation": lambda o: None, "weight": lambda m, o: None}
    return bnnfx.Scheme(**{**known, **fields})


REGISTRIES = (
    rows(
        "register_scheme",
        {
            "a name": (lambda g: bnnfx.register_scheme("mine"), "Scheme"),
            "None": (lambda g: bnnfx.register_scheme(None), "Scheme"),
            "the class": (lambda g: bnnfx.register_scheme(bnnfx.Scheme), "Scheme"),
            "a target": (lambda g: bnnfx.register_scheme(bnnfx.Target("mine", "", lambda gm: b"")), "Scheme"),
            "a name that is taken": (
                lambda g: bnnfx.register_scheme(scheme(name="xnor")),
                "named 'xnor' is registered already",
            ),
        },
    )
    + rows(
        "register_target",
        {
            "a function": (lambda g: bnnfx.register_target(lambda gm: b""), "Target"),
            "None": (lambda g: bnnfx.register_target(None), "Target"),
            "a scheme": (lambda g: bnnfx.register_target(scheme()), "Target"),
            "a name that is taken": (
                lambda g: bnnfx.register_target(bnnfx.Target("bnnfx", "", lambda gm: b"")),
                "named 'bnnfx' is registered already",
            ),
        },
    )
    + rows(
        "Scheme",
        {
            "nothing": (lambda g: bnnfx.Scheme(), "missing 5 required"),
            "name as a number": (lambda g: scheme(name=3), "Scheme.name"),
            "no name": (lambda g: scheme(name=""), "Scheme.name"),
            "activation that cannot be called": (lambda g: scheme(activation=3), "Scheme.activation"),
            "weight as a text": (lambda g: scheme(weight="sign"), "Scheme.weight"),
            "options as a list": (lambda g: scheme(options=["a"]), "Scheme.options"),
        },
    )
    + rows(
        "Target",
        {
            "nothing": (lambda g: bnnfx.Target(), "missing 3 required"),
            "name as None": (lambda g: bnnfx.Target(None, "", lambda gm: b""), "Target.name"),
            "content for a function": (lambda g: bnnfx.Target("mine", "", b""), "Target.render"),
            "options as a tuple": (lambda g: bnnfx.Target("mine", "", lambda gm: b"", ("a",)), "Target.options"),
        },
    )
    + rows("schemes", {"an argument": (lambda g: bnnfx.schemes("xnor"), "takes 0 positional")})
    + rows("targets", {"an argument": (lambda g: bnnfx.targets("onnx"), "takes 0 positional")})
    + rows("library_path", {"an argument": (lambda g: bnnfx.library_path("lib.so"), "takes 0 positional")})
)

# --- files that are written -------------------------------------------------------------------------------------------

PATHS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a folder": (lambda folder: folder, "is a folder|Is a directory"),
    "in no folder": (lambda folder: folder / "none" / "m.svg", "does not exist|No such file"),
    "in a file": (lambda folder: folder / "file" / "m.svg", "does not exist|Not a directory"),
    "of too long a name": (lambda folder: folder / ("n" * 300 + ".svg"), "File name too long"),
    "with a null byte": (lambda folder: f"{folder}/a\0b.svg", "A path has no null byte in it"),
    "that links to itself": (lambda folder: folder / "loop" / "m.svg", "symbolic links|does not exist"),
    "empty": (lambda folder: "", "is a folder|Is a directory|written as"),
    "None": (lambda folder: None, "A path is a text or a pathlib.Path; got None"),
    "a number": (lambda folder: 3, "A path is a text or a pathlib.Path; got 3"),
    "bytes": (lambda folder: b"model.svg", "A path is a text or a pathlib.Path; got b'model.svg'"),
    "an open file": (
        lambda folder: (folder / "file").open("rb"),
        "A path is a text or a pathlib.Path; got a BufferedReader",
    ),
}
WRITERS: dict[str, Callable[[Given, Any], Any]] = {
    "export": lambda g, path: bnnfx.export(g.packed, path),
    "export_onnx": lambda g, path: bnnfx.export_onnx(g.packed, path),
    "draw": lambda g, path: bnnfx.draw(g.packed, path),
    "report": lambda g, path: bnnfx.report([g.packed], path),
    "analysis.FlipHistory.save": lambda g, path: analysis.FlipHistory().save(path),
}


def furnish(folder: Path) -> None:
    """Puts a file and a link to itself where calls write."""
    (folder / "file").write_text("precious")
    (folder / "loop").symlink_to(folder / "loop")


def two_outputs(g: Given) -> Any:
    return bnnfx.lower(g.convert(Odd(lambda m, y, x: (y, y + 1.0))), (g.x,))


WRITTEN = [
    Misuse(
        f"{function}: path {what}",
        lambda g, write=write, make=make: write(g, make(g.folder)),
        message if (function, what) != ("draw", "a folder") else "is a folder|written as",
    )
    for function, write in WRITERS.items()
    for what, (make, message) in PATHS.items()
]
WRITTEN += rows(
    "export",
    {
        "target misspelled": (
            lambda g: bnnfx.export(g.packed, g.target, "onnx"),
            "Unknown target 'onnx'; the known ones",
        ),
        "target as None": (lambda g: bnnfx.export(g.packed, g.target, None), "Unknown target None; the known ones"),
        "target as the class": (lambda g: bnnfx.export(g.packed, g.target, bnnfx.Target), "Unknown target <class"),
        "path and target exchanged": (lambda g: bnnfx.export(g.packed, "standard", str(g.target)), "Unknown target"),
        "option misspelled": (
            lambda g: bnnfx.export(g.packed, g.target, opst=18),
            "Target 'bnnfx' has no option 'opst'",
        ),
        "check as a text": (lambda g: bnnfx.export(g.packed, g.target, check="no"), "check is True or False; got 'no'"),
        "no inputs to lower with": (lambda g: bnnfx.export(g.gm, g.target), "needs example_inputs"),
        "path and graph exchanged": (
            lambda g: bnnfx.export(str(g.target), g.packed),
            "A path is a text or a pathlib.Path; got a GraphModule",
        ),
    },
)
WRITTEN += rows(
    "export_onnx",
    {
        "dialect misspelled": (
            lambda g: g.export(dialect="standart"),
            "Unknown dialect 'standart'; the known ones are",
        ),
        "dialect as None": (lambda g: g.export(dialect=None), "Unknown dialect None; the known ones are"),
        "opset too old": (lambda g: g.export(opset=11), "opset is 18 or higher"),
        "opset too new": (lambda g: g.export(opset=99), "opset is .* or lower"),
        "opset as a text": (lambda g: g.export(opset="18"), "opset is a whole number; got '18'"),
        "opset as a float": (lambda g: g.export(opset=18.0), "opset is a whole number; got 18.0"),
        "opset as a truth value": (lambda g: g.export(opset=True), "opset is a whole number; got True"),
        "check as None": (lambda g: g.export(check=None), "check is True or False; got None"),
        "no inputs to lower with": (lambda g: bnnfx.export_onnx(g.gm, g.target), "needs example_inputs"),
        "a ternary graph": (lambda g: bnnfx.export_onnx(g.ternary, g.target, example_inputs=(g.x,)), "bnnfx.split"),
        "a path that is only a text": (
            lambda g: g.export(str(g.target)),
            lambda y, g: bool(bnnfx.verify(g.packed, y, (g.x,))),
        ),
        "input_names too many": (
            lambda g: g.export(input_names=["a", "b"]),
            r"input_names has 2 name\(s\), and the file has 1",
        ),
        "input_names as a text": (
            lambda g: g.export(input_names="x"),
            "input_names is a list of texts, one per input; got 'x'",
        ),
        "one name twice": (
            lambda g: bnnfx.export_onnx(two_outputs(g), g.target, output_names=["a", "a"]),
            "output_names has 'a' twice",
        ),
        "names of others exchanged": (
            lambda g: bnnfx.export_onnx(two_outputs(g), g.target, output_names=["x", "y"]),
            "'x', which is the name of an input",
        ),
        "output_names none": (lambda g: g.export(output_names=[]), r"output_names has 0 name\(s\)"),
        "output_names as a generator": (
            lambda g: g.export(output_names=(n for n in "a")),
            "output_names is a list of texts",
        ),
        "output_names with a number": (lambda g: g.export(output_names=[3]), "output_names is a list of texts"),
        "output_names empty": (lambda g: g.export(output_names=[""]), "output_names is a list of texts"),
        "output_names of an input": (lambda g: g.export(output_names=["x"]), "'x', which is the name of an input"),
        "output_names of a layer": (lambda g: g.export(output_names=["conv1_sign"]), "the name of a layer's result"),
        "both names the same": (
            lambda g: g.export(input_names=["a"], output_names=["a"]),
            "'a', which is the name of an input",
        ),
    },
)

# --- files that are read ----------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Puts broken files beside `chain.onnx` and `original.onnx`."""
    content = (folder / "chain.onnx").read_bytes()
    (folder / "text.onnx").write_text("nothing of the kind")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "half.onnx").write_bytes(content[: len(content) // 2])
    (folder / "short.onnx").write_bytes(content[:-7])
    (folder / "folder.onnx").mkdir()
    torch.save(Chain().state_dict(), folder / "weights.onnx")
    (folder / "list.json").write_text("[1, 2]")
    (folder / "half.json").write_text('{"records": [')


READ: dict[str, tuple[Callable[[Path], Any], str]] = {
    "that is missing": (lambda files: files / "none.onnx", "There is no file .*none.onnx"),
    "that is a folder": (lambda files: files / "folder.onnx", "folder.onnx is a folder|There is no file .*folder.onnx"),
    "with no name": (lambda files: "", "There is no file|path"),
    "of too long a name": (lambda files: "n" * 300 + ".onnx", "File name too long|There is no file"),
    "with a null byte": (lambda files: "a\0b.onnx", "A path has no null byte in it"),
    "of text": (lambda files: files / "text.onnx", "text.onnx is not a valid ONNX file"),
    "of nothing": (lambda files: files / "empty.onnx", "empty.onnx is not a valid ONNX file"),
    "cut in half": (lambda files: files / "half.onnx", "half.onnx is not a valid ONNX file"),
    "cut short": (lambda files: files / "short.onnx", "short.onnx is not a valid ONNX file"),
    "of weights": (lambda files: files / "weights.onnx", "weights.onnx is not a valid ONNX file"),
}
READERS: dict[str, Callable[[Given, Any], Any]] = {
    "load": lambda g, path: bnnfx.load(path),
    "verify": lambda g, path: bnnfx.verify(g.packed, path, (g.x,)),
    "summary": lambda g, path: bnnfx.summary(path),
    "draw": lambda g, path: bnnfx.draw(path, g.folder / "model.svg"),
    "report": lambda g, path: bnnfx.report([path], g.folder / "report.html"),
}
FILES_READ = [
    Misuse(f"{function}: file {what}", lambda g, read=read, make=make: read(g, make(g.files)), message)
    for function, read in READERS.items()
    for what, (make, message) in READ.items()
]
FILES_READ += rows(
    "load",
    {
        "None": (lambda g: bnnfx.load(None), "A path is a text or a pathlib.Path; got None"),
        "a number": (lambda g: bnnfx.load(3), "A path is a text or a pathlib.Path; got 3"),
        "bytes": (lambda g: bnnfx.load(g.file.read_bytes()[:9]), "A path is a text or a pathlib.Path; got b'"),
        "a graph": (lambda g: bnnfx.load(g.packed), "A path is a text or a pathlib.Path; got .*GraphModule"),
        "a list of paths": (lambda g: bnnfx.load([g.file]), r"A path is a text or a pathlib.Path; got \["),
        "threads of -1": (
            lambda g: bnnfx.load(g.file, threads=-1),
            "threads is a whole number of 0 or more, at most 1024; got -1",
        ),
        "threads as a text": (
            lambda g: bnnfx.load(g.file, threads="2"),
            "threads is a whole number of 0 or more, at most 1024; got '2'",
        ),
        "threads as a float": (
            lambda g: bnnfx.load(g.file, threads=1.5),
            "threads is a whole number of 0 or more, at most 1024; got 1.5",
        ),
        "threads as None": (
            lambda g: bnnfx.load(g.file, threads=None),
            "threads is a whole number of 0 or more, at most 1024; got None",
        ),
        "threads as a truth value": (lambda g: bnnfx.load(g.file, threads=True), "threads is a whole number"),
        "threads beyond all": (lambda g: bnnfx.load(g.file, threads=2**40), "threads is a whole number"),
        "threads as numpy has them": (
            lambda g: bnnfx.load(g.file, threads=np.int64(1)),
            lambda s, g: same(s.run(g.x), g.session.run(g.x)),
        ),
        "threads by position": (lambda g: bnnfx.load(g.file, 2), "positional argument"),
        "kernels as a path": (
            lambda g: bnnfx.load(g.file, kernels=bnnfx.library_path()),
            "kernels is True or False; got",
        ),
        "kernels as None": (lambda g: bnnfx.load(g.file, kernels=None), "kernels is True or False; got None"),
        "a foreign file": (lambda g: bnnfx.load(g.files / "original.onnx").run(g.x), lambda y, g: y.shape == (4, 4)),
    },
)

# --- sessions ---------------------------------------------------------------------------------------------------------

TAKES = r"The model takes x tensor\(float\).*; got {}"
SESSIONS = rows(
    "Session",
    {
        "None": (lambda g: bnnfx.Session(None), "InferenceSession"),
        "a path": (lambda g: bnnfx.Session(g.file), "InferenceSession"),
        "a session of ours": (lambda g: bnnfx.Session(g.session), "InferenceSession"),
        "run with a tuple": (lambda g: g.session.run((g.x,)), TAKES.format("")),
        "run with None": (lambda g: g.session.run(None), TAKES.format("object")),
        "run with a text": (lambda g: g.session.run("x"), TAKES.format("<U1")),
        "run with a dictionary": (lambda g: g.session.run({"x": g.x}), TAKES.format("object")),
        "run with a generator": (lambda g: g.session.run(x for x in [g.x]), TAKES.format("object")),
        "run with uneven lists": (lambda g: g.session.run([[1.0], [1.0, 2.0]]), "cannot be given to ONNX Runtime"),
        "run with a number": (lambda g: g.session.run(3.0), TAKES.format("float64")),
        "run with a model": (lambda g: g.session.run(Chain()), TAKES.format("object")),
        "run with names": (lambda g: g.session.run(x=g.x), "unexpected keyword argument"),
        "run with no axes": (lambda g: g.session.run(torch.tensor(1.0)), TAKES.format("float32")),
        "run without the batch": (lambda g: g.session.run(g.x[0]), TAKES.format("float32")),
        "run with one axis more": (lambda g: g.session.run(g.x[None]), TAKES.format("float32")),
        "run on no sample": (lambda g: g.session.run(g.x[:0]), lambda y, g: y.shape == (0, 4)),
        "run on NaN": (lambda g: g.session.run(g.x * np.nan), lambda y, g: y.shape == (4, 4)),
        "run on infinities": (lambda g: g.session.run(g.x / 0), lambda y, g: y.shape == (4, 4)),
        "run on expanded values": (
            lambda g: g.session.run(g.x[:1].expand(4, -1, -1, -1)),
            lambda y, g: same(y, g.session.run(g.x[:1].repeat(4, 1, 1, 1))),
        ),
        "run with gradients": (
            lambda g: g.session.run(nn.Parameter(g.x)),
            lambda y, g: same(y, g.session.run(g.x)),
        ),
        "run on double": (lambda g: g.session.run(g.x.double()), TAKES.format("float64")),
        "run on half": (lambda g: g.session.run(g.x.half()), TAKES.format("float16")),
        "run on bfloat16": (lambda g: g.session.run(g.x.bfloat16()), "cannot be given to ONNX Runtime"),
        "run on meta": (lambda g: g.session.run(g.x.to("meta")), "cannot be given to ONNX Runtime"),
        "run on sparse": (lambda g: g.session.run(g.x.to_sparse()), "cannot be given to ONNX Runtime"),
        "run on quantized": (
            lambda g: g.session.run(torch.quantize_per_tensor(g.x, 0.1, 0, torch.quint8)),
            "cannot be given to ONNX Runtime",
        ),
        "run on nested": (
            lambda g: g.session.run(torch.nested.nested_tensor([g.x[0], g.x[1]])),
            "cannot be given to ONNX Runtime",
        ),
        "run on a masked array": (
            lambda g: g.session.run(np.ma.masked_array(g.x.numpy(), mask=False)),
            lambda y, g: same(y, g.session.run(g.x)),
        ),
    },
)

# --- comparison, costs, pictures, pages ------------------------------------------------------------------------------


def exported(g: Given, model: nn.Module, *inputs: Tensor) -> Path:
    return bnnfx.export_onnx(g.convert(model), g.files / "other.onnx", example_inputs=inputs)


INSPECTION = (
    rows(
        "verify",
        {
            "one model": (lambda g: bnnfx.verify(g.gm, (g.x,)), "missing 1 required"),
            "two float models": (lambda g: bnnfx.verify(Chain(), Chain(), (g.x,)), "got a Chain"),
            "inputs first": (lambda g: bnnfx.verify((g.x,), g.gm, g.packed), "example_inputs is a tuple|got a tuple"),
            "a session": (lambda g: bnnfx.verify(g.gm, g.session, (g.x,)), "got a Session"),
            "another network": (
                lambda g: bnnfx.verify(g.gm, g.convert(Residual()), (g.x,)),
                "not two forms of one model",
            ),
            "another network's file": (
                lambda g: bnnfx.verify(g.gm, g.files / "original.onnx", (g.x,)),
                "original.onnx",
            ),
            "no sample": (lambda g: bnnfx.verify(g.gm, g.packed, (g.x[:0],)), "one sample or more"),
            "inputs on meta": (lambda g: bnnfx.verify(g.gm, g.packed, (g.x.to("meta"),)), "needs values"),
            "itself": (lambda g: bnnfx.verify(g.gm, g.gm, (g.x,)), lambda v, g: bool(v) and v.moved == 0),
            "inputs that are NaN": (lambda g: bnnfx.verify(g.gm, g.packed, (g.x * np.nan,)), lambda v, g: v.moved == 0),
        },
    )
    + rows(
        "summary",
        {
            "None": (lambda g: bnnfx.summary(None), "NoneType"),
            "a class": (lambda g: bnnfx.summary(Chain, (g.x,)), "a type.*|is a class"),
            "a state": (lambda g: bnnfx.summary(Chain().state_dict(), (g.x,)), "dict"),
            "a list": (lambda g: bnnfx.summary([Chain()], (g.x,)), "list"),
            "bytes": (lambda g: bnnfx.summary(b"chain.onnx"), "bytes"),
            "a float model without inputs": (lambda g: bnnfx.summary(Chain()), "needs example_inputs"),
            "a graph without inputs": (lambda g: bnnfx.summary(g.gm), "needs example_inputs"),
            "no sample": (lambda g: bnnfx.summary(Chain(), (g.x[:0],)), "at least one|sample"),
            "a model that raises": (lambda g: bnnfx.summary(Raises(), (g.x,)), "no such head"),
            "no weights": (lambda g: bnnfx.summary(nn.ReLU(), (g.x,)), lambda s, g: s.totals.float_macs == 0),
            "inputs on meta": (
                lambda g: bnnfx.summary(Chain(), (g.x.to("meta"),)),
                lambda s, g: s.totals == bnnfx.summary(Chain(), (g.x,)).totals,
            ),
            "inputs of whole numbers": (
                lambda g: bnnfx.summary(Chain(), (g.x.long(),)),
                lambda s, g: s.totals == bnnfx.summary(Chain(), (g.x,)).totals,
            ),
        },
    )
    + rows(
        "draw",
        {
            "None": (lambda g: bnnfx.draw(None, g.folder / "m.svg"), "NoneType"),
            "a class": (lambda g: bnnfx.draw(Chain, g.folder / "m.svg"), "is a class|a type"),
            "a list": (lambda g: bnnfx.draw([g.gm], g.folder / "m.svg"), "list"),
            "another format": (lambda g: bnnfx.draw(g.gm, g.folder / "m.pdf"), "written as .svg or .png; got 'm.pdf'"),
            "no format": (lambda g: bnnfx.draw(g.gm, g.folder / "m"), "written as .svg or .png; got 'm'"),
            "no path": (lambda g: bnnfx.draw(g.gm), "missing 1 required"),
            "path and graph exchanged": (
                lambda g: bnnfx.draw(g.folder / "m.svg", g.gm),
                "A path is a text or a pathlib.Path; got",
            ),
            "a model that raises": (lambda g: bnnfx.draw(Raises(), g.folder / "m.svg"), "no such head"),
        },
    )
    + rows(
        "report",
        {
            "one graph": (lambda g: bnnfx.report(g.gm, g.folder / "r.html"), "report takes a list of modules"),
            "one path": (lambda g: bnnfx.report("chain.onnx", g.folder / "r.html"), "report takes a list of modules"),
            "None": (lambda g: bnnfx.report(None, g.folder / "r.html"), "report takes a list of modules"),
            "None in the list": (
                lambda g: bnnfx.report([g.gm, None], g.folder / "r.html"),
                "report takes a list of modules",
            ),
            "a class in the list": (
                lambda g: bnnfx.report([Chain], g.folder / "r.html"),
                "report takes a list of modules",
            ),
            "an empty list": (lambda g: bnnfx.report([], g.folder / "r.html"), "at least one module"),
            "a generator": (
                lambda g: bnnfx.report((m for m in [g.gm]), g.folder / "r.html"),
                lambda y, g: "conv1" in y.read_text(),
            ),
            "one graph twice": (lambda g: bnnfx.report([g.gm, g.gm], g.folder / "r.html"), lambda y, g: y.is_file()),
            "flips as a list": (lambda g: bnnfx.report([g.gm], g.folder / "r.html", flips=[1]), "flips"),
            "flips as the rate": (
                lambda g: bnnfx.report([g.gm], g.folder / "r.html", flips=analysis.FlipRate(g.gm)),
                "flips|FlipHistory",
            ),
            "flips that are missing": (
                lambda g: bnnfx.report([g.gm], g.folder / "r.html", flips="none.json"),
                "none.json",
            ),
            "flips of something else": (
                lambda g: bnnfx.report([g.gm], g.folder / "r.html", flips=g.files / "list.json"),
                "is no history of flips",
            ),
            "bench as a list": (
                lambda g: bnnfx.report([g.gm], g.folder / "r.html", bench=[1]),
                "no result of a benchmark",
            ),
            "bench that is missing": (
                lambda g: bnnfx.report([g.gm], g.folder / "r.html", bench="none.json"),
                "none.json",
            ),
            "bench of something else": (
                lambda g: bnnfx.report([g.gm], g.folder / "r.html", bench=g.files / "list.json"),
                "no result of a benchmark",
            ),
            "bench cut in half": (
                lambda g: bnnfx.report([g.gm], g.folder / "r.html", bench=g.files / "half.json"),
                "no result of a benchmark",
            ),
            "bench with rubbish": (
                lambda g: bnnfx.report([g.gm], g.folder / "r.html", bench={"machine": 1, "models": 2, "notes": 3}),
                "no result of a benchmark",
            ),
        },
    )
)

# --- analysis ---------------------------------------------------------------------------------------------------------

NO_LAYERS = "needs binary layers, and this {} has none"
ANALYSIS = (
    rows(
        "analysis.FlipRate",
        {
            "None": (lambda g: analysis.FlipRate(None), NO_LAYERS.format("NoneType")),
            "a float model": (lambda g: analysis.FlipRate(Chain()), NO_LAYERS.format("Chain")),
            "a packed graph": (lambda g: analysis.FlipRate(g.packed), "needs binary layers"),
            "every 0": (lambda g: analysis.FlipRate(g.gm, every=0), "every is a whole number of 1 or more; got 0"),
            "every text": (
                lambda g: analysis.FlipRate(g.gm, every="2"),
                "every is a whole number of 1 or more; got '2'",
            ),
            "every half": (
                lambda g: analysis.FlipRate(g.gm, every=1.5),
                "every is a whole number of 1 or more; got 1.5",
            ),
            "no update": (
                lambda g: analysis.FlipRate(g.gm).to_dict(),
                lambda d, g: d["layers"]["conv1"]["step"] == 0.0,
            ),
        },
    )
    + rows(
        "analysis.FlipHistory.load",
        {
            "missing": (lambda g: analysis.FlipHistory.load(g.files / "none.json"), "none.json"),
            "a folder": (lambda g: analysis.FlipHistory.load(g.files), "folder|directory"),
            "a list": (lambda g: analysis.FlipHistory.load(g.files / "list.json"), "is no history of flips"),
            "half a file": (lambda g: analysis.FlipHistory.load(g.files / "half.json"), "is no history of flips"),
            "no text": (lambda g: analysis.FlipHistory.load(g.file), "is no history of flips"),
            "None": (lambda g: analysis.FlipHistory.load(None), "A path is a text or a pathlib.Path; got None"),
        },
    )
    + rows(
        "analysis.quantization_error",
        {
            "None": (lambda g: analysis.quantization_error(None), NO_LAYERS.format("NoneType")),
            "a float model": (lambda g: analysis.quantization_error(Chain()), NO_LAYERS.format("Chain")),
            "a class": (lambda g: analysis.quantization_error(Chain), NO_LAYERS.format("type")),
            "bins of 0": (
                lambda g: analysis.quantization_error(g.gm, bins=0),
                "bins is a whole number of 1 or more; got 0",
            ),
            "bins as a text": (lambda g: analysis.quantization_error(g.gm, bins="64"), "bins is a whole number"),
            "bins as a list": (lambda g: analysis.quantization_error(g.gm, bins=[0.0, 1.0]), "bins is a whole number"),
            "seed as a text": (lambda g: analysis.quantization_error(g.gm, seed="a"), "seed is a whole number"),
            "seed as None": (lambda g: analysis.quantization_error(g.gm, seed=None), "seed is a whole number"),
            "weights on meta": (lambda g: analysis.quantization_error(copy.deepcopy(g.gm).to("meta")), "meta"),
            "weights of 0": (
                lambda g: analysis.quantization_error(
                    changed(lambda m: m.conv1.weight.data.zero_(), copy.deepcopy(g.gm))
                ),
                lambda e, g: e["conv1"].weight.cosine == 0.0,
            ),
        },
    )
    + rows(
        "analysis.gradient_mismatch",
        {
            "None": (
                lambda g: analysis.gradient_mismatch(None, g.loss, [(g.x,)]),
                "model is a torch.nn.Module; got None",
            ),
            "a class": (lambda g: g.mismatch(model=Chain), "type|class"),
            "a model that quantizes nothing": (lambda g: g.mismatch(model=nn.Linear(4, 1)), "finds none"),
            "loss as a text": (lambda g: g.mismatch(loss="mse"), "loss is a function; got 'mse'"),
            "loss as None": (
                lambda g: analysis.gradient_mismatch(nn.Linear(4, 1), None, [(torch.ones(2, 4),)]),
                "loss is a function",
            ),
            "loss of a vector": (lambda g: g.mismatch(loss=lambda y, t: y.square()), "scalar"),
            "loss of a number": (lambda g: g.mismatch(loss=lambda y, t: 3.0), "scalar|tensor"),
            "loss of None": (lambda g: g.mismatch(loss=lambda y, t: None), "scalar|tensor"),
            "loss that takes less": (lambda g: g.mismatch(loss=lambda y: y.mean()), "loss"),
            "loss without a gradient": (lambda g: g.mismatch(loss=lambda y, t: y.detach().mean()), "gradient"),
            "batches as a tensor": (lambda g: g.mismatch(batches=torch.ones(2, 4)), "batch"),
            "batches as None": (lambda g: analysis.gradient_mismatch(nn.Linear(4, 1), g.loss, None), "batches"),
            "no batch": (lambda g: g.mismatch(batches=[]), "at least one batch"),
            "a batch that is a tensor": (
                lambda g: g.mismatch(batches=[torch.ones(2, 4)]),
                r"A batch is a tuple \(inputs",
            ),
            "a batch of nothing": (lambda g: g.mismatch(batches=[()]), r"A batch is a tuple \(inputs"),
            "a batch of another shape": (
                lambda g: g.mismatch(batches=[(torch.ones(2, 5), torch.ones(2, 1))]),
                "The model cannot be called with a batch",
            ),
            "a batch on meta": (lambda g: g.mismatch(batches=[(torch.ones(2, 4, device="meta"), 0)]), "meta"),
            "layers as a text": (lambda g: g.mismatch(layers="0"), "layers is a list of names, or None; got '0'"),
            "layers misspelled": (lambda g: g.mismatch(layers=["fc"]), "There is no float parameter 'fc'"),
            "layers by number": (lambda g: g.mismatch(layers=[0]), "layers is a list of names"),
            "layers of none": (lambda g: g.mismatch(layers=[]), "layers"),
            "epsilon of 0": (lambda g: g.mismatch(epsilon=0), "epsilon is a positive number"),
            "epsilon of NaN": (lambda g: g.mismatch(epsilon=float("nan")), "epsilon is a positive number"),
            "epsilon as a text": (lambda g: g.mismatch(epsilon="0.1"), "epsilon is a positive number"),
            "epsilon as None": (lambda g: g.mismatch(epsilon=None), "epsilon is a positive number"),
            "epsilon of none": (lambda g: g.mismatch(epsilon=()), "epsilon is a positive number"),
            "epsilon as a tensor": (lambda g: g.mismatch(epsilon=torch.tensor(0.1)), "epsilon is a positive number"),
            "coordinates of 0": (lambda g: g.mismatch(coordinates=0), "coordinates is a whole number of 1 or more"),
            "coordinates as a text": (
                lambda g: g.mismatch(coordinates="all"),
                "coordinates is a whole number of 1 or more",
            ),
            "coordinates as a share": (
                lambda g: g.mismatch(coordinates=0.5),
                "coordinates is a whole number of 1 or more",
            ),
            "chunk_size of 0": (lambda g: g.mismatch(chunk_size=0), "chunk_size is a whole number of 1 or more"),
            "chunk_size as a float": (
                lambda g: g.mismatch(chunk_size=2.0),
                "chunk_size is a whole number of 1 or more",
            ),
            "seed as a text": (lambda g: g.mismatch(seed="a", coordinates=2), "seed is a whole number"),
            "progress as a text": (lambda g: g.mismatch(progress="no"), "progress is True or False"),
        },
    )
    + rows(
        "analysis.discrete_gradient",
        {
            "no function": (
                lambda g: analysis.discrete_gradient(None, torch.ones(2), 0.1),
                "function is a function; got None",
            ),
            "a vector": (lambda g: analysis.discrete_gradient(lambda x: x, torch.ones(2), 0.1), "must return a scalar"),
            "a number": (lambda g: analysis.discrete_gradient(lambda x: 3.0, torch.ones(2), 0.1), "scalar|tensor"),
            "theta as a list": (lambda g: analysis.discrete_gradient(torch.sum, [1.0], 0.1), "theta is a float tensor"),
            "theta of whole numbers": (
                lambda g: analysis.discrete_gradient(torch.sum, torch.ones(2).long(), 0.1),
                "theta is a float tensor",
            ),
            "theta of nothing": (
                lambda g: analysis.discrete_gradient(torch.sum, torch.ones(0), 0.1),
                lambda y, g: y.shape == (0,),
            ),
            "epsilon as a text": (lambda g: analysis.discrete_gradient(torch.sum, torch.ones(2), "0.1"), "epsilon"),
            "epsilon of -1": (lambda g: analysis.discrete_gradient(torch.sum, torch.ones(2), -1.0), "epsilon"),
            "epsilon too small": (
                lambda g: analysis.discrete_gradient(torch.sum, torch.ones(2), 1e-30),
                "lost in the rounding",
            ),
            "coordinates out of range": (
                lambda g: analysis.discrete_gradient(torch.sum, torch.ones(2), 0.1, coordinates=torch.tensor([2])),
                "coordinates",
            ),
            "coordinates as a list": (
                lambda g: analysis.discrete_gradient(torch.sum, torch.ones(2), 0.1, coordinates=[0]),
                "coordinates",
            ),
            "coordinates as floats": (
                lambda g: analysis.discrete_gradient(torch.sum, torch.ones(2), 0.1, coordinates=torch.zeros(1)),
                "coordinates",
            ),
            "chunk_size as a text": (
                lambda g: analysis.discrete_gradient(torch.sum, torch.ones(2), 0.1, chunk_size="1"),
                "chunk_size is a whole number",
            ),
        },
    )
)

# --- optimizers -------------------------------------------------------------------------------------------------------

OPTIMIZERS = rows(
    "split_optimizer_state",
    {
        "None": (
            lambda g: bnnfx.split_optimizer_state(None, g.ternary, g.ternary),
            "optimizer is a torch.optim.Optimizer; got None",
        ),
        "a state": (
            lambda g: bnnfx.split_optimizer_state(g.adam(g.ternary).state_dict(), g.ternary, g.ternary),
            "optimizer is a torch.optim.Optimizer",
        ),
        "a class": (
            lambda g: bnnfx.split_optimizer_state(torch.optim.Adam, g.ternary, g.ternary),
            "optimizer is a torch.optim.Optimizer",
        ),
        "no model": (
            lambda g: bnnfx.split_optimizer_state(g.adam(g.ternary), None, g.ternary),
            "model is a torch.nn.Module; got None",
        ),
        "states of models": (
            lambda g: bnnfx.split_optimizer_state(g.adam(g.ternary), g.ternary, g.ternary.state_dict()),
            "split_model is a torch.nn.Module",
        ),
        "models exchanged": (
            lambda g: bnnfx.split_optimizer_state(g.adam(g.ternary), bnnfx.split(g.ternary), g.ternary),
            "give the model that it optimizes",
        ),
        "another model": (
            lambda g: bnnfx.split_optimizer_state(g.adam(g.ternary), g.ternary, g.gm),
            "split_model lacks|not a model and its split",
        ),
        "one model twice": (
            lambda g: bnnfx.split_optimizer_state(g.adam(g.ternary), g.ternary, g.ternary),
            lambda state, g: state == g.adam(g.ternary).state_dict(),
        ),
    },
)

ALL = [
    *FOREIGN_INPUTS,
    *MODELS,
    *STAGES,
    *CALIBRATION,
    *SCHEDULE,
    *CONFIGS,
    *REGISTRIES,
    *WRITTEN,
    *FILES_READ,
    *SESSIONS,
    *INSPECTION,
    *ANALYSIS,
    *OPTIMIZERS,
]
