"""Shapes of a graph's values, found by running it once on example inputs."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import fx

from bnnfx.errors import ExampleInputError, first_line
from bnnfx.graph.inplace import may_write
from bnnfx.private_interfaces import FakeTensorMode


class _ShapeRecorder(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, graph: fx.Graph, before: Callable[[fx.Node], None]) -> None:
        super().__init__(gm, graph=graph)
        self.before = before
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.ranges: dict[fx.Node, tuple[float, float]] | None = None
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        self.before(n)
        try:
            value = super().run_node(n)
        except Exception as error:
            given = ", ".join(
                f"{source.name} {list(self.shapes[source])}" for source in n.all_input_nodes if source in self.shapes
            )
            raise ExampleInputError(
                f"The example inputs do not fit the model: '{n.name}' ({n.target}) cannot take {given or 'them'}: "
                f"{first_line(error)} Pass one tensor per argument of forward, shaped as the model is "
                "called in use."
            ) from error
        if isinstance(value, torch.Tensor):
            self.shapes[n] = value.shape
            self._note_range(n, value)
        if may_write(self.module, n):  # type: ignore[arg-type]
            for source in n.all_input_nodes:
                self._note_range(source, self.env.get(source))
        return value

    def _note_range(self, node: fx.Node, value: object) -> None:
        if self.ranges is None or not isinstance(value, torch.Tensor) or value.is_meta:
            return
        if value.is_floating_point() and value.numel():
            least, most = torch.aminmax(value)
            self.ranges[node] = float(least), float(most)


def as_tensors(example_inputs: object, *, scalars: bool = False) -> tuple[torch.Tensor, ...]:
    """The example inputs, if they are a tuple of batched tensors; without what is None at its end.

    Args:
        example_inputs: what was given.
        scalars: let all but the first be a tensor without axes.

    Raises:
        ExampleInputError: they are not.
    """
    if isinstance(example_inputs, tuple | list):
        given = list(example_inputs)
        while len(given) > 1 and given[-1] is None:
            given.pop()
        if all(isinstance(x, torch.Tensor) and (x.ndim or (scalars and place)) for place, x in enumerate(given)):
            for x in given:
                _require_plain(x)
            return tuple(given)
        if len(given) > 1 and any(x is None for x in given):
            raise ExampleInputError(
                "Among example_inputs None may only be last: a graph takes the arguments in front of it, and others "
                "have their defaults. Let forward take what is given first."
            )
    kinds = (
        f"({', '.join(type(x).__name__ for x in example_inputs)})"
        if isinstance(example_inputs, tuple | list)
        else type(example_inputs).__name__
    )
    raise ExampleInputError(
        "example_inputs is a tuple of tensors whose first axis is the batch, one per argument of forward, such as "
        f"(x,); got {kinds}."
    )


def _require_plain(x: torch.Tensor) -> None:
    """Refuse a tensor whose values do not lie side by side.

    Raises:
        ExampleInputError: with what makes one of it that can be taken.
    """
    if x.is_quantized:
        raise ExampleInputError(f"A quantized tensor ({x.dtype}) is among the example inputs; give x.dequantize().")
    if x.is_nested:
        raise ExampleInputError("A nested tensor is among the example inputs; give tensors of one shape.")
    if x.layout is not torch.strided:
        kind = str(x.layout).removeprefix("torch.")
        raise ExampleInputError(f"A tensor of layout {kind} is among the example inputs; give x.to_dense().")


def tensors_if_given(example_inputs: object) -> tuple[torch.Tensor, ...] | None:
    """The example inputs; None without any.

    Raises:
        ExampleInputError: they are no tuple of tensors.
    """
    return None if example_inputs is None else as_tensors(example_inputs, scalars=True)


def with_batch(shapes: Sequence[torch.Size]) -> list[bool]:
    """Which inputs have the batch as their first axis: those whose first axis is as long as that of the first input.

    >>> with_batch([torch.Size([4, 3, 8, 8]), torch.Size([1]), torch.Size([4, 2]), torch.Size([])])
    [True, False, True, False]
    """
    return [bool(shape) and shape[0] == shapes[0][0] for shape in shapes]


def copies(values: Iterable[Any]) -> tuple[Any, ...]:
    """Tensors that may be written into, and what is no tensor as it is."""
    return tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in values)


def leaves_of(value: object) -> list[Any]:
    """The tensors and numbers of a result, whatever it is made of: tuples, lists, dictionaries, dataclasses.

    >>> leaves_of({"a": torch.zeros(2), "b": (1.5, None)})
    [tensor([0., 0.]), 1.5]
    """
    if isinstance(value, torch.Tensor | int | float):
        return [value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [leaf for name in value.__dataclass_fields__ for leaf in leaves_of(getattr(value, name))]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return [leaf for part in parts for leaf in leaves_of(part)]


def require_arguments(gm: fx.GraphModule, example_inputs: tuple[Any, ...]) -> None:
    """Refuse more or fewer inputs than the graph takes.

    Raises:
        ExampleInputError: there are.
    """
    names = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    required = [node for node in gm.graph.nodes if node.op == "placeholder" and not node.args]
    if not len(required) <= len(example_inputs) <= len(names):
        raise ExampleInputError(
            f"The model takes {len(names)} input(s) ({', '.join(names)}); example_inputs has {len(example_inputs)}."
        )


def infer_shapes(
    gm: fx.GraphModule,
    example_inputs: tuple[Any, ...],
    *,
    compute: bool = True,
    ranges: dict[fx.Node, tuple[float, float]] | None = None,
    before: Callable[[fx.Node], None] = lambda node: None,
) -> dict[fx.Node, torch.Size]:
    """The shape of every tensor in the graph, in evaluation mode; the graph itself is not changed.

    Args:
        gm: any graph.
        example_inputs: arguments of its forward.
        compute: also compute the values, unless inputs or weights are on the device meta and have none. Without,
            nothing takes time or memory, and a module that asks for a value (`if x.sum() > 0`) fails.
        ranges: where the least and the most of every computed value are put, if given.
        before: called with every node before it runs.

    Raises:
        ExampleInputError: wrong number or shape of inputs, naming the node that fails.
    """
    example_inputs = as_tensors(example_inputs, scalars=True)
    weights = (*gm.parameters(), *gm.buffers())
    if any(x.is_meta for x in (*example_inputs, *weights)):  # shapes are all that there is
        compute = False
        device = next((weight.device for weight in weights), torch.device("cpu"))
        example_inputs = tuple(torch.empty_like(x, device=device) for x in example_inputs)
    require_arguments(gm, example_inputs)
    recorder = _ShapeRecorder(copy.deepcopy(gm).eval(), gm.graph, before)  # modules may keep what they were called with
    recorder.ranges = ranges if compute else None
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    # a compiled module takes long for its first run, passes hooks by, and crashes without values
    eager = torch.compiler.set_stance("force_eager")
    with torch.no_grad(), eager, _without_log(FakeTensorMode.__module__), nullcontext() if compute else fakes:
        recorder.run(*(x.clone() if compute else fakes.from_tensor(x) for x in example_inputs))
    return recorder.shapes


@contextmanager
def _without_log(name: str) -> Iterator[None]:
    """Torch logs the traceback of every error among fakes, which here becomes one of ours."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
