"""Which layers are called in the modules of a graph, also inside those that stayed whole, and with what shapes."""

import inspect
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnnfx.graph.dataflow import WEIGHT_LAYERS, module_of
from bnnfx.graph.operators import operator_of_module
from bnnfx.nn import ActivationBinarizer

WHOLE = "(the model)"
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
    """Whether a module is one thing to count; what a user wrote, or torch of other modules, is looked into."""
    ours = isinstance(module, (*WEIGHT_LAYERS, ActivationBinarizer)) or is_batch_norm_module(module)
    return ours or (type(module).__module__.startswith("torch.") and next(module.children(), None) is None)


def costs_something(module: nn.Module) -> bool:
    """Whether a module multiplies, averages at run time, or has parameters."""
    averages = isinstance(module, ActivationBinarizer) and not module.pointwise
    own = module.parameters(recurse=is_layer(module))
    counts = isinstance(module, WEIGHT_LAYERS) or is_batch_norm_module(module)
    return averages or counts or next(own, None) is not None


@contextmanager
def watched_calls(gm: fx.GraphModule) -> Iterator[dict[int, list[list[Call]]]]:
    """Record what each module that a graph calls has called: by its identity, a list for each of its calls.

    A layer has called itself.
    """
    found: dict[int, list[list[Call]]] = defaultdict(list)
    running: list[int] = []  # modules that the graph calls may call each other
    called = {id(module): (str(n.target), module) for n in gm.graph.nodes if (module := module_of(gm, n)) is not None}
    parts = {key: list(_parts(module, target)) for key, (target, module) in called.items()}
    names = {key: {id(part): name for name, part in listed} for key, listed in parts.items()}
    watched = {id(part): part for listed in parts.values() for _, part in listed}

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not running:
            found[id(module)].append([])
        running.append(id(module))

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name = names[running[0]].get(id(module))
        if name is not None:
            given = inspect.signature(module.forward).bind(*args, **kwargs)  # in the order of forward
            read = tuple(_shapes((given.args, tuple(given.kwargs.values()))))
            found[running[0]][-1].append(Call(name, module, read, next(_shapes(output), ())))

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        running.pop()

    hooks = [part.register_forward_hook(record, with_kwargs=True) for part in watched.values()]
    for _, module in called.values():
        hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules to count in one that a graph calls, itself first; TorchScript takes no hooks."""
    if isinstance(module, torch.jit.ScriptModule):
        return
    if costs_something(module):
        yield name, module
    if not is_layer(module):
        for child, part in module.named_children():
            yield from _parts(part, child if name == WHOLE else f"{name}.{child}")


def _shapes(value: Any) -> Iterator[Shape]:
    """Of all tensors in a value."""
    if isinstance(value, Tensor):
        yield tuple(value.shape)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _shapes(part)
