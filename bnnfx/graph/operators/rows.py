"""The rows of the table of operators: everything that the compiler knows of the operators of a float network.

A row says how an operator is spelled (module types, functions, methods) and answers every question that passes, reports
and the tracer ask. **What a row does not say has the pessimistic answer**, and an operator without a row is `OPAQUE`:
it mixes values, may change shape and sign, follows `train()` and `eval()` in an unknown way, and nothing moves past it.

Module types match exactly: a subclass of `nn.ReLU` is another operator, as it may compute something else. An in-place
spelling (`relu_`, `inplace=True`) is made functional by the tracer and needs no row.

Which of them a fused convolution can take over says the table of steps, `bnnfx.ops.steps`, by their module types.

A new operator is one row of `ROWS`. The rows of binary layers and activation binarizers are those of `bnnfx.nn`.
"""

import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnfx.graph.operators import macs, signs, spellings
from bnnfx.graph.operators.facts import (
    Call,
    Kind,
    Mode,
    Operator,
    SignRule,
    axes_of_arguments,
    broadcast_axes,
    flattened_axes,
    same_axes,
)
from bnnfx.nn.batch_second import BatchSecond
from bnnfx.nn.last_axis_norm import LastAxisBatchNorm
from bnnfx.nn.with_item import with_item


def _up(call: Call) -> Tensor:
    return torch.tensor(1.0)


def _up_by_slope(call: Call) -> Tensor | None:
    slope = call.get("weight") if isinstance(call.module, nn.PReLU) else call.number("negative_slope", 0.01)
    if slope is None or (isinstance(slope, Tensor) and slope.is_meta):
        return None
    return torch.tensor(1.0) if bool((torch.as_tensor(slope) >= 0).all()) else None


def _counts_no_padding(call: Call) -> bool:
    counts = call.get("count_include_pad", True) and call.get("padding", 0) not in (0, (0,), (0, 0))
    return not counts and call.get("divisor_override") is None


def _gives_no_indices(call: Call) -> bool:
    return not call.get("return_indices", False)


def _functions(name: str, *places: Any) -> tuple[Callable[..., Any], ...]:
    return tuple(getattr(place, name) for place in places if hasattr(place, name))


def _methods(name: str) -> tuple[str, ...]:
    return (name,) if hasattr(Tensor, name) else ()


def _elementwise(name: str, sign: SignRule, **facts: Any) -> Operator:
    usual = {"fresh": True, "result_axes": same_axes, "mode": Mode.SAME}
    return Operator(name, Kind.ELEMENTWISE, sign=sign, **{**usual, **facts})


def _unary(name: str, sign: SignRule, **facts: Any) -> Operator:
    """A function of one number without arguments, wherever torch has it under this name."""
    functions = _functions(name, torch, F, torch.special)
    functions += _functions(name, operator) if name in ("abs", "neg", "pos") else ()
    return _elementwise(name, sign, functions=functions, methods=_methods(name), **facts)


def _activation(
    kind: type[nn.Module], sign: SignRule, parameters: str = "", *, functions: tuple[Any, ...] = (), **facts: Any
) -> Operator:
    """An activation function: a module, and the function and method of its name in lower case."""
    name, names = kind.__name__.lower(), tuple(parameters.split())
    spelled = {"functions": _functions(name, F, torch) + functions, "methods": _methods(name), "modules": (kind,)}
    usual = {"canonical": spellings.built(kind, *names), "parameters": (*names, "inplace")}
    return _elementwise(name, sign, **{**spelled, **usual, **facts})


def _pool(kind: type[nn.Module], axes: int, parameters: str, **facts: Any) -> Operator:
    """A module, and the functions of its name: `nn.AdaptiveAvgPool2d`, `F.adaptive_avg_pool2d`, one of `torch`."""
    names, name = tuple(parameters.split()), re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
    usual = {"canonical": spellings.built(kind, *names), "sign": signs.keeps, "fresh": True, "result_axes": same_axes}
    row = {"modules": (kind,), "functions": _functions(name, F, torch), "parameters": names, "axes": axes}
    return Operator(kind.__name__, Kind.POOL, **{**row, "mode": Mode.SAME, **usual, **facts})


_MAX_POOL = "kernel_size stride padding dilation ceil_mode return_indices"
_AVG_POOL = "kernel_size stride padding ceil_mode count_include_pad divisor_override"


def _resample(name: str, **facts: Any) -> Operator:
    usual = {"sign": signs.keeps, "fresh": True, "result_axes": same_axes, "mode": Mode.SAME}
    return Operator(name, Kind.RESAMPLE, **{**usual, **facts})


def _layer(kind: type[nn.Module], **facts: Any) -> Operator:
    usual = {"sign": signs.both, "mode": Mode.SAME, "fresh": True, "result_axes": same_axes}
    return Operator(kind.__name__, Kind.LAYER, (kind,), **{**usual, **facts})


def _convolution(kind: type[nn.Module], axes: int, transposed: bool = False) -> Operator:
    count = macs.transposed_macs if transposed else macs.layer_macs
    return _layer(kind, axes=axes, transposed=transposed, resizable=True, macs=count)


def _layer_function(*functions: Any, **facts: Any) -> Operator:
    usual = {"operands": ("input", "weight", "bias"), "sign": signs.both, "mode": Mode.SAME, "fresh": True}
    row = {"functions": functions, "result_axes": same_axes}
    return Operator("a layer that is called as a function", Kind.LAYER, **{**row, **usual, **facts})


def _dropping(kind: type[nn.Module], function: Callable[..., Any]) -> Operator:
    return _elementwise(
        kind.__name__,
        signs.keeps,
        modules=(kind,),
        functions=(function,),
        parameters=("p", "training", "inplace"),
        mode=Mode.DROPS,
        fresh=False,
        canonical=spellings.dropout(kind),
    )


def _norm(kind: type[nn.Module] | None, *functions: Any, **facts: Any) -> Operator:
    usual = {"sign": signs.both, "centres": True, "fresh": True, "result_axes": same_axes}
    name, modules = (functions[0].__name__, ()) if kind is None else (kind.__name__, (kind,))
    return Operator(name, Kind.NORM, modules, functions, **{**usual, **facts})


def _batch_norm_row(kind: type[nn.Module], axes: int | None, **facts: Any) -> Operator:
    return _norm(kind, batch_norm=True, axes=axes, mode=Mode.STATISTICS, resizable=True, **facts)


def _move(name: str, *functions: Any, methods: tuple[str, ...] = (), **facts: Any) -> Operator:
    spelled = {"functions": functions or _functions(name, torch), "methods": methods or _methods(name)}
    return Operator(name, Kind.MOVE, **{**spelled, "sign": signs.keeps, "mode": Mode.SAME, **facts})


def _join(name: str, sign: SignRule, *functions: Any, methods: tuple[str, ...] = (), **facts: Any) -> Operator:
    usual = {"operands": ("input", "other"), "mode": Mode.SAME, "fresh": True, "result_axes": broadcast_axes}
    return Operator(name, Kind.JOIN, functions=functions, methods=methods, sign=sign, **{**usual, **facts})


def _reduction(name: str, sign: SignRule = signs.keeps, **facts: Any) -> Operator:
    spelled: dict[str, Any] = {"functions": _functions(name, torch), "methods": _methods(name)}
    usual = {"parameters": ("dim", "keepdim"), "mode": Mode.SAME, "fresh": True}
    return Operator(name, Kind.REDUCE, sign=sign, **{**spelled, **usual, **facts})


def _concat(name: str, *functions: Any, **facts: Any) -> Operator:
    usual = {"operands": ("tensors",), "parameters": ("dim",), "sign": signs.of_all, "mode": Mode.SAME, "fresh": True}
    return Operator(name, Kind.CONCAT, functions=functions, **{**usual, **facts})


FUNCTIONAL_BATCH_NORM = "batch norm as a function"
ATTENTION = "attention"

BATCH_NORM_TENSORS = ("running_mean", "running_var", "weight", "bias")
"""The tensors of a batch norm, in the order of the function's arguments."""

ROWS: tuple[Operator, ...] = (
    # activation functions
    _activation(nn.ReLU, signs.never, monotone=_up, replaced=True),
    _activation(nn.ReLU6, signs.never, monotone=_up, replaced=True),
    _activation(nn.Hardtanh, signs.within("min_val", "max_val", -1.0, 1.0), "min_val max_val", monotone=_up),
    *(
        _elementwise(
            name,
            signs.within("min", "max"),
            functions=_functions(name, torch),
            methods=_methods(name),
            parameters=parameters,
            monotone=_up,
            canonical=spellings.clamp_module,
        )
        for name, parameters in (("clamp", ("min", "max")), ("clip", ("min", "max")), ("clamp_min", ("min",)))
    ),
    _activation(nn.LeakyReLU, signs.of_slope, "negative_slope", functions=(F.leaky_relu,), monotone=_up_by_slope),
    _activation(
        nn.PReLU,
        signs.of_prelu,
        canonical=lambda call: None,
        monotone=_up_by_slope,
        resizable=True,
        per_channel=lambda call: getattr(call.module, "num_parameters", 2) > 1,
    ),
    _activation(nn.Threshold, signs.of_threshold, "threshold value", canonical=spellings.threshold),
    _activation(nn.ELU, signs.keeps, "alpha"),
    _activation(nn.SELU, signs.keeps),
    _activation(nn.CELU, signs.keeps, "alpha"),
    _activation(nn.GELU, signs.keeps, "approximate"),
    _activation(nn.SiLU, signs.keeps),
    _activation(nn.Mish, signs.keeps),
    _activation(nn.Hardswish, signs.keeps),
    _activation(nn.Tanh, signs.keeps),
    _activation(nn.Softsign, signs.keeps),
    _activation(nn.Tanhshrink, signs.keeps),
    _activation(nn.Hardshrink, signs.keeps, "lambd", functions=(F.hardshrink,)),
    _activation(nn.Softshrink, signs.keeps, "lambd", functions=(F.softshrink,)),
    _activation(nn.LogSigmoid, signs.unknown),
    _activation(nn.Sigmoid, signs.never),
    _activation(nn.Hardsigmoid, signs.never),
    _activation(nn.Softplus, signs.never, "beta threshold", functions=(F.softplus,)),
    _activation(nn.RReLU, signs.keeps, "lower upper", canonical=lambda call: None, mode=Mode.UNKNOWN),
    Operator(
        "softmax",
        Kind.OPAQUE,
        (nn.Softmax, nn.Softmax2d),
        (F.softmax, torch.softmax),
        ("softmax",),
        parameters=("dim", "_stacklevel", "dtype"),
        sign=signs.never,
        canonical=spellings.softmax,
        result_axes=same_axes,
        fresh=True,
        mode=Mode.SAME,
    ),
    Operator("glu", Kind.OPAQUE, (nn.GLU,), (F.glu,), sign=signs.keeps, mode=Mode.SAME, fresh=True, scales=True),
    # functions of one number
    *(
        _unary(name, signs.never)
        for name in ("abs", "absolute", "square", "exp", "exp2", "cosh", "sqrt", "rsqrt", "erfc", "i0")
    ),
    *(
        _unary(name, signs.keeps)
        for name in (
            *("sinh", "asinh", "arcsinh", "atan", "arctan", "erf", "expm1", "sign", "sgn", "trunc", "fix", "round"),
            *("deg2rad", "rad2deg", "floor", "nan_to_num"),
        )
    ),
    *(_unary(name, signs.keeps, monotone=_up, fresh=False) for name in ("positive", "pos")),
    *(_unary(name, signs.flips) for name in ("neg", "negative", "sin", "tan", "ceil", "frac", "reciprocal")),
    *(
        _unary(name, signs.unknown)
        for name in (
            *("log", "log2", "log10", "log1p", "cos", "logit", "digamma", "lgamma", "arccos", "acos", "arcsin", "asin"),
            *("arctanh", "atanh", "erfinv"),
        )
    ),
    *(
        _elementwise(f"cast by {name}", signs.keeps, methods=(name,), monotone=_up, fresh=False)
        for name in ("double", "half", "bfloat16", "to", "type", "type_as", "cpu", "cuda")
    ),
    # functions of several numbers
    _join(
        "add",
        signs.of_sum,
        operator.add,
        torch.add,
        methods=("add", "__add__", "__radd__"),
        canonical=spellings.plain(operator.add),
    ),
    _join(
        "sub",
        signs.of_difference,
        operator.sub,
        torch.sub,
        torch.subtract,
        methods=("sub", "subtract", "__sub__"),
        canonical=spellings.plain(operator.sub),
    ),
    _join("rsub", signs.of_difference, torch.rsub, methods=("__rsub__",)),
    _join(
        "mul",
        signs.of_product,
        operator.mul,
        torch.mul,
        torch.multiply,
        methods=("mul", "multiply", "__mul__", "__rmul__"),
        canonical=spellings.plain(operator.mul),
        scales=True,
    ),
    _join(
        "div",
        signs.of_product,
        operator.truediv,
        torch.div,
        torch.divide,
        methods=("div", "divide", "__truediv__"),
        canonical=spellings.plain(operator.truediv),
        scales=True,
    ),
    _join("maximum", signs.of_most, torch.maximum, torch.fmax, methods=("maximum", "fmax")),
    _join("minimum", signs.of_least, torch.minimum, torch.fmin, methods=("minimum", "fmin")),
    _join("pow", signs.of_power, operator.pow, torch.pow, methods=("pow", "__pow__")),
    _join("where", signs.of_choice, torch.where, operands=("condition", "input", "other")),
    _join("logaddexp", signs.unknown, torch.logaddexp, methods=("logaddexp",)),
    # values that move
    _elementwise(
        "identity",
        signs.keeps,
        modules=(nn.Identity, BatchSecond),
        functions=(torch.detach,),
        methods=("contiguous", "detach", "float"),
        monotone=_up,
        identity=True,
        fresh=False,
        keeps_shift=lambda call: call.module is not None,
    ),
    _elementwise("clone", signs.keeps, functions=(torch.clone,), methods=("clone",), monotone=_up, identity=True),
    _move(
        *("flatten", torch.flatten),
        modules=(nn.Flatten,),
        parameters=("start_dim", "end_dim"),
        canonical=spellings.flatten,
        result_axes=flattened_axes,
    ),
    _move(
        *("reshape", torch.reshape),
        methods=("reshape", "view"),
        canonical=spellings.reshape,
        result_axes=axes_of_arguments,
    ),
    _move("reshape_as", methods=("reshape_as", "view_as")),
    _move("unflatten", modules=(nn.Unflatten,)),
    _move("permute", parameters=("dims",), canonical=spellings.permute, result_axes=axes_of_arguments),
    _move("expand", result_axes=axes_of_arguments),
    *(
        _move(name, result_axes=same_axes)
        for name in (
            *("transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "adjoint", "t", "flip", "roll", "rot90"),
            *("chunk", "split", "tensor_split", "split_with_sizes", "narrow", "index_select", "gather", "fliplr"),
            *("flipud",),
        )
    ),
    *(
        _move(name)
        for name in (
            *("squeeze", "unsqueeze", "unbind", "select", "take_along_dim", "unfold", "repeat_interleave", "expand_as"),
            *("repeat", "tile", "broadcast_to", "diagonal"),
        )
    ),
    _move("getitem", operator.getitem, methods=("__getitem__",)),
    _move("pixel_shuffle", F.pixel_shuffle, torch.pixel_shuffle, result_axes=same_axes),
    _move("pixel_unshuffle", F.pixel_unshuffle, torch.pixel_unshuffle, result_axes=same_axes),
    _move("channel_shuffle", F.channel_shuffle, torch.channel_shuffle, result_axes=same_axes),
    _move("shuffle", modules=(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), result_axes=same_axes),
    _move("im2col", F.unfold),
    # pooling
    *(
        _pool(
            *(kind, axes, _MAX_POOL),
            monotone=lambda call: torch.tensor(1.0) if _gives_no_indices(call) else None,
            keeps_shift=_gives_no_indices,
        )
        for kind, axes in ((nn.MaxPool1d, 3), (nn.MaxPool2d, 4))
    ),
    _pool(nn.MaxPool3d, 5, _MAX_POOL),
    _pool(nn.AvgPool2d, 4, _AVG_POOL, keeps_shift=_counts_no_padding),
    _pool(nn.AvgPool1d, 3, "kernel_size stride padding ceil_mode count_include_pad", keeps_shift=_counts_no_padding),
    _pool(nn.AvgPool3d, 5, _AVG_POOL),
    _pool(nn.AdaptiveAvgPool2d, 4, "output_size", keeps_shift=lambda call: True),
    _pool(nn.AdaptiveMaxPool2d, 4, "output_size return_indices", keeps_shift=_gives_no_indices),
    _pool(nn.AdaptiveAvgPool1d, 3, "output_size", keeps_shift=lambda call: True),
    _pool(nn.AdaptiveMaxPool1d, 3, "output_size return_indices", keeps_shift=_gives_no_indices),
    _pool(nn.AdaptiveAvgPool3d, 5, "output_size"),
    _pool(nn.AdaptiveMaxPool3d, 5, "output_size return_indices"),
    # each channel by itself, on another grid
    _resample(
        "pad",
        modules=(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
        functions=(F.pad,),
        parameters=("pad", "mode", "value"),
        sign=signs.of_padding,
    ),
    _resample(
        "reflection padding",
        modules=(
            *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d),
            *(nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        ),
    ),
    _resample(
        "interpolate",
        modules=(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
        functions=(F.interpolate, F.upsample, F.upsample_nearest, F.upsample_bilinear, F.grid_sample),
    ),
    _resample(
        "power average pooling",
        modules=(nn.LPPool1d, nn.LPPool2d, nn.LPPool3d),
        functions=(F.lp_pool1d, F.lp_pool2d, F.lp_pool3d),
        sign=signs.unknown,
    ),
    # what drops values in training
    _dropping(nn.Dropout, F.dropout),
    _dropping(nn.Dropout1d, F.dropout1d),
    _dropping(nn.Dropout2d, F.dropout2d),
    _dropping(nn.Dropout3d, F.dropout3d),
    _dropping(nn.AlphaDropout, F.alpha_dropout),
    _dropping(nn.FeatureAlphaDropout, F.feature_alpha_dropout),
    _elementwise(
        "stochastic depth",
        signs.keeps,
        functions=("torchvision.ops.stochastic_depth.stochastic_depth",),
        parameters=("p", "mode", "training"),
        mode=Mode.DROPS,
        fresh=False,
    ),
    # normalization
    _batch_norm_row(nn.BatchNorm1d, None),
    _batch_norm_row(nn.BatchNorm2d, 4),
    _batch_norm_row(nn.BatchNorm3d, 5),
    _batch_norm_row(nn.SyncBatchNorm, None),
    _batch_norm_row(LastAxisBatchNorm, None, channel_axis=-1),
    Operator(
        *(FUNCTIONAL_BATCH_NORM, Kind.NORM, (), (F.batch_norm,)),
        parameters=(*BATCH_NORM_TENSORS, "training", "momentum", "eps"),
        sign=signs.both,
        centres=True,
        fresh=True,
        result_axes=same_axes,
    ),
    _norm(nn.GroupNorm, F.group_norm, torch.group_norm, resizable=True, mode=Mode.SAME),
    _norm(nn.LayerNorm, F.layer_norm, torch.layer_norm, mode=Mode.SAME),
    *(
        _norm(kind, axes=axes, resizable=True, mode=Mode.STATISTICS)
        for kind, axes in ((nn.InstanceNorm1d, 3), (nn.InstanceNorm2d, 4), (nn.InstanceNorm3d, 5))
    ),
    _norm(None, F.instance_norm, torch.instance_norm),
    _norm(nn.RMSNorm, F.rms_norm, torch.rms_norm, sign=signs.keeps, centres=False, mode=Mode.SAME),
    _norm(nn.LocalResponseNorm, F.local_response_norm, sign=signs.keeps, centres=False, mode=Mode.SAME),
    _norm(None, F.normalize, sign=signs.keeps, centres=False, mode=Mode.SAME),
    # layers with a weight
    _convolution(nn.Conv1d, 3),
    _convolution(nn.Conv2d, 4),
    _convolution(nn.Conv3d, 5),
    _convolution(nn.ConvTranspose1d, 3, transposed=True),
    _convolution(nn.ConvTranspose2d, 4, transposed=True),
    _convolution(nn.ConvTranspose3d, 5, transposed=True),
    _layer(nn.Linear, resizable=True, macs=macs.layer_macs),
    _layer(nn.Bilinear, macs=macs.bilinear_macs),
    *(_layer(kind, macs=macs.recurrent_macs, mode=Mode.UNKNOWN) for kind in (nn.RNN, nn.LSTM, nn.GRU)),
    *(_layer(kind, macs=macs.recurrent_macs) for kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell)),
    _layer(nn.MultiheadAttention, macs=macs.attention_macs, mode=Mode.UNKNOWN),
    _layer_function(F.conv1d, F.conv2d, F.conv3d, parameters=("stride", "padding", "dilation", "groups")),
    _layer_function(F.linear),
    _layer_function(F.bilinear, operands=("input1", "input2", "weight", "bias")),
    _layer_function(F.multi_head_attention_forward, operands=("query", "key", "value"), mode=Mode.UNKNOWN),
    _layer_function(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, transposed=True),
    Operator(
        "matmul",
        Kind.OPAQUE,
        functions=(
            *(operator.matmul, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
            torch.tensordot,
        ),
        methods=("matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm"),
        operands=("input", "other"),
        multiplies=True,
        fresh=True,
        mode=Mode.SAME,
    ),
    Operator(
        ATTENTION,
        Kind.OPAQUE,
        functions=(F.scaled_dot_product_attention,),
        operands=("query", "key", "value"),
        sign=signs.of_values,
        result_axes=same_axes,
    ),
    # several tensors behind one another, one value of many
    _concat("cat", torch.cat, torch.concat, torch.concatenate, canonical=spellings.cat, result_axes=same_axes),
    _concat("stack", torch.stack, torch.hstack, torch.vstack, torch.dstack),
    *(_reduction(name) for name in ("mean", "sum", "median", "cumsum", "nanmean", "nansum")),
    *(_reduction(name, signs.of_largest) for name in ("amax", "amin", "cummax", "cummin")),
    *(
        _reduction(name, rule, operands=("input", "other"))
        for name, rule in (("max", signs.of_max), ("min", signs.of_min))
    ),
    *(_reduction(name, signs.never) for name in ("var", "std", "norm")),
    Operator("with item", functions=(with_item,), mode=Mode.SAME, fresh=True, result_axes=same_axes),
    Operator(
        "new tensor",
        functions=(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.fill),
        methods=("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
        mode=Mode.SAME,
        fresh=True,
    ),
    # sizes
    Operator(
        *("size", Kind.SIZE),
        functions=(getattr, len),
        methods=("size", "dim", "ndimension", "numel", "nelement"),
        mode=Mode.SAME,
    ),
)
"""Every operator that something is known of."""
