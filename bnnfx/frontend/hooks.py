"""Hooks on modules: which only look, found by running them, and which change what goes in or comes out."""

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnnfx.errors import ConversionError
from bnnfx.graph.dataflow import WEIGHT_LAYERS, module_calls, module_of
from bnnfx.graph.given_models import copy_of
from bnnfx.graph.inplace import home_of
from bnnfx.graph.operators import Mode, operator_of
from bnnfx.graph.random_state import same_random_state
from bnnfx.graph.shapes import copies, leaves_of
from bnnfx.private_interfaces import hook_tables, take_hooks

REMEDY = "do what the hook does in forward, or in a module of its own, and remove the hook"


def hooked(model: nn.Module) -> dict[str, nn.Module]:
    """The modules with hooks that are called before or behind their forward, by path."""
    return {path: module for path, module in model.named_modules() if any(hook_tables(module))}


def changing_hooks(model: nn.Module, inputs: tuple[Any, ...] | None) -> frozenset[str]:
    """The modules with hooks that change something, or may: all of them without inputs to run the model on.

    A hook only looks if, in both modes, it returns None, and leaves what it is given and the tensors of its module with
    the values that they have. It is called for that, as in use, by a copy of the model.

    Args:
        model: any module; it is not changed.
        inputs: arguments of forward, with values.

    Raises:
        ConversionError: the model cannot be copied.
    """
    paths = hooked(model)
    if not paths or inputs is None:
        return frozenset(paths)
    copied = copy_of(model)
    if "" in paths and not any(hook_tables(copied)):  # a graph module's copy has none
        take_hooks(copied, model)
    called: set[str] = set()
    changing: set[str] = set()
    for path, module in hooked(copied).items():
        for table in hook_tables(module):
            for key, hook in table.items():
                table[key] = _watched(hook, functools.partial(called.add, path), functools.partial(changing.add, path))
    modes = 0
    for training in (True, False):
        copied.train(training)
        with torch.no_grad(), same_random_state(), suppress(Exception):  # it need not run in both modes
            copied(*copies(inputs))
            modes += 1
    unseen = paths.keys() - called if modes < 2 else set()
    return frozenset(changing | unseen)


def _watched(hook: Callable[..., Any], called: Callable[[], None], changes: Callable[[], None]) -> Callable[..., Any]:
    def watched(module: nn.Module, *given: Any) -> Any:
        called()
        before = copies(_tensors(module, given))
        changed = True  # so is what fails
        try:
            result = hook(module, *given)
            after = _tensors(module, given)
            changed = result is not None or len(after) != len(before) or not all(map(_same, before, after))
        finally:
            if changed:
                changes()
        return result

    return watched


def _tensors(module: nn.Module, given: object) -> list[Tensor]:
    """What is given, and what a module computes with as far as that is known: a weight that is computed is no more."""
    computed = (vars(module).get(name) for name in ("weight", "bias"))
    others = (x for x in (*computed, *leaves_of(given)) if isinstance(x, Tensor))
    return [*module.parameters(), *module.buffers(), *others]


def _same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and bool(((x == y) | ((x != x) & (y != y))).all())


def require_looking(model: nn.Module, changing: frozenset[str], known: bool) -> None:
    """Refuse hooks that change what the model as a whole, or a module of torch, takes or gives; for `convert`.

    What the compiler knows of such a module would not be true of it. A layer with a weight stays float, and a submodule
    of the user's own types is kept whole.

    Args:
        model: the module.
        changing: see `changing_hooks`.
        known: whether the hooks have been run; else they are only taken to change something.

    Raises:
        ConversionError: naming the modules.
    """
    _refuse(model, changing, known, (*WEIGHT_LAYERS, *_CONTAINERS))


def settle_hooks(packed: nn.Module, gm: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Refuse hooks that change what the graph, or a module of torch or ours in it, takes or gives; for `lower`.

    Hooks that only look are taken off.

    Args:
        packed: a copy of `gm`.
        gm: the graph to be lowered.
        inputs: arguments of forward.

    Raises:
        ConversionError: naming the modules.
    """
    if any(hook_tables(gm)):
        take_hooks(packed, gm)
    changing = changing_hooks(packed, inputs)
    _refuse(packed, changing, True, _CONTAINERS)
    for path, module in hooked(packed).items():
        for table in hook_tables(module) if path not in changing else ():
            table.clear()


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # these are traced into


def _refuse(model: nn.Module, changing: frozenset[str], known: bool, accepted: tuple[type[nn.Module], ...]) -> None:
    modules = {path: model.get_submodule(path) for path in sorted(changing)}
    found = [
        f"'{path or type(model).__name__}'"
        for path, module in modules.items()
        if not path or (home_of(type(module)) in ("torch", "bnnfx") and not isinstance(module, accepted))
    ]
    if found:
        what = "a hook that changes what goes in or comes out" if known else "a hook, which may change values"
        also = "" if known else "; or give example_inputs, on which it is seen whether it only looks"
        raise ConversionError(f"{', '.join(found)} has {what}. The remedy: {REMEDY}{also}.")


def require_evaluation(gm: fx.GraphModule) -> None:
    """Refuse a graph in which `eval()` leaves something in training, as the user's own `train()` does.

    Args:
        gm: a graph after `eval()`.

    Raises:
        ConversionError: naming what stays in training and computes something else there.
    """
    for node in module_calls(gm, nn.Module):
        module = module_of(gm, node)
        if module is not None and module.training and operator_of(gm, node).mode is not Mode.SAME:
            raise ConversionError(
                f"'{node.target}' stays in training after eval(), as in the model that was converted, and what is "
                "lowered is evaluation. The remedy: let the model's own train() switch it, and convert again."
            )
