"""Which layers are called inside modules that stay whole in a graph, and with what shapes."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from bnnfx.graph.dataflow import WEIGHT_LAYERS, module_of
from bnnfx.nn import ActivationBinarizer
from bnnfx.private_interfaces import BatchNorm

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

WHOLE = "model"
"""Name of a model that is one leaf altogether."""

Shape = tuple[int, ...]


@dataclass
class Call:
    """One call of a layer; the shapes have the batch."""

    name: str
    module: nn.Module
    input_shape: Shape
    output_shape: Shape


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one thing to count; what a user wrote is looked into."""
    ours = isinstance(module, (*WEIGHT_LAYERS, BatchNorm, ActivationBinarizer))
    return ours or (type(module).__module__.startswith("torch.") and not isinstance(module, _CONTAINERS))


def costs_something(module: nn.Module) -> bool:
    """Whether a module multiplies, averages at run time, or has parameters."""
    averages = isinstance(module, ActivationBinarizer) and not module.pointwise
    own = module.parameters(recurse=is_layer(module))
    return averages or isinstance(module, (*WEIGHT_LAYERS, BatchNorm)) or next(own, None) is not None


@contextmanager
def watched_leaves(gm: fx.GraphModule) -> Iterator[dict[int, list[list[Call]]]]:
    """Record what is called inside modules that stayed whole: by their identity, a list for each of their calls."""
    found: dict[int, list[list[Call]]] = defaultdict(list)
    hooks = []
    leaves = {id(module): (str(n.target), module) for n in gm.graph.nodes if (module := module_of(gm, n)) is not None}
    for key, (target, leaf) in leaves.items():
        if is_layer(leaf):
            continue
        hooks.append(leaf.register_forward_pre_hook(lambda module, args, key=key: found[key].append([])))
        for name, module in _parts(leaf, "" if target == WHOLE else target):
            hooks.append(module.register_forward_hook(_recorder(found, key, name), with_kwargs=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules to count in a leaf, itself first."""
    if costs_something(module):
        yield name, module
    if not is_layer(module):
        for child, part in module.named_children():
            yield from _parts(part, f"{name}.{child}".removeprefix("."))


def _recorder(found: dict[int, list[list[Call]]], key: int, name: str) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found[key][-1].append(Call(name, module, _shape((*args, *kwargs.values())), _shape(output)))

    return record


def _shape(value: Any) -> Shape:
    """Of a tensor, or of the first tensor of several."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return next((tuple(x.shape) for x in value if isinstance(x, Tensor)), ()) if isinstance(value, tuple | list) else ()
