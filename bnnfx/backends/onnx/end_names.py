"""Names of a file's inputs and outputs: those that the user gives, or the model's own."""

from collections.abc import Sequence

import onnx_ir as ir

Names = Sequence[str] | None


def require_names(what: str, names: Names) -> None:
    """Refuse what is no list of different names.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if names is None:
        return
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{what} is a list of texts, one per {what.split('_')[0]}; got {names!r}.")
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(f"{what} has {twice[0]!r} twice; the names of a file differ.")


def name_ends(model: ir.Model, inputs: Names, outputs: Names, found: Sequence[str]) -> None:
    """Name inputs and outputs; another value of such a name loses it.

    Args:
        model: the file, in place.
        inputs: names of the inputs, or None: they keep theirs.
        outputs: names of the outputs, or None for `found`.
        found: those that the model's own code gives its outputs, empty where it gives none. A name that is taken gets
            a number.

    Raises:
        ValueError: another number of names than of inputs or outputs, or a name that an input and an output have.
    """
    graph = model.graph
    for what, names, values in (("input", inputs, graph.inputs), ("output", outputs, graph.outputs)):
        if names is not None and len(names) != len(values):
            raise ValueError(
                f"{what}_names has {len(names)} name(s), and the file has {len(values)} {what}(s): "
                f"{', '.join(str(value.name) for value in values)}."
            )
    both = sorted({*(inputs or ())} & {*(outputs or ())})
    if both:
        raise ValueError(f"input_names and output_names both have {both[0]!r}; the names of a file differ.")
    names_in = [str(value.name) for value in graph.inputs] if inputs is None else list(inputs)
    if outputs is None and len(found) != len(graph.outputs):  # what forward returns is not to be seen in the graph
        found = [""] * len(graph.outputs)
    wanted = {value: name for value, name in zip(graph.outputs, found if outputs is None else outputs, strict=True)}
    taken = set(names_in)
    if outputs is not None and (clash := sorted(taken & set(outputs))):
        raise ValueError(f"output_names has {clash[0]!r}, which is the name of an input; give that another one.")
    named = {**dict(zip(graph.inputs, names_in, strict=True))}
    for value in graph.outputs:
        if wanted[value]:
            named[value] = _free(wanted[value], taken)
            taken.add(named[value])
    ours = set(named.values())
    for node in graph.all_nodes():
        for value in node.outputs:
            if value not in named and value.name in ours:
                value.name = None if not value.is_graph_output() else _free(str(value.name), taken)
    for value in graph.initializers.values():
        if value not in named and value.name in ours:
            raise AssertionError(f"the constant {value.name} has the name of an input or output")
    for value, name in named.items():
        value.name = name


def _free(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name
