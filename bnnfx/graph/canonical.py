"""One spelling for each operation that passes reason about: what the table of operators says of every call."""

from typing import Any

from torch import fx, nn

from bnnfx.graph import edit
from bnnfx.graph.operators import Spelling, call_of, operator_of


def canonical_call(gm: fx.GraphModule, node: fx.Node) -> Spelling | None:
    """What a node should be instead: a module or function to call, and its arguments. None if it is canonical."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return None
    call = call_of(gm, node)
    of_a_value = bool(call.operands) and isinstance(call.operands[0], fx.Node | list | tuple)
    return operator_of(gm, node).canonical(call) if of_a_value else None


def alias_of(gm: fx.GraphModule, node: fx.Node) -> str | None:
    """How a node is spelled if it has another, canonical spelling, else None."""
    if canonical_call(gm, node) is None:
        return None
    return str(node.target) if node.op == "call_method" else f"{getattr(node.target, '__name__', node.target)}"


def spell(gm: fx.GraphModule, node: fx.Node, call: Spelling) -> fx.Node:
    """Put a canonical call in the place of a node, under its name."""
    function, arguments = call
    target: Any = function
    if isinstance(function, nn.Module):
        target = edit.add_module(gm, node.name, type(function).__name__.lower(), function)
    with gm.graph.inserting_before(node):
        if isinstance(function, nn.Module):
            new = gm.graph.call_module(target, arguments)
        else:
            new = gm.graph.call_function(target, arguments)
    new.meta.update(node.meta)
    edit.replace(node, new)
    return new
