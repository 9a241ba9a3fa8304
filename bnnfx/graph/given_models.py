"""What people hand over in place of a plain module: what it is, and what to hand over instead."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.ao.nn.quantized import FloatFunctional, FXFloatFunctional
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from bnnfx.errors import ConversionError, Refusal, first_line
from bnnfx.graph.dataflow import WEIGHT_LAYERS, module_calls
from bnnfx.private_interfaces import compiled_module, hooks_before, is_aten, pruned_tensor

M = TypeVar("M", bound=nn.Module)

_QUANTIZED = (
    *("torch.ao.nn.qat", "torch.ao.nn.quantized", "torch.ao.nn.quantizable", "torch.ao.nn.sparse"),
    *("torch.ao.nn.intrinsic.qat", "torch.ao.nn.intrinsic.quantized"),
    *("torch.ao.quantization.observer", "torch.ao.quantization.fake_quantize"),
)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def obstacle(model: object) -> Refusal | None:
    """Why something that is called like a model, or holds one, is none that can be worked with; None of a plain module.

    >>> obstacle(nn.DataParallel(nn.Linear(2, 2))).remedy
    'pass model.module, and wrap the result'
    """
    return next((refusal for ask in _KINDS if (refusal := ask(model)) is not None), None)


def _no_module(model: object) -> Refusal | None:
    if isinstance(model, torch.export.ExportedProgram):
        return Refusal("is a program that torch.export made, in which layers are functions", _MADE_FROM)
    if isinstance(model, nn.Module):
        return None
    if isinstance(model, type) and issubclass(model, nn.Module):
        return Refusal("is a class", "pass an instance of it")
    if isinstance(model, dict):
        return Refusal("is a dictionary", "build the module, and give it the weights with load_state_dict")
    return Refusal("is no torch.nn.Module", "pass the module itself")


def _compiled(model: object) -> Refusal | None:
    if isinstance(model, nn.Module) and compiled_module(model) is not None:
        return Refusal(
            "was returned by torch.compile, into which torch.fx does not trace",
            "pass model._orig_mod, and compile the result",
        )
    return None


def _script(model: object) -> Refusal | None:
    if isinstance(model, torch.jit.ScriptModule):
        return Refusal("is TorchScript, which is compiled and has no Python code to trace", _MADE_FROM)
    return None


def _wrapper(model: object) -> Refusal | None:
    if isinstance(model, _WRAPPERS):
        kind = type(model).__name__
        return Refusal(f"is a {kind}, a wrapper around the model", "pass model.module, and wrap the result")
    return None


def _quantized(model: object) -> Refusal | None:
    for path, part in model.named_modules() if isinstance(model, nn.Module) else ():
        home = type(part).__module__
        float_too = isinstance(part, FloatFunctional | FXFloatFunctional)  # what models are prepared with for it
        if not float_too and any(home == known or home.startswith(f"{known}.") for known in _QUANTIZED):
            return Refusal(
                f"is quantized or prepared for it: '{path}' is a {home}.{type(part).__name__}",
                "pass the float model from before that",
            )
    return None


def _aten(model: object) -> Refusal | None:
    aten = isinstance(model, fx.GraphModule) and any(is_aten(node.target) for node in model.graph.nodes)
    if isinstance(model, fx.GraphModule) and aten and not any(module_calls(model, WEIGHT_LAYERS)):
        return Refusal("is a graph of aten operators, in which layers are functions", _MADE_FROM)
    return None


_MADE_FROM = "pass the nn.Module that it was made from"
_KINDS: tuple[Callable[[object], Refusal | None], ...] = (_no_module, _script, _compiled, _wrapper, _quantized, _aten)


def require_module(model: object) -> None:
    """Refuse what is no plain module.

    Raises:
        ConversionError: with what it is, and what to hand over instead.
    """
    refusal = obstacle(model)
    if refusal is not None:
        raise ConversionError(
            f"A model is a torch.nn.Module that torch.fx can trace; the {type(model).__name__} given {refusal.reason}. "
            f"The remedy: {refusal.remedy}."
        )


def computed_weight(module: nn.Module) -> Refusal | None:
    """That a module's weight is computed anew before each call, by a hook that torch sets, and how to end that."""
    for hook in hooks_before(module):
        if isinstance(hook, WeightNorm):
            return Refusal("its weight is computed by weight_norm", "torch.nn.utils.remove_weight_norm(layer)")
        if isinstance(hook, SpectralNorm):
            return Refusal("its weight is computed by spectral_norm", "torch.nn.utils.remove_spectral_norm(layer)")
        if isinstance(hook, prune.BasePruningMethod):
            name = pruned_tensor(hook)
            return Refusal(f"its {name} is computed by a pruning mask", f"torch.nn.utils.prune.remove(layer, {name!r})")
    return None


def copy_of(module: M) -> M:
    """A deep copy.

    Raises:
        ConversionError: it cannot be copied; the message names what cannot, and what to do.
    """
    try:
        return copy.deepcopy(module)
    except Exception as error:
        found = list(_not_copyable(module))
        said = f"{type(module).__name__} cannot be copied, and it is a copy that is worked on"
        if not found:
            raise ConversionError(f"{said}: {first_line(error)} Make copy.deepcopy(model) work.") from error
        first = found[0][1]
        names = ", ".join(dict.fromkeys(f"'{name}'" for name, refusal in found if refusal == first))
        raise ConversionError(f"{said}. {names}: {first.reason}. The remedy: {first.remedy}.") from error


def copy_of_modules(module: M) -> M:
    """A copy with the same parameters and buffers, for calls that may leave something in a module."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def _not_copyable(module: nn.Module) -> Iterator[tuple[str, Refusal]]:
    """What of a module cannot be copied, by name."""
    for path, part in module.named_modules():
        computed = computed_weight(part)
        if computed is not None and any(not _can_be_copied(value) for value in vars(part).values()):
            yield path, computed
        of = f"model.{path}" if path else "model"
        for name, value in (*part.named_buffers(recurse=False), *_attributes(part)):
            if _can_be_copied(value):
                continue
            if isinstance(value, Tensor):
                reason = f"{of}.{name} is a tensor with a gradient history, which forward or a hook left there"
                yield path or type(module).__name__, Refusal(reason, f"del {of}.{name}, or let it keep a .detach()")
            else:
                reason = f"{of}.{name} holds something that cannot be copied, in a {type(value).__name__}"
                yield path or type(module).__name__, Refusal(reason, f"del {of}.{name}")


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What was set on a module beside parameters, buffers and submodules."""
    machinery = vars(nn.Module())
    yield from ((name, value) for name, value in vars(module).items() if name not in machinery)


def _can_be_copied(value: object) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:
        return False
    return True


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Copies of what was set on a module beside its tensors and submodules, and can be pickled without either.

    >>> layer = nn.Linear(2, 2)
    >>> layer.classes, layer.parts = ["a", "b"], [layer]
    >>> plain_attributes(nn.Sequential(layer)), plain_attributes(layer)["classes"]
    ({}, ['a', 'b'])
    """
    found = {}
    for name, value in _attributes(module):
        memo: dict[int, Any] = {}
        try:
            copied = copy.deepcopy(value, memo)
            pickle.dumps(copied)
        except Exception:
            continue
        if not any(isinstance(part, nn.Module | Tensor) for part in (copied, *memo.values())):
            found[name] = copied
    return found
