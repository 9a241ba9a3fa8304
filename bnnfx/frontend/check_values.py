"""The graph of a model against the model itself, by value, in evaluation and in training."""

import copy
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx, nn

from bnnfx.graph.inplace import home_of
from bnnfx.graph.random_state import same_random_state
from bnnfx.graph.shapes import copies, leaves_of

M = TypeVar("M", bound=nn.Module)

_ROUNDING = 1e-4
"""What two spellings of one function may differ by, as a share of the largest value."""


@dataclass(frozen=True)
class Difference:
    """Where a graph computes something else than its model.

    Attributes:
        path: the first submodule whose result the graph does not have; empty if that is the model's own forward.
        training: whether it does so in training; else in evaluation.
        largest: the largest difference of an output, infinite where an output is missing.
    """

    path: str
    training: bool
    largest: float

    def __str__(self) -> str:
        """A sentence without its subject."""
        mode = "train()" if self.training else "eval()"
        return f"computes something else in {mode} once it is traced: its outputs differ by up to {self.largest:.3g}"


def first_difference(
    model: nn.Module, gm: fx.GraphModule, example_inputs: tuple[Any, ...], modes: tuple[bool, ...] = (False, True)
) -> Difference | None:
    """Run a model and its graph on the same inputs; None if they agree.

    Neither is changed: both run as copies. A mode in which the model itself does not run, as a batch norm of one value
    per channel in training, is left out.

    Args:
        model: the user's module.
        gm: what was traced of it.
        example_inputs: arguments of forward.
        modes: the modes to compare in, by what `training` is.
    """
    reference, traced = copy.deepcopy(model), copy.deepcopy(gm)
    order = sorted(modes, reverse=True)  # not that of tracing, which state that counts would agree with
    for place, training in enumerate(order):
        expected, found = (_run(module, example_inputs, training) for module in (reference, traced))
        if expected is None:  # what it has changed until it failed, the graph has changed, too
            continue
        largest = _distance(expected, found)
        if largest > 0:
            return Difference(_culprit(model, gm, example_inputs, order[: place + 1]), training, largest)
    return None


def _run(module: nn.Module, inputs: tuple[Any, ...], training: bool) -> list[Any] | None:
    """The outputs of a module in one mode; None if it fails."""
    module.train(training)  # its own may return nothing
    with torch.no_grad(), same_random_state():
        try:
            return leaves_of(module(*copies(inputs)))
        except Exception:  # whatever it is, the model does not run in this mode
            return None


def _distance(reference: list[Any], traced: list[Any] | None) -> float:
    """The largest difference that rounding does not explain; 0.0 if there is none."""
    if traced is None or len(reference) != len(traced):
        return float("inf")
    return max((_apart(x, y) for x, y in zip(reference, traced, strict=True)), default=0.0)


def _apart(x: Any, y: Any) -> float:
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    if x.shape != y.shape or x.is_complex() != y.is_complex():
        return float("inf")
    if x.is_meta or x.numel() == 0:
        return 0.0
    x, y = (z.detach().to(torch.complex128 if z.is_complex() else torch.float64) for z in (x, y))
    same = (x == y) | (x.isnan() & y.isnan())
    if bool(same.all()):
        return 0.0
    finite = x.abs()[x.isfinite()]
    largest = float((x - y).abs()[~same].nan_to_num(nan=float("inf")).max())
    return largest if largest > _ROUNDING * max(float(finite.max()) if finite.numel() else 0.0, 1e-30) else 0.0


def _culprit(model: nn.Module, gm: fx.GraphModule, inputs: tuple[Any, ...], modes: list[bool]) -> str:
    """The first submodule, in the order in which they return, whose result none of the nodes traced in it has.

    Both are run in one mode after the other, as when the difference was found in the last.

    A layer that is called as a whole gives what it is given: then it is the forward that calls it, which differs.
    """
    values = _values_by_submodule(gm, inputs, modes)
    whole = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    for path, outputs in _results_of_submodules(model, inputs, modes):
        found = values.get(path)
        if found is not None and any(all(_apart(x, y) > 0 for y in found) for x in outputs):
            return path.rpartition(".")[0] if path in whole or _is_of_torch(model, path) else path
    return ""


def _is_of_torch(model: nn.Module, path: str) -> bool:
    return home_of(model.get_submodule(path)) == "torch"


def _values_by_submodule(gm: fx.GraphModule, inputs: tuple[Any, ...], modes: list[bool]) -> dict[str, list[Any]]:
    """The values that a graph computes, by the submodules in whose forward each was traced."""
    values: dict[str, list[Any]] = defaultdict(list)

    class Keeping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            for path, _ in n.meta.get("nn_module_stack", {}).values():
                values[path].extend(copies(leaves_of(result)))
            return result

    with torch.no_grad(), same_random_state():
        keeping = Keeping(_after(gm, inputs, modes))
        with suppress(Exception):  # it goes as far as it goes
            keeping.run(*copies(inputs))
    return values


def _after(module: M, inputs: tuple[Any, ...], modes: list[bool]) -> M:
    """A copy in the last of some modes, after runs in those before."""
    copied = copy.deepcopy(module)
    for training in modes[:-1]:
        _run(copied, inputs, training)
    copied.train(modes[-1])
    return copied


def _results_of_submodules(model: nn.Module, inputs: tuple[Any, ...], modes: list[bool]) -> list[tuple[str, list[Any]]]:
    model = _after(model, inputs, modes)
    results: list[tuple[str, list[Any]]] = []

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: object, output: object) -> None:
            results.append((path, list(copies(leaves_of(output)))))

        return hook

    for path, module in model.named_modules():
        if path and not isinstance(module, torch.jit.ScriptModule):  # these take no hooks
            module.register_forward_hook(keep(path))
    with torch.no_grad(), same_random_state():
        model(*copies(inputs))
    return results
