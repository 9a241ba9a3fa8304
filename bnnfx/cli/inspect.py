"""`bnnfx inspect`: what becomes of each layer of a model, or what an ONNX file holds."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnnfx.cli.common import (
    InputOption,
    JsonOption,
    KeepFloatOption,
    LayerOption,
    OptionOption,
    Request,
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
from bnnfx.source_forms import MARKED_FORMS

if TYPE_CHECKING:
    from rich.console import RenderableType


@app.command(no_args_is_help=True)
def inspect(
    model: Annotated[
        str,
        typer.Argument(help=f"An ONNX file, {MARKED_FORMS}.", show_default=False),
    ],
    scheme: SchemeOption = None,
    input: InputOption = None,
    weights: WeightsOption = None,
    keep_float: KeepFloatOption = None,
    layer: LayerOption = None,
    option: OptionOption = None,
    seed: SeedOption = 0,
    costs: Annotated[
        bool, typer.Option("--costs", help="Also parameters, operations and bytes of each layer.")
    ] = False,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page with the graphs, costs and the pass log.")
    ] = None,
    svg: Annotated[str | None, typer.Option(metavar="FILE", help="Write a picture of the graph.")] = None,
    json: JsonOption = None,
) -> None:
    """Say which layers become binary, packed and fused, and why others do not; or what an ONNX file holds.

    Without `--input` a model is converted only, so that what lowering does to it stays open.

    For example:

        bnnfx inspect torchvision:resnet18 --scheme bireal

        bnnfx inspect net.py:make --scheme xnor --input 1x3x32x32 --json report.json

        bnnfx inspect model.onnx --html page.html
    """
    target(json, "--json")
    page, picture = target(html, "--html", stdout=False), target(svg, "--svg", stdout=False)
    if is_file_of_onnx(model):
        given = {
            "--scheme": scheme, "--weights": weights, "--keep-float": keep_float, "--layer": layer, "--option": option,
            "--input": None if costs else input,
        }  # fmt: skip
        refuse(given, f"is for models; {model} is a file")
        with working():
            found, items = _inspect_file(Path(model), input if costs else None, costs, page, picture)
    else:
        wanted = request(model, scheme, input, weights, keep_float, layer, option, seed)
        needing = {"--costs": costs, "--html": html, "--svg": svg}
        if not wanted.shapes:
            refuse(needing, "needs the shape of the model's argument; give --input, such as 1x3x32x32")
        with working(), progress() as notify:
            notify(f"converting {model}", 0.1)
            found, items = _inspect_model(wanted, costs, page, picture)
    show(items, json_format.dumps(found, indent=2) + "\n", json)


def _inspect_model(
    wanted: Request, costs: bool, html: Path | None, svg: Path | None
) -> "tuple[dict[str, Any], list[RenderableType]]":
    import bnnfx
    from bnnfx.api import split_if_ternary

    gm, inputs = wanted.build(), wanted.example_inputs()
    graphs = [gm]
    if wanted.shapes:
        lowerable = split_if_ternary(gm, inputs)
        packed = bnnfx.lower(lowerable, inputs)
        graphs = [gm, packed] if lowerable is gm else [gm, lowerable, packed]
    explanation = bnnfx.explain(graphs[-1])
    found: dict[str, Any] = {"explanation": explanation.to_dict()}
    items: list[RenderableType] = [explanation]
    if costs:
        summary = bnnfx.summary(graphs[-1], inputs)
        found["costs"] = summary.to_dict()
        items.append(summary)
    if svg is not None:
        bnnfx.draw(graphs[-1], svg)
    if html is not None:
        bnnfx.report(graphs, html)
    return found, items


def _inspect_file(
    path: Path, inputs: list[str] | None, costs: bool, html: Path | None, svg: Path | None
) -> "tuple[dict[str, Any], list[RenderableType]]":
    import torch

    import bnnfx
    from bnnfx.cli.common import shape
    from bnnfx.inspect.file_contents import file_contents

    contents = file_contents(path)
    found: dict[str, Any] = {"file": contents.to_dict()}
    items: list[RenderableType] = [contents]
    if costs:
        examples = tuple(torch.zeros(shape(text)) for text in inputs or ())
        summary = bnnfx.summary(path, examples)
        found["costs"] = summary.to_dict()
        items.append(summary)
    if svg is not None:
        bnnfx.draw(path, svg)
    if html is not None:
        bnnfx.report([path], html)
    return found, items
