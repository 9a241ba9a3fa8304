"""What a graph returns, taken apart: its values in order, and the names that the user's code gives them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx


def results_of(gm: fx.GraphModule) -> list[tuple[str, Any]]:
    """The values that a graph returns, nodes and constants, each with its name; without what is None.

    A name is the path of keys, fields and places through what forward returns; it is empty where there is none, or
    only places of a tuple.

    >>> from torch import nn
    >>> class Two(nn.Module):
    ...     def forward(self, x):
    ...         return {"logits": x, "features": (x + 1, x + 2)}
    >>> [name for name, value in results_of(fx.symbolic_trace(Two()))]
    ['logits', 'features_0', 'features_1']
    """
    found = _parts(gm.graph.output_node().args[0], ())
    return [(_name(path), value) for path, value in found if value is not None]


def _name(path: tuple[object, ...]) -> str:
    return "_".join(map(str, path)) if any(isinstance(step, str) for step in path) else ""


def _parts(value: Any, path: tuple[object, ...]) -> Iterator[tuple[tuple[object, ...], Any]]:
    for name, part in _inside(value):
        yield from _parts(part, (*path, name))
    if not _is_structure(value):
        yield path, value


def _is_structure(value: Any) -> bool:
    return isinstance(value, Mapping | tuple | list) or _made_by(value) is not None


def _inside(value: Any) -> Iterator[tuple[object, Any]]:
    """The parts of a structure, named by keys, fields or places."""
    kind = _made_by(value)
    if kind is not None:  # torch.fx calls the class of a named tuple or a dataclass
        yield from zip(_fields(kind), value.args, strict=False)
        yield from value.kwargs.items()
    elif isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, tuple | list):
        yield from enumerate(value)


def _made_by(value: Any) -> type | None:
    """The named tuple or dataclass that a node makes."""
    target = value.target if isinstance(value, fx.Node) and value.op == "call_function" else None
    return target if isinstance(target, type) and _fields(target) else None


def _fields(kind: type) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return tuple(getattr(kind, "_fields", ()))


def flatten_results(gm: fx.GraphModule) -> None:
    """Let a graph return its values as one tuple, in place."""
    values = tuple(value for _, value in results_of(gm))
    gm.graph.output_node().args = (values,)
    gm.graph.eliminate_dead_code()
    gm.recompile()
