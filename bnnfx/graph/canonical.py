"""One spelling for each operation that passes reason about: what the table of operators says of every call."""

from torch import fx

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
