"""Operations that write into their input: which they are, their functional twins, and where these are not safe."""

import functools
import inspect
import operator
from collections.abc import Callable, Collection, Iterator
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from bnnfx.graph.dataflow import module_of
from bnnfx.graph.operators import Kind, call_of, is_opaque, operator_of, operator_of_call
from bnnfx.nn.with_item import with_item

_AUGMENTED: dict[Any, Callable[..., object]] = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
} | {operator.iand: operator.and_, operator.ior: operator.or_, operator.ixor: operator.xor}
"""`y += x` and its like, and what they compute."""


_OF_CONSTANTS: dict[str, Callable[..., object]] = {"zero_": torch.zeros_like, "fill_": torch.fill}
"""Methods that write what no method gives without, and the functions that do."""


def written(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The value that a call writes into; None if it writes into none, as far as its spelling tells."""
    target: object = None
    if node.op == "call_module":
        target = _first(node) if getattr(module_of(gm, node), "inplace", False) is True else None
    elif node.op in ("call_function", "call_method"):
        if isinstance(node.kwargs.get("out"), fx.Node):
            target = node.kwargs["out"]
        elif _says_inplace(gm, node):
            target = _first(node)
    return target if isinstance(target, fx.Node) else None


def _first(node: fx.Node) -> object:
    return node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("self"))


def _says_inplace(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_function" and (node.target in _AUGMENTED or node.target is operator.setitem):
        return True
    name = _name(node)
    augmented = name.startswith("__i") and name.endswith("__") and name not in ("__index__", "__int__", "__invert__")
    underscore = name.endswith("_") and not name.endswith("__")
    return underscore or augmented or name == "__setitem__" or _flag(gm, node) is True


def _flag(gm: fx.GraphModule, node: fx.Node) -> object:
    """The argument `inplace` of a call, by name or position."""
    known = call_of(gm, node).get("inplace")
    if known is not None or node.op != "call_function":
        return known
    try:
        return inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get("inplace")  # type: ignore[arg-type]
    except (TypeError, ValueError):  # built in
        return None


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", ""))


def home_of(called: object) -> str:
    """The package that a function, or the type of a module, comes from."""
    return str(getattr(called, "__module__", None) or "").split(".")[0]


_HOMES = ("torch", "bnnfx", "_operator", "builtins", "math")
"""Packages in which the spelling of a call says whether it writes."""


def is_foreign(called: object) -> bool:
    """Whether a function, or a module, is of neither Python, torch nor this package."""
    return home_of(called) not in _HOMES


def may_write(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call may write into its inputs: what nothing is known of may, unless torch or this package made it."""
    if node.op not in ("call_module", "call_function") or not is_opaque(operator_of(gm, node)):
        return False
    return is_foreign(module_of(gm, node) if node.op == "call_module" else node.target)


def must_stay(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call may do more than give its result: nobody may drop it then, though nothing reads it."""
    return node.is_impure() or may_write(gm, node)


def place_of_flag(gm: fx.GraphModule, node: fx.Node) -> int | None:
    """Where among the positional arguments of a call `inplace` stands; None if it does not."""
    if node.op != "call_function" or "inplace" in node.kwargs:
        return None
    row = operator_of(gm, node)
    names = [*row.operands, *row.parameters]
    if "inplace" not in names:
        try:
            names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
        except (TypeError, ValueError):  # built in
            return None
    place = names.index("inplace") if "inplace" in names else len(node.args)
    return place if place < len(node.args) else None


def functional_twin(node: fx.Node) -> Callable[..., object] | str | None:
    """The function or method that gives what an in-place call of a function or method writes; None if there is none."""
    name = _name(node)
    if node.op == "call_method":
        if name.startswith("__"):
            augmented: Callable[..., object] | None = _AUGMENTED.get(getattr(operator, name.strip("_"), None))
            return augmented
        if name in _OF_CONSTANTS:
            return _OF_CONSTANTS[name]
        return name[:-1] if callable(getattr(Tensor, name[:-1], None)) and _gives_floats(name[:-1]) else None
    assert not isinstance(node.target, str)
    if node.target in _AUGMENTED:
        return _AUGMENTED[node.target]
    if node.target is operator.setitem:
        return with_item
    if not name.endswith("_"):
        return node.target  # without the flag, or `out`
    places = [place for place in (torch, F) if getattr(place, name, None) is node.target]  # not a user's own
    found: list[Callable[..., object]] = [twin for place in places if (twin := getattr(place, name[:-1], None))]
    return found[0] if found else None


@functools.cache
def _gives_floats(method: str) -> bool:
    """Whether a method of a float tensor gives floats, as what is written into one is, and lets gradients pass.

    A comparison gives bools; `bernoulli` has no gradient, and `bernoulli_` needs none.
    """
    gives_floats = True
    for operands in ((), (0.5,), (torch.full((1,), 0.5),), (torch.full((1,), 0.5),) * 2):
        try:
            result = getattr(torch.full((1,), 0.5, requires_grad=True), method)(*operands)
            if isinstance(result, Tensor) and result.requires_grad:
                result.sum().backward()  # type: ignore[no-untyped-call]
        except (TypeError, RuntimeError, ValueError) as error:
            gives_floats &= "derivative" not in str(error)
        else:
            gives_floats &= not isinstance(result, Tensor) or result.is_floating_point()
    return gives_floats


def unsafe_writes(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """The in-place calls that cannot be made functional, each with the reason.

    Not safe is a call without a twin, one that writes into a parameter or buffer, and one that writes into memory which
    something that reads another name of it sees: `v = y[:, :2]; v.mul_(2)`, and then `y`.
    """
    order = {node: place for place, node in enumerate(gm.graph.nodes)}
    memory: dict[fx.Node, set[fx.Node]] = {}  # the values that may lie in the same memory, in one set
    tensor: dict[fx.Node, fx.Node] = {}  # names of one and the same tensor, by the first of them
    numbers: dict[fx.Node, bool] = {}
    for node in gm.graph.nodes:
        source = written(gm, node)
        sharing = [] if is_number(node, numbers) else _may_share(gm, node) if source is None else [source]
        for shared in [value for value in sharing if not is_number(value, numbers)]:
            merged = memory.get(node, {node}) | memory.get(shared, {shared})
            memory.update(dict.fromkeys(merged, merged))
        if source is None:
            continue
        tensor[node] = tensor.get(source, source)
        if node.op != "call_module" and functional_twin(node) is None:
            yield node, "writes into its input, and no function gives the same without"
        elif source.op == "get_attr":
            yield node, f"writes into '{source.target}', which belongs to the model"
        else:
            back = _written_back(node)
            for other in memory[source] - {node}:
                same = tensor.get(other, other)
                if same is _viewed(node, tensor):
                    continue  # it has been written there, and what is written back is that
                until = len(order) if back is None or same is not _same(back.args[0], tensor) else order[back]
                late = [user for user in other.users if order[node] < order[user] < until]
                if order[other] < order[node] and tensor.get(other, other) is not tensor[node] and late:
                    yield node, f"writes into memory that '{late[0].name}' reads as '{other.name}'"
                    break


def is_number(node: fx.Node, known: dict[fx.Node, bool]) -> bool:
    """Whether a value is a size, or computed of sizes, which has no memory that is written to.

    Args:
        node: the value.
        known: the same, of nodes that were asked for before.
    """
    if node not in known:
        arithmetic = node.op == "call_function" and home_of(node.target) == "_operator" and node.all_input_nodes
        known[node] = operator_of_call(node).kind is Kind.SIZE or (
            bool(arithmetic) and all(is_number(source, known) for source in node.all_input_nodes)
        )
    return known[node]


def write_back(gm: fx.GraphModule) -> None:
    """Behind a write into a part of a tensor, `y[:, :2].mul_(2)`, assign it to that part, where `y` is read later.

    It changes nothing in what the graph computes, and says which part of which tensor was written.
    """
    order = {node: place for place, node in enumerate(gm.graph.nodes)}
    for node in order:
        part = written(gm, node)
        if part is None or not _is_part(part) or _written_back(node) is not None:
            continue
        whole, index = part.args
        if any(order[user] > order[node] for user in whole.users):  # type: ignore[union-attr]
            with gm.graph.inserting_after(node):
                back = gm.graph.call_function(operator.setitem, (whole, index, node))
            back.meta.update(node.meta)


def _is_part(node: fx.Node) -> bool:
    """Whether a node gives a part of a tensor, in its memory: what is picked by lists or tensors is a copy."""
    if node.op != "call_function" or node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return False
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return all(isinstance(place, slice | int | EllipsisType | None) for place in index)


def _written_back(node: fx.Node) -> fx.Node | None:
    """The assignment to a part of a tensor that follows a write into this part, `y[i] = y[i].mul_(2)`, if it does."""
    part = _first(node)
    if not isinstance(part, fx.Node) or not _is_part(part):
        return None
    return next((user for user in node.users if _assigns(user, node) and user.args[:2] == part.args), None)


def _assigns(node: fx.Node, value: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.setitem and node.args[2] is value


def _same(value: object, tensor: dict[fx.Node, fx.Node]) -> object:
    """The first name of a tensor."""
    return tensor.get(value, value) if isinstance(value, fx.Node) else value


def _viewed(node: fx.Node, tensor: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """The part of a tensor that an assignment writes back."""
    value = node.args[2] if node.op == "call_function" and node.target is operator.setitem else None
    back = _written_back(value) if isinstance(value, fx.Node) else None
    return tensor.get(value) if back is node and isinstance(value, fx.Node) else None


def unsafe_calls(gm: fx.GraphModule, writers: Collection[str]) -> Iterator[tuple[fx.Node, str]]:
    """The calls of leaves and of a user's functions that are made for what they write, each with the reason.

    Args:
        gm: the graph.
        writers: the leaves that are known to write in place.
    """
    order = {node: place for place, node in enumerate(gm.graph.nodes)}
    for node in gm.graph.nodes:
        if not may_write(gm, node):
            continue
        late = [user for source in node.all_input_nodes for user in source.users if order[user] > order[node]]
        if not node.users:
            yield node, "gives nothing that is read: it is called for what it writes into its input"
        elif str(node.target) in writers and late:
            yield node, f"writes into its input, which '{late[0].name}' reads, too"


def _may_share(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The inputs in whose memory a result may lie: those of a view, a cast, and of what is not known."""
    fresh = operator_of(gm, node).fresh or node.op in ("placeholder", "get_attr", "output")
    return [] if fresh else list(node.all_input_nodes)
