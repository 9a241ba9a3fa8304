"""The sizes in a graph that follow from example inputs, and do not depend on the batch.

Every operation runs on fakes, which have a shape and no values, and for two sizes of the batch: what is the same in
both, and is computed of nothing that is not, is known not to depend on it. While a model is traced, decisions of Python
about such numbers (`if x.shape[-1] > 7`) can be made; what depends on the batch, or on values, stays open.
"""

import copy
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnnfx.graph.dataflow import call_node, calls
from bnnfx.graph.operators import Kind, operator_of_call
from bnnfx.graph.shapes import with_batch
from bnnfx.private_interfaces import FakeTensorMode

_BATCHES = (2, 5)
"""Times that of the example inputs: what is halved, or is every third, differs; a batch of 1 is a case of its own."""


class KnownSizes:
    """What each node gives, as far as fakes tell it.

    Attributes:
        running: whether an operation runs on fakes at present, so that calls of modules are no part of the trace.
    """

    def __init__(self, root: nn.Module, example_inputs: Sequence[Tensor]) -> None:
        """The sizes in a graph of the modules and parameters of `root`, none of which is changed."""
        self.running = False
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        # modules may write into their tensors when they are called
        tensors = (*root.parameters(), *root.buffers())
        self._root = copy.deepcopy(root, {id(tensor): self._fakes.from_tensor(tensor) for tensor in tensors})
        batched = with_batch([x.shape for x in example_inputs])
        self._inputs = [
            [(torch.Size((of * len(x), *x.shape[1:])) if whole else x.shape, x.dtype, x.device) for of in _BATCHES]
            for x, whole in zip(example_inputs, batched, strict=True)
        ]
        self._arguments = 0  # that were seen so far
        self._known: dict[fx.Node, tuple[Any, Any]] = {}
        self._shapes: set[fx.Node] = set()
        """Nodes that give the shape of a tensor, or a part of it."""
        self._sizes: set[fx.Node] = set()
        """Nodes that give numbers that are computed of sizes alone, and do not depend on the batch."""
        self._of_inputs: set[fx.Node] = set()

    def run(self, node: fx.Node) -> None:
        """Run the next operation of the graph; what fails is not known, nor what is computed of it."""
        if node.op == "placeholder" or not self._of_inputs.isdisjoint(node.all_input_nodes):
            self._of_inputs.add(node)
        if not self._known.keys() >= set(node.all_input_nodes):
            return
        self.running = True
        try:
            with torch.no_grad(), self._fakes:
                first, second = self._result(node, 0), self._result(node, 1)
        except Exception:  # whatever it is: it fails when the graph runs, too, or asks for a value
            return
        finally:
            self.running = False
            self._arguments += node.op == "placeholder"
        self._known[node] = first, second
        asks = operator_of_call(node).kind is Kind.SIZE
        if (asks and isinstance(first, torch.Size)) or (calls(node, operator.getitem) and node.args[0] in self._shapes):
            self._shapes.add(node)
        sized = asks or node in self._shapes or self._computes(node)
        if sized and _is_number(first) and type(first) is type(second) and first == second:
            self._sizes.add(node)

    def number(self, node: fx.Node) -> Any:
        """What a node gives, a number or several, where that follows from sizes other than the batch; else None."""
        return self._known[node][0] if node in self._sizes else None

    def length(self, node: fx.Node) -> int | None:
        """How many values a tuple has, or a tensor along its first axis; None where that depends on the batch."""
        first, second = map(_length, self._known.get(node, (None, None)))
        return first if first == second else None

    def is_shape(self, node: fx.Node) -> bool:
        """Whether a node gives the shape of a tensor, or a part of it."""
        return node in self._shapes

    def is_of_inputs(self, node: fx.Node) -> bool:
        """Whether what a node gives depends on the inputs, and not on parameters and buffers alone."""
        return node in self._of_inputs

    def _computes(self, node: fx.Node) -> bool:
        return node.op == "call_function" and bool(node.all_input_nodes) and self._sizes >= set(node.all_input_nodes)

    def _result(self, node: fx.Node, of: int) -> Any:
        if node.op == "placeholder":
            shape, dtype, device = self._inputs[self._arguments][of]
            return torch.empty(shape, dtype=dtype, device=device)
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self._root)
            return self._fakes.from_tensor(value) if isinstance(value, Tensor) else value
        module = self._root.get_submodule(str(node.target)) if node.op == "call_module" else None
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda source: self._known[source][of])
        return call_node(node, module, args, kwargs)


def _is_number(value: Any) -> bool:
    return all(map(_is_number, value)) if isinstance(value, tuple | list) else isinstance(value, int | float)


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, tuple | list) or (isinstance(value, Tensor) and value.ndim > 0) else None
