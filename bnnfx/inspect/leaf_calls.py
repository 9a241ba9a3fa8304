"""Which layers are called in the modules of a graph, also inside those that stayed whole, and with what shapes."""

import inspect
from collections.abc import Callable, Iterator
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


class Watch:
    """Records what each module that a graph calls has called, by the node of the call; a layer has called itself."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.calls: dict[fx.Node, list[Call]] = {}
        self._now: fx.Node | None = None
        self._parts = {n: list(_parts(m, str(n.target))) for n in gm.graph.nodes if (m := module_of(gm, n)) is not None}

    def begin(self, node: fx.Node) -> None:
        """To be told before a node runs."""
        self._now, self.calls[node] = node, []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the graph, or a copy of it, runs."""
        parts = {id(part): part for parts in self._parts.values() for _, part in parts}
        hooks = [part.register_forward_hook(self._recorder(part), with_kwargs=True) for part in parts.values()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _recorder(self, part: nn.Module) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            assert self._now is not None
            name = next((name for name, other in self._parts[self._now] if other is part), None)
            if name is not None:
                given = inspect.signature(part.forward).bind(*args, **kwargs)  # in the order of forward
                read = tuple(_shapes((given.args, tuple(given.kwargs.values()))))
                self.calls[self._now].append(Call(name, part, read, next(_shapes(output), ())))

        return record


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
