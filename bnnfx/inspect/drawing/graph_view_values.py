"""What the edges of a graph carry: shapes with a free batch, floats or bits, bytes."""

from typing import Any, Literal

import torch
from torch import fx

from bnnfx.errors import ExampleInputError
from bnnfx.graph.dataflow import bits_source, module_of, packed_channels, packed_op, packed_result
from bnnfx.graph.shapes import as_tensors, infer_shapes
from bnnfx.nn import ActivationBinarizer

Holds = Literal["float", "bits", "ternary", "other"]

_BATCH = 13  # a size that no other axis is likely to be a multiple of


class Values:
    """Questions about the values of a graph; without example inputs no shape is known."""

    def __init__(self, gm: fx.GraphModule, example_inputs: tuple[Any, ...] | None) -> None:
        self._gm = gm
        self._shapes: dict[fx.Node, torch.Size] | None = None
        self._batch, self._item = 1, 4
        if example_inputs is not None:
            inputs = as_tensors(example_inputs, scalars=True)
            self._shapes, self._batch = _shapes(gm, inputs)
            self._item = inputs[0].element_size() if inputs else 4

    def holds(self, value: fx.Node) -> Holds:
        """Which type of numbers a value holds."""
        packed = packed_result(value)
        if packed is not None:
            return "bits" if packed.output == "bits" else "float"
        binarizer = module_of(self._gm, bits_source(self._gm, value))
        if isinstance(binarizer, ActivationBinarizer):
            return "ternary" if len(getattr(binarizer, "levels", (-1, 1))) == 3 else "bits"
        return "other" if self._shapes is not None and value not in self._shapes else "float"

    def shape(self, value: fx.Node) -> tuple[str, ...] | None:
        """Sizes of the axes, the first as a multiple of the batch `N` where it is one."""
        size = self._size(value)
        if size is None:
            return None
        times, rest = divmod(size[0], self._batch) if size else (0, 1)
        first = size[:1] if rest or not times else [f"{times if times > 1 else ''}N"]
        sizes = [*first, *size[1:]]
        packed = packed_result(value)
        if packed is not None and packed.output == "bits" and _channels_known(value):
            sizes[-1] = packed_channels(value)
        return tuple(map(str, sizes))

    def bytes_per_sample(self, value: fx.Node) -> int | None:
        """Bytes in memory: bits take a bit in a packed graph, and a float in a trainable one."""
        size = self._size(value)
        if size is None:
            return None
        packed = packed_result(value)
        item = 1 if packed is not None and packed.output == "bits" else self._item
        return size.numel() * item // self._batch

    def _size(self, value: fx.Node) -> torch.Size | None:
        return None if self._shapes is None else self._shapes.get(value)


def _channels_known(value: fx.Node) -> bool:
    """Whether some packed operator reads a map, which says how many channels its bytes hold."""
    user = next(iter(value.users), None)
    return packed_op(user) is not None


def _shapes(gm: fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> tuple[dict[fx.Node, torch.Size], int]:
    """The shapes and the batch they were found with: without computing anything, where the model can do without."""
    try:
        enlarged = tuple(x.new_empty((_BATCH, *x.shape[1:])) for x in inputs)
        return infer_shapes(gm, enlarged, compute=False), _BATCH
    except ExampleInputError:  # the model fixes the batch, or looks at its values
        return infer_shapes(gm, inputs), len(inputs[0]) if inputs else 1
