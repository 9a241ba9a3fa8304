"""What a graph silently does without of the model that it was made of."""

import inspect
from collections.abc import Iterator

from torch import nn

from bnnfx.errors import quoted
from bnnfx.graph.inplace import home_of
from bnnfx.private_interfaces import count_hooks


def not_kept(model: nn.Module, gm: nn.Module) -> str:
    """What to tell of a conversion; empty if nothing is lost without an error.

    A graph has layers, but not the submodules around them, and is of another class: a method that it lacks is missed
    when it is called, a hook that is not called, or a method of torch that is not overridden any more, is not.

    Args:
        model: the user's module.
        gm: the graph that was made of it.
    """
    said = []
    hooks = list(_lost_hooks(model, gm))
    if hooks:
        said.append(f"the hooks of {quoted(hooks, most=5)} (register them on layers of the result)")
    methods = list(_overridden(model))
    if methods:
        said.append(f"what {', '.join(methods)} does beyond torch's own (call it as a function of the result)")
    return f"the converted graph does not keep {', and '.join(said)}" if said else ""


def _lost_hooks(model: nn.Module, gm: nn.Module) -> Iterator[str]:
    """The submodules with hooks of any kind, backward and of their parameters too, that the graph does not have."""
    kept = dict(gm.named_modules())
    for path, module in model.named_modules():
        there = kept.get(path)
        if count_hooks(module) > (0 if there is None else count_hooks(there)):
            yield path or type(model).__name__


def _overridden(model: nn.Module) -> Iterator[str]:
    """The methods of `nn.Module` that the model's own class has otherwise; `train` is followed by what it does."""
    followed = {"forward", "train", "eval", "extra_repr"}
    for kind in type(model).__mro__:
        if home_of(kind) == "torch":
            return
        for name, value in vars(kind).items():
            public = not name.startswith("_") or name in ("__call__", "__getattr__")
            if public and name not in followed and inspect.isfunction(value) and hasattr(nn.Module, name):
                yield f"{kind.__name__}.{name}"
