"""The float operators that take a map `[N, C, H, W]` and give one, found by looking into torch and torchvision."""

import copy
import inspect
import itertools
import operator
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnfx._torchvision import import_torchvision

N, C, H, W = MAP = (5, 4, 6, 6)
"""Shape of the map that every operator is tried on."""

EXCLUDED = {
    r"empty\w*|new_empty\w*|resize_|resize_as_": "memory that nobody wrote",
    r"set_|set_data|share_memory_|\w*storage\w*|apply_|map_|map2_": "acts on storage, or calls Python per value",
    r"requires_grad_|retain_grad|detach_|register_\w+|backward": "acts on autograd, not on values",
    r"rename_?|refine_names|align_\w+": "acts on the names of axes",
    r"cuda|xpu|ipu|hpu|mtia|to_mkldnn|pin_memory|(cudnn|miopen|mkldnn|mps)_\w+": "for another device",
    r"\w*quantize\w*|q_\w+": "for another data type",
    r"roi_align": "torchvision compiles it at its first call where its own library does not fit torch",
    r"Conv2d|Conv2dNormActivation|SqueezeExcitation": "holds layers that convert binarizes",
    r"Lazy\w+": "has no weights before its first call",
    r"Sequential|Module\w*": "a container",
}
"""Patterns of whole names, and why they are out."""


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def example(*shape: int) -> Tensor:
    return torch.randn(*(shape or MAP), generator=generator())


@dataclass(frozen=True)
class Operator:
    """One spelling of an operator, with arguments that it takes.

    Attributes:
        name: as in a program, such as `F.relu`, `Tensor.mul_`, `nn.ReLU`.
        form: "function", "method", "module", or "operator".
        function: what is called with the map; for a module, its class.
        arguments: behind the map, or of the constructor of a module; tensors become buffers of `Apply`.
        keywords: likewise.
        extra: of a module, the arguments of its forward behind the map.
        inplace: whether the call changes the map that it is given.
        picks: whether the map is the first of several results.
        casts: whether its result has another float type, and is cast back.
        trains: whether gradients flow through it.
        random: whether it draws random numbers, in evaluation and in training.
        shape: of the result.
    """

    name: str
    form: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    extra: tuple[Any, ...] = ()
    inplace: bool = False
    picks: bool = False
    casts: bool = False
    trains: bool = True
    random: tuple[bool, bool] = (False, False)
    shape: tuple[int, ...] = MAP

    def __str__(self) -> str:
        shown = [_shown(a) for a in self.arguments] + [f"{k}={_shown(v)}" for k, v in self.keywords.items()]
        shown += [f"forward: {_shown(a)}" for a in self.extra]
        return f"{self.name}({', '.join(shown)})"

    def module(self) -> nn.Module:
        """A fresh module whose forward is this call, and whose submodules and buffers are what it needs."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Apply(self)


class Apply(nn.Module):
    """Calls one operator; `torch.fx` traces through it, so that the graph holds the operator's own node."""

    def __init__(self, op: Operator) -> None:
        super().__init__()
        self.op = op
        self.keywords = dict(op.keywords)
        arguments = op.arguments
        if op.form == "module":
            self.layer = op.function(*copy.deepcopy(op.arguments), **op.keywords)
            self.keywords, arguments = {}, op.extra
        self.slots = [self._slot(f"constant{i}", value) for i, value in enumerate(arguments)]
        self.keywords = {key: self._slot(key, value) for key, value in self.keywords.items() if key != "training"}

    def _slot(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        self.register_buffer(name, value.clone())
        return _Buffer(name)

    def _value(self, slot: Any) -> Any:
        return getattr(self, slot.name) if isinstance(slot, _Buffer) else slot

    def call(self, x: Tensor) -> Any:
        """What the operator gives, as it gives it."""
        arguments = [self._value(slot) for slot in self.slots]
        keywords = {key: self._value(slot) for key, slot in self.keywords.items()}
        if "training" in self.op.keywords:
            keywords["training"] = self.training
        if self.op.form == "module":
            return self.layer(x, *arguments)
        if self.op.form == "method":
            return getattr(x, self.op.function.__name__)(*arguments, **keywords)
        if "out" in keywords:
            keywords["out"] = x
        return self.op.function(x, *arguments, **keywords)

    def forward(self, x: Tensor) -> Tensor:
        """The map: the result, or the input where the operator writes into it and gives nothing."""
        y = self.call(x)
        if y is None:
            return x
        y = y[0] if self.op.picks else y
        return y.float() if self.op.casts else y


@dataclass(frozen=True)
class _Buffer:
    name: str


@dataclass(frozen=True)
class _Method:
    """A method of `Tensor` by its name, called as a function."""

    __name__: str

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.__name__)(*args, **kwargs)


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return getattr(value, "__name__", None) or str(value)


# Plausible values by parameter name; then by the type that a schema gives; then what is left.
_INDEX = torch.tensor([2, 0, 1, 3])
_PER_CHANNEL = 0.5 + torch.arange(C) * 0.25
_TENSORS = (example(1, C, H, W), example(C, 1, 1), _PER_CHANNEL, example(*MAP), example(H, W), example(C, C, 3, 3))
_VALUES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("dim axis dim0 axis0 start_dim channel_dim", (1, (2, 3))),
    ("dim1 axis1 end_dim", (2,)),
    ("dims axes", ((2, 3), (0, 1, 3, 2))),
    ("keepdim affine track_running_stats training elementwise_affine", (True,)),
    ("kernel_size", (2, (2, 2))),
    ("block_size", (3,)),
    ("upscale_factor downscale_factor scale_factor num_groups groups repeats end", (2,)),
    ("num_features num_channels in_channels out_channels input_channels squeeze_channels", (C,)),
    ("normalized_shape in_features out_features", ((C, H, W), W)),
    ("in1_features in2_features", (W,)),
    ("size output_size shape sizes", ((-1, C, H, W), MAP, (3, 3), (12, 12), (2, 2))),
    ("padding pad", ((1, 1, 1, 1), 1)),
    ("mask condition", (example(1, C, H, W) > 0,)),
    ("index indices", (_INDEX, torch.arange(C).flip(0).view(1, C, 1, 1).expand(MAP).clone(), (_INDEX,))),
    ("weight gamma", (_PER_CHANNEL, example(C, C, 3, 3), example(C, C, 1, 1), example(W, W))),
    ("bias beta running_mean", (_PER_CHANNEL,)),
    ("running_var", (_PER_CHANNEL + 1,)),
    ("p q", (0.5, 2)),
    ("k n length split_size chunks sections split_size_or_sections", (2, (2, 2))),
    ("start storage_offset", (0,)),
    ("min min_val lower", (-0.5, 0)),
    ("max max_val upper", (0.75,)),
    ("eps epsilon", (1e-5,)),
    ("reduction", ("none",)),
    ("reduce", ("sum", "mean")),
    ("mode", ("bilinear", "row")),
    ("approximate", ("tanh",)),
    ("dtype", (torch.float64,)),
    ("shifts shift", ((1, 1), 1)),
    ("source src values value", (0.5, *_TENSORS)),
    ("grid", (example(N, H, W, 2).clamp(-1, 1),)),
    ("offset", (example(N, 2 * 3 * 3, H, W),)),
    ("boxes", (torch.tensor([[float(i), 0, 0, 4, 4] for i in range(N)]),)),
)
_BY_NAME = {name: values for names, values in _VALUES for name in names.split()}
_BY_TYPE: dict[str, tuple[Any, ...]] = {
    "Tensor": _TENSORS,
    "number": (0.5, 2),
    "float": (0.5,),
    "int": (1, 2),
    "bool": (True,),
    "List[int]": ((2, 2), (2, 3), (1, 1)),
    "str": (),
}
_OTHERWISE: tuple[Any, ...] = (0.5, 2, (2, 2), *_TENSORS)
_MOST_TRIES = 150


@dataclass(frozen=True)
class _Parameter:
    name: str
    kind: str
    required: bool
    keyword_only: bool = False

    def values(self) -> tuple[Any, ...]:
        kind = re.sub(r"Optional\[(.*)\]", r"\1", self.kind)
        named = _BY_NAME.get(self.name, ())
        return (*named, *(_BY_TYPE.get(kind, _OTHERWISE) if kind else () if named else _OTHERWISE))


def _schemas(name: str) -> Iterator[list[_Parameter]]:
    for schema in torch._C._jit_get_schemas_for_operator(f"aten::{name}"):
        yield [
            _Parameter(a.name, str(a.type), a.default_value is None and "Optional" not in str(a.type), a.kwarg_only)
            for a in schema.arguments
            if not a.is_out
        ]


def _signatures(function: Callable[..., Any], name: str) -> list[list[_Parameter]]:
    """The parameters of each overload behind the map itself."""
    found = [parameters[1:] for parameters in _schemas(name)]
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return found or [[], [_Parameter("other", "", True)]]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return found or [[]]
    kinds = [_Parameter(p.name, "", p.default is p.empty, p.kind is p.KEYWORD_ONLY) for p in parameters[1:]]
    return [kinds, *found]


def _tries(parameters: list[_Parameter]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments to try: those that are required, then also an axis, then any one optional argument."""
    optional = [p.name for p in parameters if not p.required]
    sets: list[tuple[str, ...]] = [()]
    sets += [tuple(n for n in optional if n in ("dim", "axis", "keepdim", "affine", "reduction"))]
    sets += [(name,) for name in optional if name in ("scale_factor", "size", "mode", "min", "max", "dim", "pad")]
    for extra in dict.fromkeys(sets):
        given = [p for p in parameters if p.required or p.name in (*extra, "training")]
        positional = True
        by_name = []
        for p in parameters:
            positional = positional and p in given and not p.keyword_only
            by_name.append(not positional)
        for values in itertools.islice(itertools.product(*(p.values() for p in given)), _MOST_TRIES):
            named = dict(zip((p.name for p in given), values, strict=True))
            args = tuple(named[p.name] for p, keyword in zip(parameters, by_name, strict=True) if not keyword)
            yield args, {p.name: named[p.name] for p in given if by_name[parameters.index(p)]}


def _run(op: Operator, x: Tensor, training: bool, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return op.module().train(training)(x)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def accepted(op: Operator) -> Operator | None:
    """The operator, with what its result is, if it takes a map and gives a float map of the same batch; else None."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad():
                if op.form != "module":
                    op.function(example(), *op.arguments, **op.keywords)  # fails fast, before a module is made
                x = example()
                y = op.module().call(x)
                if op.inplace:
                    if y is not None and y.data_ptr() != x.data_ptr():
                        return None  # such as FeatureAlphaDropout(inplace=True), which gives another tensor
                    y = x
                if isinstance(y, tuple | list) and y:
                    op, y = replace(op, picks=True), y[0]
                if not isinstance(y, Tensor) or not y.is_floating_point() or y.ndim != 4 or y.layout != torch.strided:
                    return None
                op = replace(op, shape=tuple(y.shape), casts=y.dtype != torch.float32)
                if y.shape[0] != N or y.numel() == 0 or y.device.type != "cpu" or y.isnan().all():
                    return None
                if not all(_same(_run(op, example(), mode), _run(op, example(), mode)) for mode in (False, True)):
                    return None
                fixed = (_same(_run(op, example(), mode), _run(op, example(), mode, seed=2)) for mode in (False, True))
                op = replace(op, random=tuple(not same for same in fixed))
        except Exception:
            return None
        try:
            x = example().requires_grad_()
            _run(op, x * 1, True).sum().backward()
            return replace(op, trains=x.grad is not None)
        except Exception:
            return replace(op, trains=False)


def _variants(op: Operator, signatures: Iterable[list[_Parameter]]) -> Iterator[Operator]:
    """The operator with the first arguments that it takes without a tensor, and the first that hold one."""
    met: set[bool] = set()
    for parameters in signatures:
        for args, kwargs in _tries(parameters):
            has_tensor = any(isinstance(value, Tensor) for value in (*args, *kwargs.values()))
            if has_tensor in met:
                continue
            found = accepted(replace(op, arguments=args, keywords=kwargs))
            if found is not None:
                met.add(has_tensor)
                yield found


def _is_excluded(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in EXCLUDED)


def plain(name: str) -> str:
    """What the spellings of one operator have in common: `AvgPool2d`, `F.avg_pool2d`."""
    return name.rpartition(".")[2].replace("_", "").lower()


def _names(namespace: Any, share: int) -> list[str]:
    """One name in `share`, the same for all spellings."""
    return [name for name in sorted(dir(namespace)) if zlib.crc32(plain(name).encode()) % share == 0]


def _functions(namespace: Any, prefix: str, form: str, share: int) -> Iterator[Operator]:
    for name in _names(namespace, share):
        function = getattr(namespace, name, None)
        if name.startswith("_") or inspect.isclass(function) or not callable(function) or _is_excluded(name):
            continue
        if namespace is torch and not any(True for _ in _schemas(name)):
            continue  # sets a mode, loads a file, compiles ...: no operator
        inplace = name.endswith("_")
        call = _Method(name) if form == "method" else function
        signatures = _signatures(function, name)
        yield from _variants(Operator(f"{prefix}.{name}", form, call, inplace=inplace), signatures)


def _flagged(functions: Iterable[Operator]) -> Iterator[Operator]:
    """Functions with `inplace=True`."""
    for op in functions:
        try:
            parameters = inspect.signature(op.function).parameters
        except (TypeError, ValueError):
            continue
        if "inplace" in parameters and not op.keywords.get("inplace"):
            yield from filter(None, [accepted(replace(op, keywords={**op.keywords, "inplace": True}, inplace=True))])


def _out(functions: Iterable[Operator]) -> Iterator[Operator]:
    """Functions with `out=` that write into the map itself."""
    for op in functions:
        if op.shape == MAP and not op.inplace and not op.picks and not op.casts:
            written = accepted(replace(op, keywords={**op.keywords, "out": example()}, inplace=True))
            if written is not None and _same(_run(op, example(), True), _run(written, example(), True)):
                yield written  # it reads the map before it writes into it


def _modules(namespace: Any, prefix: str, share: int) -> Iterator[Operator]:
    for name in _names(namespace, share):
        kind = getattr(namespace, name)
        if not inspect.isclass(kind) or not issubclass(kind, nn.Module) or _is_excluded(name):
            continue
        try:
            parameters = list(inspect.signature(kind).parameters.values())
            forward = [p for p in inspect.signature(kind.forward).parameters.values() if p.default is p.empty][2:]
        except (TypeError, ValueError):
            continue
        if any(p.kind is p.VAR_POSITIONAL for p in forward) or len(forward) > 1:
            continue
        wanted = [_Parameter(p.name, "", p.default is p.empty) for p in parameters if p.kind is not p.VAR_POSITIONAL]
        wanted = [p for p in wanted if p.name not in ("args", "kwargs")]
        for extra in itertools.product(*([_TENSORS] * len(forward))):
            found = list(_variants(Operator(f"{prefix}.{name}", "module", kind, extra=extra), [wanted]))
            if found:
                break
        yield from found
        for op in found:
            if "inplace" in inspect.signature(kind).parameters:
                flagged = {**op.keywords, "inplace": True}
                yield from filter(None, [accepted(replace(op, keywords=flagged, inplace=True))])


def _python_operators(share: int) -> Iterator[Operator]:
    """What an expression calls, augmented assignment, and item assignment."""
    for name in _names(operator, share):
        inplace = name == f"i{name[1:]}" and hasattr(operator, name[1:]) and hasattr(operator, f"__{name}__")
        function = getattr(operator, name)
        if name.startswith("_") or name.endswith("item") or not callable(function) or inspect.isclass(function):
            continue
        other = [[], [_Parameter("other", "", True)]]
        yield from _variants(Operator(f"operator.{name}", "operator", function, inplace=inplace), other)
    indices = (slice(None), slice(0, 2)), (slice(None), 0), (Ellipsis, slice(1, 3)), example(*MAP) > 0
    for index, value in itertools.product(indices, (0.5, torch.tensor(0.25))):
        op = Operator("operator.setitem", "operator", operator.setitem, (index, value), inplace=True)
        yield from filter(None, [accepted(op)])
    for index in ((slice(None), slice(0, 2)), (slice(None), [2, 0]), (Ellipsis, slice(1, 4)), (slice(None), _INDEX)):
        yield from filter(None, [accepted(Operator("operator.getitem", "operator", operator.getitem, (index,)))])


NAMESPACES = ("torch", "torch out", "torch.Tensor", "torch.nn", "torch.nn.functional", "operator", "torchvision.ops")


@cache
def operators(namespace: str, share: int = 1) -> tuple[Operator, ...]:
    """The operators of a namespace, or of one name in `share`, in the order of their names.

    Raises:
        ImportError: torchvision is not installed.
    """
    found: dict[str, Callable[[], Iterable[Operator]]] = {
        "torch": lambda: _functions(torch, "torch", "function", share),
        "torch out": lambda: _out(operators("torch", share)),
        "torch.Tensor": lambda: _functions(Tensor, "Tensor", "method", share),
        "torch.nn": lambda: _modules(nn, "nn", share),
        "torch.nn.functional": lambda: _functional(share),
        "operator": lambda: _python_operators(share),
        "torchvision.ops": lambda: _torchvision(share),
    }
    return tuple({str(op) + op.form: op for op in found[namespace]()}.values())


def _functional(share: int) -> Iterator[Operator]:
    functions = list(_functions(F, "F", "function", share))
    yield from functions
    yield from _flagged(functions)


def _torchvision(share: int) -> Iterator[Operator]:
    import_torchvision()
    from torchvision import ops

    yield from _functions(ops, "ops", "function", share)
    yield from _modules(ops, "ops", share)
