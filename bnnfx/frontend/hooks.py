"""Hooks on modules: which only look, found by running them, and which change what goes in or comes out."""

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnnfx.errors import ConversionError
from bnnfx.frontend.check_values import copies, same_random_state
from bnnfx.graph.dataflow import WEIGHT_LAYERS, module_calls, module_of
from bnnfx.graph.given_models import copy_of
from bnnfx.graph.inplace import home_of
from bnnfx.graph.operators import Mode, operator_of
from bnnfx.graph.shapes import leaves_of
from bnnfx.private_interfaces import changes_of, hook_tables

REMEDY = "do what the hook does in forward, or in a module of its own, and remove the hook"


def hooked(model: nn.Module) -> dict[str, nn.Module]:
    """The modules with hooks that are called before or behind their forward, by path."""
    return {path: module for path, module in model.named_modules() if any(hook_tables(module))}


def changing_hooks(model: nn.Module, inputs: tuple[Any, ...] | None) -> frozenset[str]:
    """The modules with hooks that change something, or may: all of them without inputs to run the model on.

    A hook only looks if it returns None in both modes, and writes neither into what it is given nor into the tensors
    of its module. It is called for that, as in use, with a copy of the model.

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
    called: set[str] = set()
    changing: set[str] = set()
    for path, module in hooked(copied).items():
        for table in hook_tables(module):
            for key, hook in table.items():
                table[key] = _watched(hook, functools.partial(called.add, path), functools.partial(changing.add, path))
    for training in (True, False):
        copied.train(training)
        with torch.no_grad(), same_random_state(), suppress(Exception):  # it need not run in both modes
            copied(*copies(inputs))
    return frozenset(path for path in paths if path in changing or path not in called)


def _watched(hook: Callable[..., Any], called: Callable[[], None], changes: Callable[[], None]) -> Callable[..., Any]:
    def watched(module: nn.Module, *given: Any) -> Any:
        called()
        tensors = [*_tensors(module), *(x for x in leaves_of(given) if isinstance(x, Tensor))]
        before = [changes_of(x) for x in tensors]
        result = hook(module, *given)
        same = len(now := _tensors(module)) <= len(tensors) and all(x is y for x, y in zip(now, tensors, strict=False))
        if result is not None or not same or before != [changes_of(x) for x in tensors]:
            changes()
        return result

    return watched


def _tensors(module: nn.Module) -> list[Tensor]:
    """What a module computes with, as far as that is known: what is registered, and a weight that is computed."""
    computed = (vars(module).get(name) for name in ("weight", "bias"))
    return [*module.parameters(), *module.buffers(), *(x for x in computed if isinstance(x, Tensor))]


def require_looking(model: nn.Module, changing: frozenset[str], known: bool) -> None:
    """Refuse hooks that change what a module of torch, or of ours, or the model as a whole, takes or gives.

    What the compiler knows of such a module would not be true of it. A layer with a weight stays float in `convert`,
    and a submodule of the user's own types is kept whole.

    Args:
        model: the module.
        changing: see `changing_hooks`.
        known: whether the hooks have been run; else they are only taken to change something.

    Raises:
        ConversionError: naming them.
    """
    found = [f"'{path or type(model).__name__}'" for path in changing if not path or is_of_torch(model, path)]
    if found:
        what = "a hook that changes what goes in or comes out" if known else "a hook, which may change values"
        also = "" if known else "; or give example_inputs, on which it is seen whether it only looks"
        raise ConversionError(f"{', '.join(sorted(found))} has {what}. The remedy: {REMEDY}{also}.")


def is_of_torch(model: nn.Module, path: str) -> bool:
    """Whether a submodule is one of torch without a weight layer's own treatment, which is known by its type."""
    module = model.get_submodule(path)
    return home_of(type(module)) in ("torch", "bnnfx") and not isinstance(module, (*WEIGHT_LAYERS, *_CONTAINERS))


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # these are traced into


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
