"""Which layers are called inside modules that stay whole in a graph, and with what shapes."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from bnnfx.graph.dataflow import WEIGHT_LAYERS, module_of
from bnnfx.graph.operators import operator_of_module
from bnnfx.nn import ActivationBinarizer

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

WHOLE = "model"
"""Name of a model that is one leaf altogether."""

Shape = tuple[int, ...]


@dataclass
class Call:
    """One call of a layer; the shapes have the batch."""

    name: str
    module: nn.Module
    input_shapes: tuple[Shape, ...]
    output_shape: Shape

    @property
    def input_shape(self) -> Shape:
        """Of the first tensor that it reads."""
        return next(iter(self.input_shapes), ())


def is_batch_norm_module(module: nn.Module) -> bool:
    """Whether a module is a batch norm: two numbers per channel, once it is folded."""
    return operator_of_module(module).batch_norm


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one thing to count; what a user wrote is looked into."""
    ours = isinstance(module, (*WEIGHT_LAYERS, ActivationBinarizer)) or is_batch_norm_module(module)
    return ours or (type(module).__module__.startswith("torch.") and not isinstance(module, _CONTAINERS))


def costs_something(module: nn.Module) -> bool:
    """Whether a module multiplies, averages at run time, or has parameters."""
    averages = isinstance(module, ActivationBinarizer) and not module.pointwise
    own = module.parameters(recurse=is_layer(module))
    counts = isinstance(module, WEIGHT_LAYERS) or is_batch_norm_module(module)
    return averages or counts or next(own, None) is not None


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
        found[key][-1].append(Call(name, module, _shapes((*args, *kwargs.values())), next(iter(_shapes(output)), ())))

    return record


def _shapes(value: Any) -> tuple[Shape, ...]:
    """Of a tensor, or of the tensors of several values."""
    values = value if isinstance(value, tuple | list) else (value,)
    return tuple(tuple(x.shape) for x in values if isinstance(x, Tensor))
