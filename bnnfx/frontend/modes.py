"""One graph of two: a model traced in training and in evaluation."""

from collections import defaultdict
from collections.abc import Collection, Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnnfx.graph import edit
from bnnfx.graph.inplace import place_of_flag, written
from bnnfx.graph.operators import BATCH_NORM_TENSORS, FOLLOWS, FUNCTIONAL_BATCH_NORM, Call, Mode, call_of, operator_of
from bnnfx.nn.mode import CallByMode

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def differing_modules(training: fx.Graph, evaluation: fx.Graph, in_both: Collection[str]) -> list[str]:
    """The innermost submodules that do something else in training than in evaluation; the model itself is empty.

    What differs in nothing but constants of a function does the same: `follow_both_modes` has both.

    Args:
        training: what was traced in training.
        evaluation: what was traced in evaluation.
        in_both: the submodules that are called in both; one that is called in one of them is its caller's difference.
    """
    calls = [_by_module(graph) for graph in (training, evaluation)]
    differing = {path for path in {"", *in_both} if calls[0].get(path) != calls[1].get(path)}
    return [path for path in differing if not any(_is_inside(other, path) for other in differing)]


def _is_inside(path: str, outer: str) -> bool:
    return path != outer and (not outer or path.startswith(f"{outer}."))


def _by_module(graph: fx.Graph) -> dict[str, list[object]]:
    """What each submodule does, without the constants of functions."""
    calls: dict[str, list[object]] = defaultdict(list)
    places = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        stack = {str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()}
        if node.op == "call_module":
            stack -= {str(node.target)}  # a leaf does what it does; whether it is called is its caller's
        for path in {"", *stack}:
            calls[path].append(_signature(node))
    calls[""].append([[places[source] for source in node.all_input_nodes] for node in graph.nodes])
    return calls


class _Value:
    """An attribute of a graph, equal to another one by value."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        x, y = self.value, other.value if isinstance(other, _Value) else other
        if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or x is y:
            return x is y
        alike = (x.dtype, x.shape, x.device) == (y.dtype, y.shape, y.device)
        return alike and (x.is_meta or torch.equal(x, y))

    __hash__ = None  # type: ignore[assignment]


def _signature(node: fx.Node) -> object:
    if node.op == "get_attr":  # a tensor that forward makes is an attribute, too, and may have other values by mode
        return node.op, str(node.target), _Value(attrgetter(str(node.target))(node.graph.owning_module))
    constants = node.op != "call_function"
    arguments = fx.node.map_aggregate(
        (node.args, dict(node.kwargs)),
        lambda value: "value" if isinstance(value, fx.Node) else repr(value) if constants else "constant",
    )
    return node.op, str(node.target), repr(arguments)


def follow_both_modes(gm: fx.GraphModule, training: fx.Graph, model: nn.Module) -> None:
    """Let every call that has other constants in training follow `train()` and `eval()`, in place.

    Dropouts become modules, and so does a batch norm that a subclass calls as a function; anything else a `CallByMode`.

    Args:
        gm: what was traced in evaluation.
        training: what was traced in training, alike but for constants: see `differing_modules`.
        model: the model itself.
    """
    for in_training, node in list(zip(training.nodes, gm.graph.nodes, strict=True)):
        differing = dict(_differing(in_training, node))
        if differing:
            _follow(gm, model, in_training, node, differing)


def _differing(in_training: fx.Node, node: fx.Node) -> Iterator[tuple[str | int, Any]]:
    """The arguments that training has otherwise, with their values there."""
    for place, (theirs, ours) in enumerate(zip(in_training.args, node.args, strict=True)):
        if _text(theirs) != _text(ours):
            yield place, theirs
    for name, ours in node.kwargs.items():
        if _text(in_training.kwargs[name]) != _text(ours):
            yield name, in_training.kwargs[name]


def _text(argument: Any) -> str:
    return repr(fx.node.map_aggregate(argument, lambda value: "value" if isinstance(value, fx.Node) else repr(value)))


def _follow(
    gm: fx.GraphModule, model: nn.Module, in_training: fx.Node, node: fx.Node, differing: dict[str | int, Any]
) -> None:
    source = written(gm, node)
    if source is not None:  # its later readers read what it gives
        order = {other: place for place, other in enumerate(gm.graph.nodes)}
        later = {user for user in source.users if order[user] > order[node]}
        place = place_of_flag(gm, node)
        node.args = tuple(False if index == place else value for index, value in enumerate(node.args))
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
    target = _own_batch_norm(gm, model, node) or _dropout(gm, in_training, node)
    with gm.graph.inserting_before(node):
        if target is not None:
            new = gm.graph.call_module(target, call_of(gm, node).operands[:1])
        else:
            in_evaluation = {key: node.args[key] if isinstance(key, int) else node.kwargs[key] for key in differing}
            assert not isinstance(node.target, str)
            module = CallByMode(node.target, differing, in_evaluation)
            kwargs = {name: value for name, value in node.kwargs.items() if name not in differing}
            new = gm.graph.call_module(edit.add_module(gm, node.name, "by_mode", module), node.args, kwargs)
    new.meta.update(node.meta)
    if source is not None:
        source.replace_all_uses_with(new, delete_user_cb=lambda user: user in later)
    edit.replace(node, new)


def _dropout(gm: fx.GraphModule, in_training: fx.Node, node: fx.Node) -> str | None:
    """The module of a dropout that is called with `training=self.training`; the name that it is added under."""
    row, call, before = operator_of(gm, node), call_of(gm, node), call_of(gm, in_training)
    if row.mode is not Mode.DROPS or (before.get("training", True), call.get("training", True)) != (True, False):
        return None
    arguments = {key: value for key, value in call.arguments.items() if before.arguments.get(key) == value}
    spelling = row.canonical(Call(node, None, call.operands, {**arguments, "training": FOLLOWS}))
    if spelling is None or not isinstance(spelling[0], nn.Module):
        return None
    module = spelling[0]
    return edit.add_module(gm, node.name, type(module).__name__.lower(), module)


def _own_batch_norm(gm: fx.GraphModule, model: nn.Module, node: fx.Node) -> str | None:
    """The path of a batch norm's subclass that calls the function with its own tensors; there is a plain one then."""
    if operator_of(gm, node).name != FUNCTIONAL_BATCH_NORM:
        return None
    call = call_of(gm, node)
    given = {name: value for name in BATCH_NORM_TENSORS if (value := call.get(name)) is not None}
    read = [str(value.target).rpartition(".") for value in given.values() if isinstance(value, fx.Node)]
    paths = {path for path, _, _ in read}
    if len(paths) != 1 or [name for _, _, name in read] != list(given):
        return None
    (path,) = paths
    owner: Any = model.get_submodule(path)
    kind = next((kind for kind in _BATCH_NORMS if isinstance(owner, kind)), None)
    if kind is None or owner.momentum is None or owner.running_mean is None:
        return None
    if type(gm.get_submodule(path)) is not kind:
        plain = kind(owner.num_features, owner.eps, owner.momentum, affine=False, device="meta")
        for name in BATCH_NORM_TENSORS:
            setattr(plain, name, getattr(owner, name))
        plain.affine, plain.num_batches_tracked = owner.affine, owner.num_batches_tracked
        for name, child in gm.get_submodule(path).named_children():
            plain.add_module(name, child)
        edit.replace_module(gm, path, plain)
    return path
