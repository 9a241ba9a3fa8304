"""The graph module that `convert` and `lower` return: what travels with it survives copies, pickling and averaging."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from bnnfx.private_interfaces import tracer_of


class BinaryGraphModule(fx.GraphModule):
    """A graph module that keeps `kept` and the names of its nodes.

    torch keeps neither: `deepcopy` drops what the graph does not read, and pickling writes the generated code, of which
    another graph is traced with names of its own.

    Attributes:
        kept: what travels with it, by name.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "BinaryGraphModule") -> None:
        super().__init__(root, graph, class_name)
        self.kept: dict[str, Any] = dict(getattr(root, "kept", {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> "BinaryGraphModule":
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, BinaryGraphModule)
        copied.kept = dict(self.kept)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        restore, arguments = super().__reduce__()
        return _restore, (restore, arguments, [(*_identity(node), node.name) for node in self.graph.nodes])


def _restore(
    restore: Callable[..., fx.GraphModule], arguments: tuple[Any, ...], nodes: list[tuple[str, str, str]]
) -> BinaryGraphModule:
    plain = restore(*arguments)
    graph = plain.graph
    if [_identity(node) for node in graph.nodes] == [(op, target) for op, target, _ in nodes]:
        graph = _renamed(graph, [name for _, _, name in nodes])
    restored = BinaryGraphModule(plain, graph, type(plain).__name__)
    for name, value in vars(plain).items():  # what the graph does not read
        if name not in vars(restored):
            setattr(restored, name, value)
    restored.training = plain.training
    return restored


def _renamed(graph: fx.Graph, names: Sequence[str]) -> fx.Graph:
    """A copy of a graph whose nodes have other names."""
    copied: dict[fx.Node, fx.Node] = {}
    result = fx.Graph(tracer_cls=tracer_of(graph))
    for node, name in zip(graph.nodes, names, strict=True):
        args: Any = fx.node.map_arg(node.args, copied.__getitem__)
        kwargs: Any = fx.node.map_arg(dict(node.kwargs), copied.__getitem__)
        copied[node] = result.create_node(node.op, node.target, args, kwargs, name, node.type)
        copied[node].meta = dict(node.meta)
    return result


def _identity(node: fx.Node) -> tuple[str, str]:
    return node.op, str(getattr(node.target, "__name__", node.target))
