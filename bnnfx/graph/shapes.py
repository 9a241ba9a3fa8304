"""Shapes of a graph's values, found by running it once on example inputs."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import fx

from bnnfx.errors import ExampleInputError, first_line
from bnnfx.graph.inplace import may_write
from bnnfx.private_interfaces import FakeTensorMode, changes_of


class _ShapeRecorder(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.ranges: dict[fx.Node, tuple[float, float]] | None = None
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
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
        known = isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() and not value.is_meta
        if self.ranges is not None and known:
            least, most = torch.aminmax(value)
            self.ranges[node] = float(least), float(most)


def as_tensors(example_inputs: object) -> tuple[torch.Tensor, ...]:
    """The example inputs, if they are a tuple of batched tensors.

    Raises:
        ExampleInputError: they are not.
    """
    if isinstance(example_inputs, tuple | list) and all(isinstance(x, torch.Tensor) and x.ndim for x in example_inputs):
        return tuple(example_inputs)
    given = (
        f"({', '.join(type(x).__name__ for x in example_inputs)})"
        if isinstance(example_inputs, tuple | list)
        else type(example_inputs).__name__
    )
    raise ExampleInputError(
        "example_inputs is a tuple of tensors whose first axis is the batch, one per argument of forward, such as "
        f"(x,); got {given}."
    )


def infer_shapes(
    gm: fx.GraphModule,
    example_inputs: tuple[Any, ...],
    *,
    compute: bool = True,
    ranges: dict[fx.Node, tuple[float, float]] | None = None,
) -> dict[fx.Node, torch.Size]:
    """The shape of every tensor in the graph, in evaluation mode; the graph itself is not changed.

    Args:
        gm: any graph.
        example_inputs: arguments of its forward.
        compute: also compute the values. Without, nothing takes time or memory, and a module that asks for a value
            (`if x.sum() > 0`) fails.
        ranges: where the least and the most of every computed value are put, if given.

    Raises:
        ExampleInputError: wrong number or shape of inputs, naming the node that fails.
    """
    example_inputs = as_tensors(example_inputs)
    names = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    required = [node for node in gm.graph.nodes if node.op == "placeholder" and not node.args]
    if not len(required) <= len(example_inputs) <= len(names):
        raise ExampleInputError(
            f"The model takes {len(names)} input(s) ({', '.join(names)}); example_inputs has {len(example_inputs)}."
        )
    training = {name: module.training for name, module in gm.named_modules()}
    buffers = [(buffer, buffer.clone(), changes_of(buffer)) for buffer in gm.buffers()] if compute else []
    gm.eval()
    recorder = _ShapeRecorder(gm)
    recorder.ranges = ranges if compute else None
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    # a compiled module takes long for its first run, passes hooks by, and crashes without values
    eager = torch.compiler.set_stance("force_eager")
    try:
        with torch.no_grad(), eager, nullcontext() if compute else fakes:
            recorder.run(*(x if compute else fakes.from_tensor(x) for x in example_inputs))
    finally:
        with torch.no_grad():
            for buffer, before, changes in buffers:
                if changes_of(buffer) != changes:  # a leaf that counts its calls
                    buffer.copy_(before)
        for name, module in gm.named_modules():
            module.training = training[name]
    return recorder.shapes
