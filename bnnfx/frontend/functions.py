"""Functions that a graph calls as a whole (`torch.fx.wrap`) and that are given weights of modules: traced into.

What such a function computes with the weights are layers like any other, and they show only in what it does. Where
tracing into one fails, or gives something else than the function, the graph calls it as a whole, as its maker asked.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, SimpleNamespace
from typing import Any

from torch import fx, nn

from bnnfx.graph.inplace import is_foreign

Function = Callable[..., Any]

_WRAPPED = "is_wrapped"
"""How `torch.fx` marks a node that calls a function as a whole, so that a graph that was pickled does so, too."""


class FailedInside(Exception):
    """A function cannot be traced into, and is noted as one to call as a whole."""


class _Several(tuple[Any, ...]):
    """What a function gives where it gives several values; `torch.fx` marks the node of a function's result."""

    node = SimpleNamespace(meta={})


class Functions:
    """Which functions are called as a whole, and where the others are called."""

    def __init__(self) -> None:
        self._whole: set[Function] = set()
        self._entered: dict[Function, set[str]] = defaultdict(set)
        """By function, the submodules in whose forward it was traced into; the empty path is the model."""
        self._running: list[Function] = []
        self._results: list[fx.Node] = []

    def enters(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], root: nn.Module) -> bool:
        """Whether to trace into what would be a node: the call of a function of Python that is given a parameter.

        A function that calls itself is called as a whole there: torch's protocol for functions may come back to it.
        """
        if kind != "call_function" or not isinstance(target, FunctionType) or not is_foreign(target):
            return False
        if target in self._whole or target in self._running:
            return False
        given: list[object] = []
        fx.node.map_aggregate((args, dict(kwargs)), given.append)
        read = {
            str(value.node.target) for value in given if isinstance(value, fx.Proxy) and value.node.op == "get_attr"
        }
        return any(name in read for name, _ in root.named_parameters(remove_duplicate=False))

    def call(self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], paths: Iterable[str]) -> Any:
        """What a function gives, traced into, where it is called in the forward of these submodules.

        Raises:
            FailedInside: that cannot be.
        """
        self._entered[function].update(("", *paths))
        self._running.append(function)
        try:
            result = function(*args, **kwargs)
        except FailedInside:
            raise
        except Exception as error:  # whatever it is: as a whole the function may work
            self._whole.add(function)
            raise FailedInside from error
        finally:
            self._running.pop()
        if type(result) is tuple:
            return _Several(result)
        if not isinstance(result, fx.Proxy):
            self._whole.add(function)
            raise FailedInside
        if _WRAPPED not in result.node.meta:
            self._results.append(result.node)
        return result

    def unmark_results(self) -> None:
        """Remove torch's mark from the nodes that functions gave: these are no calls of them."""
        for node in self._results:
            node.meta.pop(_WRAPPED, None)
        self._results.clear()

    def keep_whole(self, paths: Iterable[str]) -> bool:
        """Call as a whole, from now on, the functions called in one of these submodules; False if there is none."""
        found = {function for function, within in self._entered.items() if not within.isdisjoint(paths)} - self._whole
        self._whole |= found
        return bool(found)

    def __len__(self) -> int:
        return len(self._whole)
