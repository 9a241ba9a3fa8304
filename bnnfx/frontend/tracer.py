"""torch's tracer, as this package needs it: what may be decided by sizes, what is kept whole, and where it fails."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from bnnfx.frontend.functions import FailedInside, Functions
from bnnfx.graph.dataflow import WEIGHT_LAYERS
from bnnfx.graph.inplace import is_number
from bnnfx.graph.known_sizes import KnownSizes
from bnnfx.nn import ActivationBinarizer, BinaryLayer, LastAxisBatchNorm
from bnnfx.nn.batch_second import BatchSecond
from bnnfx.nn.mode import CallByMode
from bnnfx.private_interfaces import assertion

_OURS = (ActivationBinarizer, BinaryLayer, CallByMode, LastAxisBatchNorm, BatchSecond)


class Untraceable(Exception):
    """A submodule cannot be traced.

    Attributes:
        path: which.
        cause: why.
    """

    def __init__(self, path: str, cause: Exception) -> None:
        super().__init__(path)
        self.path = path
        self.cause = cause


class _Proxy(fx.Proxy):
    """torch's proxy, for which `y += x` and `y[0] = x` write into y, as they do to a tensor.

    Without these methods Python makes `y = y + x` of the first, and whoever knows y by another name misses it.
    """

    def __setitem__(self, index: object, value: object) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __getattr__(self, name: str) -> "_Attribute":
        return _Attribute(self, name)

    def __index__(self) -> int:
        return operator.index(self.tracer.decide(self.node))  # type: ignore[attr-defined]

    def __int__(self) -> int:
        return int(self.tracer.decide(self.node))  # type: ignore[attr-defined]

    def __float__(self) -> float:
        return float(self.tracer.decide(self.node))  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return self.tracer.length(self.node)  # type: ignore[attr-defined, no-any-return]


class _Attribute(_Proxy, fx.proxy.Attribute):
    """torch's proxy for an attribute, which becomes a node only where it is no method that is called."""


def _augmented(name: str) -> Callable[[_Proxy, object], fx.Proxy]:
    def write(self: _Proxy, other: object) -> fx.Proxy:
        number = self.tracer.is_number(self.node)  # type: ignore[attr-defined]
        target = getattr(operator, name if number else f"i{name.strip('_')}")
        return self.tracer.create_proxy("call_function", target, (self, other), {}, name=name.strip("_"))

    return write


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
    setattr(_Proxy, f"__i{_name.strip('_')}__", _augmented(_name))


class Tracer(fx.Tracer):
    """torch's tracer, with the modules of `leaves` kept whole, and failures named after the module they occur in."""

    proxy_buffer_attributes = True  # what is computed of them is a part of the graph, as it is of parameters

    # unpickling a graph makes one without arguments
    def __init__(
        self,
        leaves: frozenset[str] = frozenset(),
        given: int | None = None,
        known: KnownSizes | None = None,
        functions: Functions | None = None,
    ) -> None:
        super().__init__()
        self._functions = functions
        self._leaves = leaves
        self._given = given
        self._known = known
        self.gives_input: dict[str, bool] = {}
        self._numbers: dict[fx.Node, bool] = {}
        self._decided: set[fx.Node] = set()
        self._measured: set[fx.Node] = set()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """The node, of which the sizes are found at once."""
        node = super().create_node(*args, **kwargs)
        if self._known is not None:
            self._known.run(node)
        return node

    def create_proxy(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any, **named: Any
    ) -> Any:
        """A function that is given weights of modules is traced into."""
        if self._functions is not None and self._functions.enters(kind, target, args, kwargs, self.root):
            return self._functions.call(target, args, kwargs, [str(path) for path, _ in self.module_stack.values()])
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """See `decide`."""
        return bool(self.decide(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a value, see `length`."""
        return iter([obj[place] for place in range(self.length(obj.node))])  # type: ignore[index]

    def decide(self, node: fx.Node) -> Any:
        """The number that a node gives, for a decision of Python, to which the graph holds its inputs from then on.

        Raises:
            TraceError: it is not known, or depends on the batch.
        """
        number = None if self._known is None else self._known.number(node)
        if self._known is None or number is None:
            raise fx.proxy.TraceError(_NO_EXAMPLES if self._known is None else _OF_VALUES)
        if node not in self._decided and self._known.is_of_inputs(node):
            self._decided.add(node)
            self._hold_to(node, number)
        return number

    def length(self, node: fx.Node) -> int:
        """How many values a node gives.

        Raises:
            TraceError: it is not known, or depends on the batch.
        """
        length = None if self._known is None else self._known.length(node)
        if self._known is None or length is None:
            raise fx.proxy.TraceError(_NO_EXAMPLES if self._known is None else _OF_VALUES)
        of_axes = self._known.is_shape(node)  # a tensor has as many as it is to have
        if node not in self._measured and self._known.is_of_inputs(node) and not of_axes:
            self._measured.add(node)
            self._hold_to(self.create_proxy("call_function", len, (self.proxy(node),), {}).node, length)
        return length

    def _hold_to(self, node: fx.Node, number: Any) -> None:
        """Let the graph refuse inputs that give another number."""
        same = self.create_proxy("call_function", operator.eq, (self.proxy(node), number), {})
        said = f"'{node.name}' is not {number!r}, which a decision in forward was made for when it was traced"
        self.create_proxy("call_function", assertion, (same, said), {})

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Arguments that are not given have their default, for which the graph has no input."""
        function, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        if self._given is not None:
            for place in range(self._given + is_module, len(arguments)):
                node = arguments[place].node
                if node.args:  # it has a default
                    arguments[place] = node.args[0]
                    self.graph.erase_node(node)
        return function, arguments

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """One that writes into tensors, and knows sizes."""
        return _Proxy(node, self)

    def is_number(self, node: fx.Node) -> bool:
        """Whether a value is a size, or computed of sizes, which no assignment changes in place."""
        return is_number(node, self._numbers)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A batch norm's count of batches is no part of what it computes; see `follow_both_modes`."""
        if attr == "num_batches_tracked" or (self._known is not None and self._known.running):
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Torch's modules, ours, all layers with a weight, and what has to be kept whole."""
        return (
            module_qualified_name in self._leaves
            # subclasses too: they may compute something else; the tensors of TorchScript would be constants
            or isinstance(m, (*_OURS, *WEIGHT_LAYERS, torch.jit.ScriptModule))
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A submodule is traced without its hooks, which are no part of a graph; see `bnnfx.frontend.hooks`.

        What forward makes for the call, as a slice of a `Sequential`, is traced into, whatever it is.
        """
        if self._known is not None and self._known.running:
            return forward(*args, **kwargs)
        if m not in (self.submodule_paths or ()):
            return m.forward(*args, **kwargs)
        path = self.path_of_module(m)
        try:
            result = super().call_module(m, m.forward, args, kwargs)
        except (Untraceable, FailedInside):
            raise
        except Exception as error:
            raise Untraceable(path, error) from error
        first = next(iter((*args, *kwargs.values())), None)
        self.gives_input[path] = self.gives_input.get(path, True) and first is not None and result is first
        return result


_NO_EXAMPLES = "it decides by a value that is not known; example_inputs tell sizes"
_OF_VALUES = "it decides by values, element types or devices, or by the size of the batch, which stays free"
