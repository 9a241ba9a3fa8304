"""`bnnfx verify`: compares two forms of a model bit by bit."""

import json as json_format
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnnfx.cli.common import (
    InputOption,
    JsonOption,
    KeepFloatOption,
    LayerOption,
    OptionOption,
    SchemeOption,
    SeedOption,
    WeightsOption,
    app,
    is_file_of_onnx,
    progress,
    refuse,
    request,
    show,
    target,
    working,
)
from bnnfx.cli.common import shape as sizes_of
from bnnfx.source_forms import MARKED_FORMS

if TYPE_CHECKING:
    from torch import Tensor

_DIFFERENT = 1


@app.command(no_args_is_help=True)
def verify(
    model: Annotated[
        str,
        typer.Argument(
            help=f"An ONNX file of bnnfx, {MARKED_FORMS}.",
            show_default=False,
        ),
    ],
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="[OTHER]",
            help="Likewise. Without it the kernels are compared with the functions that the file itself holds.",
            show_default=False,
        ),
    ] = None,
    scheme: SchemeOption = None,
    input: InputOption = None,
    weights: WeightsOption = None,
    keep_float: KeepFloatOption = None,
    layer: LayerOption = None,
    option: OptionOption = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Samples to run instead of random ones: `.npy`, or `.npz` with one array per argument, in order.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many random samples to run.")] = 4,
    kernels: Annotated[bool, typer.Option(help="Run files with the kernel library.")] = True,
    seed: SeedOption = 0,
    json: JsonOption = None,
) -> None:
    """Run two forms of one model on the same inputs and compare every bit.

    The exit status is 0 if nothing differs but what rounding explains, 1 if something does, 2 if they cannot be run.

    A model that is no file is converted as `bnnfx convert` does it: give the same options.

    For example:

        bnnfx verify model.onnx

        bnnfx verify torchvision:resnet18 model.onnx --scheme rbnn --weights weights.pt

        bnnfx verify model.onnx model.onnx --no-kernels --inputs images.npy
    """
    target(json, "--json")
    if inputs is not None and not inputs.is_file():
        raise typer.BadParameter(f"There is no file {inputs} for --inputs.")
    names = [model] if other is None else [model, other]
    files = [is_file_of_onnx(name) for name in names]
    if files == [False]:
        raise typer.BadParameter(f"Give a second model to compare {model} with: the file that was made of it.")
    if all(files):
        given = {"--scheme": scheme, "--weights": weights, "--keep-float": keep_float, "--layer": layer}
        refuse(given | {"--option": option}, "is for models; these are files")
    requests = {
        name: request(name, scheme, input, weights, keep_float, layer, option, seed)
        for name, is_file in zip(names, files, strict=True)
        if not is_file
    }
    with working(), progress() as notify:
        from bnnfx.api import split_if_ternary
        from bnnfx.verification.comparison import Model, verify_runs

        shapes = tuple(map(sizes_of, input or ()))
        if not shapes:
            path = next((Path(name) for name, is_file in zip(names, files, strict=True) if is_file), None)
            shapes = _shapes_of(path) if path is not None else next(iter(requests.values())).shapes
        tensors = _read(inputs) if inputs is not None else _random(shapes, samples, seed)
        requests = {name: replace(wanted, shapes=wanted.shapes or shapes) for name, wanted in requests.items()}
        runs = [(name, kernels) for name in names] if other is not None else [(model, True), (model, False)]
        if other is None:
            _require_nodes_of_ours(Path(model))
        forms: list[tuple[Model, bool]] = []
        for name, with_kernels in runs:
            notify(f"reading {name}", 1 / 3)
            form = split_if_ternary(requests[name].build()) if name in requests else Path(name)
            forms.append((form, with_kernels))
        notify("comparing", 2 / 3)
        result = verify_runs(forms[0], forms[1], tensors)
    found = {"equal": bool(result), **asdict(result)}
    show([str(result).rstrip()], json_format.dumps(found, indent=2) + "\n", json)
    if not result:
        raise typer.Exit(_DIFFERENT)


def _require_nodes_of_ours(path: Path) -> None:
    from bnnfx.ops.packed_op import ONNX_DOMAIN
    from bnnfx.runtime.session import read_model

    if not any(node.domain == ONNX_DOMAIN for node in read_model(path).graph.node):
        raise ValueError(
            f"{path} has no node of domain {ONNX_DOMAIN}, so that there is no kernel to compare; give a second model."
        )


def _shapes_of(path: Path) -> tuple[tuple[int, ...], ...]:
    """The shapes of a file's inputs, with a batch of 1 where it is free."""
    from bnnfx.bench.inputs import read_inputs
    from bnnfx.runtime.session import read_model

    return tuple(tuple(size or 1 for size in given.shape) for given in read_inputs(read_model(path), path, None))


def _random(shapes: tuple[tuple[int, ...], ...], samples: int, seed: int) -> "tuple[Tensor, ...]":
    import torch

    if not shapes:
        raise ValueError("--input gives the shape of the model's argument, such as 1x3x32x32; it is needed.")
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(samples, *shape[1:], generator=generator) for shape in shapes)


def _read(path: Path) -> "tuple[Tensor, ...]":
    """The arrays of a file of numpy's."""
    import numpy as np
    import torch

    try:
        content = np.load(path, allow_pickle=False)
        arrays = [content] if isinstance(content, np.ndarray) else [content[name] for name in content.files]
        # of the byte order of this machine, whichever wrote them
        return tuple(torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for array in arrays)
    except Exception as error:
        raise ValueError(
            f"{path} holds no arrays of numbers: {error}; numpy.save or numpy.savez writes one."
        ) from error
