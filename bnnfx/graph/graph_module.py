"""The graph module that `convert` and `lower` return: what travels with it survives copies, pickling and averaging."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import fx, nn

from bnnfx.private_interfaces import tracer_of


class Held(NamedTuple):
    """What the `train()` of the user's model leaves as it is, or turns off, in one mode.

    Attributes:
        modules: those that stay in the other mode: frozen batch norms, dropouts that stay on.
        frozen: the parameters that get no gradient from then on.
    """

    modules: frozenset[str]
    frozen: frozenset[str]


_HELD, _ATTRIBUTES, _RENAMED = "held", "attributes", "renamed"


class BinaryGraphModule(fx.GraphModule):
    """A graph module that keeps `kept`, attributes of the user's model, what its `train()` did, and names of nodes.

    torch keeps none: `deepcopy` drops what the graph does not read, and pickling writes the generated code, of which
    another graph is traced with names of its own.

    Attributes:
        kept: what travels with it, by name.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "BinaryGraphModule") -> None:
        super().__init__(root, graph, class_name)
        self.kept: dict[str, Any] = {}

    def hold(self, held: Mapping[bool, Held]) -> None:
        """Let `train(mode)` hold what the user's own does, by mode."""
        self.kept[_HELD] = {mode: entry for mode, entry in held.items() if any(entry)}

    def keep_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes, but for names that a graph module has itself, and keep them from now on."""
        free = {name: value for name, value in attributes.items() if not hasattr(self, name)}
        for name, value in free.items():
            setattr(self, name, value)
        self.kept[_ATTRIBUTES] = tuple(free)

    def rename(self, renamed: Mapping[str, tuple[str, ...]]) -> None:
        """Load a parameter of the user's model that has another name here, or is several, as that or those."""
        self.kept[_RENAMED] = dict(renamed)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module; names of the user's model are known, too."""
        state = dict(state_dict)
        for name, new in self.kept.get(_RENAMED, {}).items():
            if name in state:
                state |= dict(zip(new, state.pop(name).chunk(len(new)), strict=True))
        return super().load_state_dict(state, strict, assign)

    def train(self, mode: bool = True) -> "BinaryGraphModule":
        """As in any module, but for what the `train()` of the model that this was made of holds or freezes."""
        super().train(mode)
        held = self.kept.get(_HELD, {}).get(mode)
        if held is not None:
            for path, module in self.named_modules():
                module.training = mode != (path in held.modules)
            for name, parameter in self.named_parameters():
                if name in held.frozen:
                    parameter.requires_grad_(False)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "BinaryGraphModule":
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, BinaryGraphModule)
        copied.kept = dict(self.kept)
        for name in self.kept.get(_ATTRIBUTES, ()):
            if name in vars(self):
                setattr(copied, name, copy.deepcopy(vars(self)[name], memo))
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
    restored.kept = plain.kept  # type: ignore[assignment]
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
