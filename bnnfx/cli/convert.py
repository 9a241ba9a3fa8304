"""`bnnfx convert`: from a float model to one ONNX file."""

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import typer

from bnnfx.backends import TARGETS, targets
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
    failure_in_one_line,
    progress,
    request,
    show,
    target,
)
from bnnfx.registry import require_known

_OURS = ", ".join(f"`{target.name}` ({target.title})" for target in TARGETS.registered())


@app.command(no_args_is_help=True)
def convert(
    model: Annotated[
        str,
        typer.Argument(
            help="`torchvision:NAME`, or a function that returns a module: `file.py:function`, `module:function`.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")] = Path(
        "model.onnx"
    ),
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
    assert path is not None
    with failure_in_one_line(), progress() as notify:
        require_known("dialect", dialect, targets())

        import bnnfx
        from bnnfx.api import split_if_ternary

        notify(f"converting {model}", 0.1)
        gm = wanted.build()
        notify("packing", 0.4)
        packed = bnnfx.lower(split_if_ternary(gm), wanted.example_inputs())
        notify(f"writing {path}", 0.6)
        options: dict[str, Any] = {} if opset is None else {"opset": opset}
        bnnfx.export(packed, path, dialect, **options)
        layers = bnnfx.explain(packed).layers
    result = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "dialect": dialect,
        "scheme": wanted.scheme,
        "layers": len(layers),
        "binary_layers": sum(layer.binarized for layer in layers),
    }
    text = (
        f"{path}: {result['bytes']:,} bytes; {result['binary_layers']} of {result['layers']} layers are binary "
        f"(scheme {wanted.scheme}, dialect {dialect})"
    )
    show([text], json_format.dumps(result, indent=2) + "\n", json)
