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
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{what} is a list of texts, one per {what.split('_')[0]}; got {names!r}.")
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(f"{what} has {twice[0]!r} twice; the names of a file differ.")


def name_ends(model: ir.Model, inputs: Names, outputs: Names, found: Sequence[str], reserved: set[str]) -> None:
    """Name inputs and outputs; another value of such a name loses it.

    Args:
        model: the file, in place.
        inputs: names of the inputs, or None: they keep theirs.
        outputs: names of the outputs, or None for `found`.
        found: those that the model's own code gives its outputs, empty where it gives none. A name that is taken gets
            a number.
        reserved: names of inner values, which may not be taken.

    Raises:
        ValueError: another number of names than of inputs or outputs, or a name that is taken.
    """
    graph = model.graph
    for what, names, values in (("input", inputs, graph.inputs), ("output", outputs, graph.outputs)):
        if names is not None and len(names) != len(values):
            raise ValueError(
                f"{what}_names has {len(names)} name(s), and the file has {len(values)} {what}(s): "
                f"{', '.join(str(value.name) for value in values)}."
            )
        for name in names or ():
            if name in reserved:
                raise ValueError(f"{what}_names has {name!r}, which is the name of a layer's result; give another one.")
    named = dict(zip(graph.inputs, [str(v.name) for v in graph.inputs] if inputs is None else inputs, strict=True))
    taken = {*named.values(), *reserved}
    for name in outputs or ():
        if name in taken:
            raise ValueError(f"output_names has {name!r}, which is the name of an input; give another one.")
    if outputs is None:  # what forward returns is not always to be seen in the graph
        outputs = found if len(found) == len(graph.outputs) else [""] * len(graph.outputs)
    for value, name in zip(graph.outputs, outputs, strict=True):
        if name:
            named[value] = _free(name, taken)
            taken.add(named[value])
    chosen = set(named.values())
    for node in graph.all_nodes():
        for value in node.outputs:
            if value not in named and value.name in chosen:
                value.name = _free(str(value.name), taken) if value.is_graph_output() else None
    for value in list(graph.initializers.values()):
        if value.name in chosen:
            value.name = _free(str(value.name), {*taken, *graph.initializers})
    for value, name in named.items():
        value.name = name


def _free(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name
