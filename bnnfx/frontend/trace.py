"""Tracing a user's module; what cannot be traced is kept whole, as a leaf, with the reason."""

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from bnnfx.errors import ConversionError, first_line
from bnnfx.graph.dataflow import WEIGHT_LAYERS
from bnnfx.graph.record import Remark
from bnnfx.nn import ActivationBinarizer, BinaryLayer

_OURS = (ActivationBinarizer, BinaryLayer)


class _Untraceable(Exception):
    def __init__(self, path: str, cause: Exception) -> None:
        super().__init__(path)
        self.path = path
        self.cause = cause


class _Tracer(fx.Tracer):
    """torch's tracer, with the modules of `leaves` kept whole, and failures named after the module they occur in."""

    def __init__(self, leaves: frozenset[str] = frozenset()) -> None:  # unpickling a graph makes one without arguments
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name in self._leaves
            or isinstance(m, (*_OURS, *WEIGHT_LAYERS))  # subclasses too: they may compute something else, so stay whole
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except _Untraceable:
            raise
        except Exception as error:
            raise _Untraceable(self.path_of_module(m), error) from error


def trace(model: nn.Module) -> tuple[fx.GraphModule, list[Remark]]:
    """Trace a copy of `model`.

    Returns:
        The graph, and one remark per submodule that was kept as a leaf because it cannot be traced.

    Raises:
        ConversionError: the forward of the model itself cannot be traced.
    """
    if not isinstance(model, nn.Module):
        raise ConversionError(f"convert needs a torch.nn.Module; got {type(model).__name__}.")
    model = copy.deepcopy(model)
    leaves: dict[str, Exception] = {}
    while True:
        try:
            graph = _Tracer(frozenset(leaves)).trace(model)
            break
        except _Untraceable as failure:
            leaves[failure.path] = failure.cause
        except Exception as error:
            raise ConversionError(
                f"{type(model).__name__}.forward cannot be traced by torch.fx: {first_line(error)} Move the part that "
                "depends on the values or the number of its inputs into a submodule of its own (it is then kept as a "
                "float leaf), or rewrite it with tensor operations."
            ) from error
    gm = fx.GraphModule(model, graph, type(model).__name__)
    modes = {name: module.training for name, module in model.named_modules(remove_duplicate=False)}
    for name, module in gm.named_modules():
        module.training = modes.get(name, model.training)
    remarks = [
        Remark(path, f"kept as a float leaf, torch.fx cannot trace it: {first_line(cause)}", _REMEDY)
        for path, cause in leaves.items()
    ]
    return gm, remarks


_REMEDY = (
    "write its forward without Python decisions about values (torch.where for an if), or move only the part that needs "
    "them into a submodule of its own"
)


def weight_layers(model: nn.Module) -> dict[str, str]:
    """Every layer with a weight that a model has, whether its forward calls it or not: names and types.

    >>> weight_layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sequential(nn.LSTM(8, 8))))
    {'0': 'Conv2d', '2.0': 'LSTM'}
    """
    return {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, WEIGHT_LAYERS)}
