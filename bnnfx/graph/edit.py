"""Small edits of a graph that every pass needs: submodules and buffers with readable names, nodes for nodes."""

from typing import Any

import torch
from torch import fx, nn

from bnnfx.private_interfaces import rename


def add_module(gm: fx.GraphModule, near: str, suffix: str, module: nn.Module) -> str:
    """Register a module beside another as `<near>_<suffix>`, numbered if that is taken; returns its qualified name."""
    target = _free_name(gm, f"{near}_{suffix}")
    module.train(gm.training)
    gm.add_submodule(target, module)
    return target


def add_buffer(gm: fx.GraphModule, name: str, value: torch.Tensor) -> fx.Node:
    """Register a constant as a buffer of the root and return a node that reads it, at the insert point."""
    target = _free_name(gm, name.replace(".", "_"))
    gm.register_buffer(target, value)
    return gm.graph.get_attr(target)


def add_shared_buffer(gm: fx.GraphModule, name: str, value: torch.Tensor) -> fx.Node:
    """As `add_buffer`; where a buffer of that name holds this very value, it is read again."""
    target = name.replace(".", "_")
    present = getattr(gm, target, None)
    if isinstance(present, torch.Tensor) and present.dtype == value.dtype and torch.equal(present, value):
        return gm.graph.get_attr(target)
    return add_buffer(gm, name, value)


def call_module_after(gm: fx.GraphModule, node: fx.Node, target: str) -> fx.Node:
    """Put a call of module `target` behind `node`, so that every reader of `node` reads the new node."""
    with gm.graph.inserting_after(node):
        new = gm.graph.call_module(target, (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return new


def replace_module(gm: fx.GraphModule, target: str, module: nn.Module) -> None:
    """Put another module in the place of the one called `target`."""
    parent, _, name = target.rpartition(".")
    setattr(gm.get_submodule(parent), name, module)


def replace(node: fx.Node, new: fx.Node) -> None:
    """Let every reader of `node` read `new`, erase `node`, and give `new` its name (bits keep theirs to the end)."""
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    new.name = node.name


def take_name(new: fx.Node, old: fx.Node, suffix: str) -> None:
    """Give `new` the name of `old`, which stays in the graph as `<name>_<suffix>`."""
    name = old.name
    rename(old, f"{name}_{suffix}")
    new.name = name


def _free_name(gm: fx.GraphModule, wanted: str) -> str:
    name, count = wanted, 0
    while _exists(gm, name):
        count += 1
        name = f"{wanted}_{count}"
    return name


def _exists(gm: fx.GraphModule, target: str) -> bool:
    owner: Any = gm
    for atom in target.split("."):
        if not hasattr(owner, atom):
            return False
        owner = getattr(owner, atom)
    return True
