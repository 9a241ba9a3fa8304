"""`bnnfx convert`: from a float model to one ONNX file."""

import json as json_format
from typing import Annotated, Any

import typer

from bnnfx.backends import TARGETS, targets
from bnnfx.cli.common import (
    STDOUT,
    InputOption,
    JsonOption,
    KeepFloatOption,
    LayerOption,
    OptionOption,
    SchemeOption,
    SeedOption,
    WeightsOption,
    app,
    progress,
    request,
    show,
    target,
    working,
)
from bnnfx.file_writing import write_whole
from bnnfx.registry import require_known
from bnnfx.source_forms import MARKED_FORMS

_OURS = ", ".join(f"`{target.name}` ({target.title})" for target in TARGETS.registered())


@app.command(no_args_is_help=True)
def convert(
    model: Annotated[
        str,
        typer.Argument(
            help=f"{MARKED_FORMS}: a model of a library, or a function that returns a module.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The file to write; `-` for standard output.")
    ] = "model.onnx",
    scheme: SchemeOption = None,
    input: InputOption = None,
    weights: WeightsOption = None,
    keep_float: KeepFloatOption = None,
    layer: LayerOption = None,
    option: OptionOption = None,
    dialect: Annotated[
        str, typer.Option("--dialect", "--target", help=f"What to write: {_OURS}, or a target of another package.")
    ] = "bnnfx",
    opset: Annotated[
        int | None, typer.Option(help="Version of the standard operators, 18 or higher.", show_default=False)
    ] = None,
    seed: SeedOption = 0,
    json: JsonOption = None,
) -> None:
    """Binarize a model and write it as one ONNX file.

    `bnnfx inspect` says, for the same arguments, which layers are binary and why the others are not.

    For example:

        bnnfx convert torchvision:resnet18 --scheme rbnn --weights weights.pt -o model.onnx

        bnnfx convert net.py:make --scheme bireal --input 1x3x32x32 -o net.onnx

        bnnfx convert net.py:make --scheme xnor --input 1x3x32x32 --keep-float first --layer 'fc=float' -o first.onnx

        bnnfx convert net.py:make --scheme rbnn --option initial_share=0.5 --input 1x3x32x32 --dialect standard
    """
    wanted = request(model, scheme, input, weights, keep_float, layer, option, seed)
    if not wanted.shapes:
        raise typer.BadParameter("--input gives the shape of the model's argument, such as 1x3x32x32; it is needed.")
    path = target(output, "--output")
    target(json, "--json")
    if path is None and json == STDOUT:
        raise typer.BadParameter(f"--output and --json are both '{STDOUT}': standard output takes one of them.")
    with working(), progress() as notify:
        import bnnfx
        from bnnfx.api import content_of, split_if_ternary

        require_known("dialect", dialect, targets())
        notify(f"converting {model}", 0.1)
        gm = wanted.build()
        notify("packing", 0.4)
        inputs = wanted.example_inputs()
        packed = bnnfx.lower(split_if_ternary(gm, inputs), inputs)
        notify(f"writing {output}", 0.6)
        options: dict[str, Any] = {} if opset is None else {"opset": opset}
        data = content_of(packed, dialect, **options)
        if path is not None:
            write_whole(path, data)
        layers = bnnfx.explain(packed).layers
    result = {
        "file": output,
        "bytes": len(data),
        "dialect": dialect,
        "scheme": wanted.scheme,
        "layers": len(layers),
        "binary_layers": sum(layer.binarized for layer in layers),
    }
    text = (
        f"{output}: {result['bytes']:,} bytes; {result['binary_layers']} of {result['layers']} layers are binary "
        f"(scheme {wanted.scheme}, dialect {dialect})"
    )
    if path is None:
        typer.get_binary_stream("stdout").write(data)
    show([text], json_format.dumps(result, indent=2) + "\n", json, beside=path is None)
