"""One node of a packed operator with its operands, chosen to be hazardous: for bodies, kernels and whoever runs nodes.

What is expected is what the reference operator of `bnnfx.ops` gives; `tests/ops` holds that against plain torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bnnfx.backends.onnx.functions import OLDEST_OPSET, function_protos
from bnnfx.backends.onnx.symbolic import from_onnx
from bnnfx.numerics.bits import pack_bits
from bnnfx.ops import BY_ONNX_NAME, OPSET_VERSION
from bnnfx.ops.epilogue import Epilogue
from bnnfx.ops.fused_conv2d import FUSED_CONV2D
from bnnfx.ops.packed_op import ONNX_DOMAIN
from bnnfx.ops.steps import STEPS

Array = NDArray[Any]
Floats = NDArray[np.float32]
INT32 = np.iinfo(np.int32)

FUSED = {op.onnx_name: epilogue for epilogue, op in FUSED_CONV2D.items()}
"""The epilogues by the name of their node."""

THRESHOLDS = ("BinaryConv2dThreshold", "BinaryConv2dTwiceThreshold")
"""Convolutions whose thresholds are integers."""

REPRESENTATIVES = (
    *THRESHOLDS,
    "BinaryConv2dFloat",
    "BinaryConv2dBits",
    "BinaryConv2dClampFloatBits",
    "BinaryConv2dPreluAddBits",
    "BinaryConv2dShiftedPreluAddClampFloatBits",
    "BinaryConv2dAddShiftedPreluFloatBits",
    "BinaryConv2dHardswishAddFloatBits",
    "BinaryConv2dTwiceFloat",
    "BinaryConv2dTwicePreluAddClampFloatBits",
)
"""Convolutions that have every step, every output and every place of a constant between them."""

_TYPES = {"float": TensorProto.FLOAT, "bits": TensorProto.UINT8}


@dataclass
class Case:
    """One node: `inputs` are graph inputs, `constants` are initializers, `attributes` are spelled as in ONNX."""

    name: str
    inputs: dict[str, Array]
    constants: dict[str, Array] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def x(self) -> Array:
        return self.inputs["x"]

    def expected(self) -> list[Array]:
        """What the reference operator gives, one array per output."""
        op = BY_ONNX_NAME[self.name]
        if "pads" in self.attributes:
            top, left, bottom, right = self.attributes["pads"]
            assert (top, left) == (bottom, right), "the torch operators take one number per axis"
        given = self.inputs | self.constants
        assert set(given) == set(op.tensors), f"{self.name} takes {op.tensors}, not {sorted(given)}"
        attributes = from_onnx(self.attributes)
        tensors = [torch.from_numpy(np.array(given[name])) for name in op.tensors]
        result = op.target(*tensors, *(attributes[name] for name in op.attributes))
        results = (result,) if isinstance(result, torch.Tensor) else result
        assert len(results) == len(op.outputs)
        return [np.asarray(tensor.numpy()) for tensor in results]

    def model(
        self,
        *,
        opset: int = OLDEST_OPSET,
        functions: bool = True,
        open_map: bool = False,
        open_all: bool = False,
        any_rank: bool = False,
        as_inputs: Sequence[str] = (),
    ) -> onnx.ModelProto:
        """The model.

        Args:
            opset: of the standard operators.
            functions: whether the node has its body of standard operators.
            open_map: rows and columns are known only when the model runs.
            open_all: no size is.
            any_rank: nor is the number of axes.
            as_inputs: constants that become graph inputs instead.
        """
        op = BY_ONNX_NAME[self.name]
        node = helper.make_node(
            self.name,
            [name for name in op.tensors if name in self.inputs or name in self.constants],
            [f"y_{output}" for output in op.outputs],
            name="the_node",
            domain=ONNX_DOMAIN,
            **self.attributes,
        )
        spatial = (2, 3) if self.name == "Pack" else (1, 2)

        def sizes(name: str, value: Array) -> list[Any] | None:
            if any_rank:
                return None
            opened = range(value.ndim) if open_all else (0, *spatial) if open_map else (0,)
            shared = "N" if not open_all else f"{name}0"
            return [(shared if i == 0 else f"{name}{i}") if i in opened else value.shape[i] for i in range(value.ndim)]

        results: list[list[Any]] = [[f"{output}{i}" for i in range(4)] for output in op.outputs]
        if not (open_map or open_all):
            results = [["N", *result.shape[1:]] for result in self.expected()]
        inputs = self.inputs | {name: self.constants[name] for name in as_inputs}
        kept = {name: value for name, value in self.constants.items() if name not in as_inputs}
        graph = helper.make_graph(
            [node],
            "case",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), sizes(name, value))
                for name, value in inputs.items()
            ],
            [
                helper.make_tensor_value_info(f"y_{output}", _TYPES[output], dims)
                for output, dims in zip(op.outputs, results, strict=True)
            ],
            [numpy_helper.from_array(value, name) for name, value in kept.items()],
        )
        imports = [helper.make_opsetid("", opset), helper.make_opsetid(ONNX_DOMAIN, OPSET_VERSION)]
        bodies = _bodies(self.name, opset) if functions else ()
        return helper.make_model(graph, opset_imports=imports, functions=bodies, ir_version=9)


@cache
def _bodies(name: str, opset: int) -> tuple[onnx.FunctionProto, ...]:
    return tuple(function_protos({name}, opset))


def assert_same(actual: Sequence[Array], expected: Sequence[Array], hint: object = "") -> None:
    """Equal in number, type, shape and every bit; so 0.0 and -0.0 differ. One NaN is as good as another."""
    assert len(actual) == len(expected), hint
    for number, (given, wanted) in enumerate(zip(actual, expected, strict=True)):
        where = f"output {number}; {hint}"
        assert (given.dtype, given.shape) == (wanted.dtype, wanted.shape), where
        raw = np.dtype(f"u{wanted.dtype.itemsize}")
        differs = np.ascontiguousarray(given).view(raw) != np.ascontiguousarray(wanted).view(raw)
        if wanted.dtype.kind == "f":
            differs &= ~(np.isnan(given) & np.isnan(wanted))
        places = np.argwhere(differs)
        assert len(places) == 0, f"{len(places)} of {wanted.size} differ, first at {places[0]}; {where}"


# --- convolutions ---


def random_bits(rng: np.random.Generator, *shape: int) -> Array:
    """Packed rows of random bits; the last axis counts bits."""
    return pack_bits(rng.random(shape) < 0.5)


def window(pad: Sequence[int], stride: Sequence[int] = (1, 1), dilation: Sequence[int] = (1, 1)) -> dict[str, Any]:
    """The geometry attributes, with the same padding on both sides."""
    return {"strides": list(stride), "pads": [*pad, *pad], "dilations": list(dilation)}


def random_window(rng: np.random.Generator, kernel: int) -> tuple[list[int], list[int], dict[str, Any]]:
    """Kernel up to `kernel`, the size of a map that it fits into, and the attributes."""
    shape = rng.integers(1, kernel + 1, 2)
    dilation, stride, pad = rng.integers(1, 4, 2), rng.integers(1, 4, 2), rng.integers(0, 4, 2)
    least = np.maximum(1, dilation * (shape - 1) + 1 - 2 * pad)
    size = least + rng.integers(0, 9, 2)
    return shape.tolist(), size.tolist(), window(pad.tolist(), stride.tolist(), dilation.tolist())


def convolution(
    rng: np.random.Generator, name: str, x: Array, weight: Array, channels: int, attributes: dict[str, Any]
) -> Case:
    """A convolution, fused or with integer thresholds, of given bits, with hazardous constants and residual.

    The attributes have `groups` and `low` among them.
    """
    attributes = {"channels": channels, **attributes}
    copies = 2 if "Twice" in name else 1
    outputs = copies * len(weight)
    if name in THRESHOLDS:
        fan_in = weight.shape[1] * weight.shape[2] * channels // attributes["groups"]
        constants = {
            "weight": weight,
            "threshold": _integer_thresholds(rng, outputs, fan_in),
            "flip": random_bits(rng, outputs),
        }
        return Case(name, {"x": x}, constants, attributes)
    case = Case(name, {"x": x}, {"weight": weight}, attributes)
    epilogue = FUSED[name]
    case.constants |= _scale_and_bias(rng, outputs)
    case.constants |= _activation_constants(rng, epilogue.before, outputs, "")
    if epilogue.adds:
        case.inputs["residual"] = _residual(rng, stream_of(case, Epilogue(epilogue.before, copies=copies)))
    suffix = "_2" if epilogue.before else ""
    case.constants |= _activation_constants(rng, epilogue.after, outputs, suffix)
    if "bits" in epilogue.outputs:
        stream = stream_of(case, Epilogue(epilogue.before, epilogue.adds, epilogue.after, copies=copies))
        case.constants["threshold"] = _float_thresholds(rng, stream)
    assert {*case.inputs, *case.constants} == {"x", "weight", *epilogue.tensors}
    return case


def stream_of(case: Case, epilogue: Epilogue) -> Floats:
    """The float stream of the same node with another epilogue; it takes what it needs of the operands there are."""
    given = case.inputs | case.constants
    inputs = {name: case.inputs[name] for name in ("x", "residual") if name in ("x", *epilogue.tensors)}
    constants = {name: given[name] for name in ("weight", *epilogue.tensors) if name not in inputs}
    (stream,) = Case(FUSED_CONV2D[epilogue].onnx_name, inputs, constants, case.attributes).expected()
    return stream


def made_convolution(
    rng: np.random.Generator,
    name: str,
    channels: int,
    outputs: int,
    groups: int,
    kernel: Sequence[int],
    size: Sequence[int],
    geometry: dict[str, Any],
    batch: int = 2,
    low: int | None = None,
) -> Case:
    """A convolution of random bits; what a 0 bit stands for is random, too, if `low` does not say it."""
    x = random_bits(rng, batch, *size, channels)
    weight = random_bits(rng, outputs, *kernel, channels // groups)
    low = -int(rng.integers(2)) if low is None else low
    return convolution(rng, name, x, weight, channels, {**geometry, "groups": groups, "low": low})


def small_convolution(rng: np.random.Generator, name: str) -> Case:
    """Groups, two blocks of output channels (or one), padding, strides; and now and then a map of one pixel."""
    groups, channels, outputs = ((1, 9, 70), (3, 66, 69), (1, 130, 5))[int(rng.integers(3))]
    kernel, size, pad, stride = (((3, 2), (5, 4), (1, 1), (1, 2)), ((1, 1), (1, 1), (0, 0), (1, 1)))[
        int(rng.random() < 0.2)
    ]
    return made_convolution(rng, name, channels, outputs, groups, kernel, size, window(pad, stride))


def random_convolution(rng: np.random.Generator, name: str, *, grouped: bool, most: int = 300, kernel: int = 7) -> Case:
    """Any sizes: `most` is that of channels on both sides; the batch may be empty."""
    groups = int(rng.integers(2, 9)) if grouped else 1
    inputs, outputs = (int(rng.integers(1, most // groups + 1)) for _ in range(2))
    shape, size, geometry = random_window(rng, kernel)
    batch = int(rng.integers(0, 4))
    return made_convolution(rng, name, inputs * groups, outputs * groups, groups, shape, size, geometry, batch)


def _integer_thresholds(rng: np.random.Generator, outputs: int, fan_in: int) -> Array:
    """Mostly values that accumulators take; and the ends of their range, one beyond, and values never reached."""
    spread = 2 * int(fan_in**0.5) + 1
    values = rng.integers(-spread, spread + 1, outputs)
    hazards = [INT32.min, INT32.max, fan_in, fan_in + 1, -fan_in, -fan_in - 1, 2**24 + 1, 0]
    chosen = rng.random(outputs) < 0.3
    values[chosen] = rng.choice(hazards, int(chosen.sum()))
    return values.astype(np.int32)


def _per_channel(rng: np.random.Generator, values: Array) -> Array:
    """One value per channel, or now and then one for all."""
    return values.astype(np.float32)[: 1 if rng.random() < 0.25 else None]


def _addend(values: Array) -> Array:
    """Without a single 0.0, which `lower` does not write: see `_shifted` in bnnfx.backends.onnx.functions."""
    return np.full(1, -0.0, np.float32) if len(values) == 1 and values[0] == 0 else values


def _scale_and_bias(rng: np.random.Generator, outputs: int) -> dict[str, Array]:
    """Of both signs; zeros of both signs; magnitudes whose products and sums round, and a few that overflow."""
    scale = rng.standard_normal(outputs) * rng.choice([1, 1, 1, 1e-3, 1e3, 0, -0.0, 1e-44], outputs)
    bias = np.where(rng.random(outputs) < 0.5, rng.standard_normal(outputs), rng.choice([0, -0.0, -1e4, 3.3], outputs))
    special = rng.random(outputs) < 0.05
    scale[special] = rng.choice([np.inf, -np.inf, 3e38, np.nan], int(special.sum()))
    return {"scale": _per_channel(rng, scale), "bias": _addend(_per_channel(rng, bias))}


def _activation_constants(rng: np.random.Generator, step: str, outputs: int, suffix: str) -> dict[str, Array]:
    choices: dict[str, list[float]] = {
        "low": [0.0, 0.0, -1.0, -np.inf, -0.1],  # never -0.0: see `clamp` in bnnfx.ops.steps
        "high": [np.inf, 1.0, 6.0, 0.1, 0.0],
        "slope": [0.25, 0.0, -0.0, 1.0, -0.3, 2.0, 1e-44],
        "shift_before": [0.0, -0.0, 0.3, -2.5, 1e-3],
        "shift_after": [0.0, -0.0, -0.7, 4.0, -1e-3],
    }
    names = STEPS[step].constants if step else ()
    constants = {name: _per_channel(rng, rng.choice(choices[name], outputs)) for name in names}
    return {name + suffix: _addend(value) if "shift" in name else value for name, value in constants.items()}


def _residual(rng: np.random.Generator, stream: Floats) -> Floats:
    """Random; the negative of what it is added to; zeros of both signs, infinities and NaN."""
    residual = rng.standard_normal(stream.shape).astype(np.float32)
    kind = rng.integers(0, 20, stream.shape)
    residual = np.where(kind == 0, -stream, residual)
    for number, value in enumerate((0.0, -0.0, np.inf, -np.inf, np.nan), 1):
        residual[kind == number] = value
    return residual.astype(np.float32)


def _float_thresholds(rng: np.random.Generator, stream: Floats) -> Floats:
    """Values that the stream takes in that channel, where it has any; else zeros, infinities, NaN, random numbers."""
    outputs = stream.shape[-1]
    values = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan, 0.37, -1.5], outputs).astype(np.float32)
    rows = stream.reshape(-1, outputs)
    if len(rows):
        taken = rows[rng.integers(0, len(rows), outputs), np.arange(outputs)]
        values = np.where(rng.random(outputs) < 0.6, taken, values).astype(np.float32)
    return _per_channel(rng, values)


# --- pack, in its layouts ---


def pack_case(
    rng: np.random.Generator, name: str, channels: int, size: Sequence[int] = (4, 3), batch: int = 2, axes: int = 3
) -> Case:
    """Every value is the threshold of its channel, next to it, or special.

    `axes` is the rank of the threshold, which has one value per channel if the channel's axis is among them.
    """
    nchw = name == "Pack"
    shape = (1, channels, 1, 1) if nchw else (1, 1, 1, channels)
    dims = shape[4 - axes :]
    threshold = rng.choice([0.0, -0.0, 1.5, -0.1, np.inf, -np.inf, np.nan, 1e-45], dims).astype(np.float32)
    at = np.broadcast_to(threshold, (batch, channels, *size) if nchw else (batch, *size, channels))
    near = [at, np.nextafter(at, np.float32(np.inf)), np.nextafter(at, np.float32(-np.inf))]
    special = [np.full_like(at, v) for v in (0.0, -0.0, np.nan, np.inf, -np.inf)]
    x = np.choose(rng.integers(0, 8, at.shape), [*near, *special]).astype(np.float32)
    return Case(name, {"x": x}, {"threshold": threshold})


# --- pooling ---


def pool_case(
    rng: np.random.Generator,
    channels: int,
    kernel: Sequence[int],
    size: Sequence[int],
    geometry: dict[str, Any],
    ceil_mode: int,
    batch: int = 2,
) -> Case:
    """Few 1s, or the OR of a large window is 1 everywhere; where the AND is taken, few 0s."""
    mask = rng.random(channels) < 0.5
    bits = (rng.random((batch, *size, channels)) < 2 / (kernel[0] * kernel[1] + 3)) ^ mask
    attributes = {"kernel_shape": list(kernel), **geometry, "ceil_mode": ceil_mode}
    return Case("MaxPool2d", {"x": pack_bits(bits)}, {"and_mask": pack_bits(mask)}, attributes)


# --- any operator ---


def example(name: str) -> Case:
    """One case of an operator: two blocks of output channels, groups and odd sizes where it has them."""
    rng = np.random.default_rng(2)
    if name == "MaxPool2d":
        return pool_case(rng, 66, (3, 2), (7, 6), window((1, 1), (2, 2)), 1)
    if "Pack" in name:
        return pack_case(rng, name, 66, (6, 5))
    return made_convolution(rng, name, 66, 69, 3, (3, 2), (7, 6), window((1, 1), (2, 2)))
