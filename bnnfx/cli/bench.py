"""`bnnfx bench`: times a model, or single layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnnfx.cli.common import (
    DIGITS,
    JsonOption,
    SchemeOption,
    app,
    is_file_of_onnx,
    progress,
    refuse,
    shape,
    show,
    target,
    working,
)
from bnnfx.errors import BenchmarkError
from bnnfx.source_forms import IMAGE_SIZE, MARKED_FORMS, sources_of

if TYPE_CHECKING:
    from bnnfx.bench.command import Settings
    from bnnfx.bench.report import Report
    from bnnfx.bench.whole_models import Notify

_USUAL_LAYERS = "all"


@app.command(no_args_is_help=True)
def bench(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help=f"An ONNX file, {MARKED_FORMS}; or several models of libraries with commas between, a row for each.",
            show_default=False,
        ),
    ] = None,
    scheme: SchemeOption = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Rows and columns of images, where MODEL leaves them open.")
    ] = None,
    input: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Shape of the input of a MODEL that is no file: `1x3x32x32`.")
    ] = None,
    original: Annotated[
        Path | None, typer.Option("--float", metavar="FILE", help="The float original of MODEL, a file of bnnfx.")
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHAPE",
            help="Instead of MODEL: one convolution, `INPUTS,OUTPUTS,KERNEL,SIZE[:STRIDE]`, or `all` for the four 3x3 "
            "layers of a ResNet. May be repeated.",
        ),
    ] = None,
    threads: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Threads of each contender; a table for each.")
    ] = "1",
    batch: Annotated[str, typer.Option(metavar="N[,N...]", help="Images per run; a table for each.")] = "1",
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for all measurements together.")] = 10.0,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each measurement, instead of a time.")] = None,
    memory: Annotated[bool, typer.Option(help="Measure the peak memory of each contender of MODEL.")] = True,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of weights, inputs and calibration data.")] = 0,
    json: JsonOption = None,
) -> None:
    """Time a model, or single layers, against ONNX Runtime and OpenVINO.

    All contenders run in turn in one process, and the first column is how many times as fast as the float model each of
    them is, taken round by round: that figure holds where absolute times move with the machine.

    For example:

        bnnfx bench torchvision:resnet18 --scheme bireal --seconds 5 --no-memory

        bnnfx bench net.py:make --scheme rbnn --input 1x3x32x32 --threads 1,2 --rounds 5

        bnnfx bench model.onnx --float original.onnx --batch 1,8 --json result.json

        bnnfx bench torchvision:resnet18,timm:deit_tiny_patch16_224 --scheme xnor

        bnnfx bench --layer all --rounds 3

        bnnfx bench --layer 64,128,3,56:2 --layer 256,256,1,14 --rounds 5
    """
    if (model is None) == (not layer):
        raise typer.BadParameter("Give either MODEL or --layer.")
    target(json, "--json")
    with working():
        from bnnfx.bench.command import Settings
        from bnnfx.bench.timing import Effort
        from bnnfx.runtime.session import MOST_THREADS

        settings = Settings(
            context.find_root().obj,
            _numbers(threads, "--threads", MOST_THREADS),
            _numbers(batch, "--batch"),
            Effort(seconds, rounds),
            memory,
            seed,
        )
        with progress() as notify:
            if layer:
                refuse(
                    {"--scheme": scheme, "--size": size, "--input": input, "--float": original},
                    "is for MODEL, not for --layer",
                )
                report = _bench_layers(layer, settings, notify)
            else:
                report = _bench_model(str(model), scheme, size, input, original, settings, notify)
    show(report.to_text(), report.to_json(), json)


def _bench_model(
    model: str,
    scheme: str | None,
    size: int | None,
    input: str | None,
    original: Path | None,
    settings: "Settings",
    notify: "Notify",
) -> "Report":
    from bnnfx.bench.command import bench_file, bench_model, bench_models
    from bnnfx.schemes import schemes

    sources = sources_of(model)
    if len(sources) > 1 or not is_file_of_onnx(model):
        refuse({"--float": original}, f"is for files; {model} is built together with its float original")
        scheme = scheme or "bireal"
        if scheme not in schemes():
            raise typer.BadParameter(f"--scheme is one of {', '.join(schemes())}; got '{scheme}'.")
        one: Sequence[int] = shape(input)[1:] if input else (3, size or IMAGE_SIZE, size or IMAGE_SIZE)
        if len(sources) > 1:
            return bench_models(sources, scheme, one, settings, notify)
        return bench_model(model, scheme, one, settings, notify)
    refuse({"--scheme": scheme, "--input": input}, f"is for models; {model} is a file")
    if original is not None and not original.is_file():
        raise typer.BadParameter(f"There is no file {original} for --float.")
    return bench_file(Path(model), original, size, settings, notify)


def _bench_layers(layers: list[str], settings: "Settings", notify: "Notify") -> "Report":
    from bnnfx.bench.command import bench_layers
    from bnnfx.bench.layer_files import USUAL, LayerShape

    shapes: list[LayerShape] = []
    for text in layers:
        try:
            shapes += USUAL if text == _USUAL_LAYERS else [LayerShape.parse(text)]
        except BenchmarkError as error:
            raise typer.BadParameter(str(error)) from error
    return bench_layers(shapes, settings, notify)


def _numbers(text: str, option: str, most: int | None = None) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isdecimal() and len(part) < DIGITS]
    if len(numbers) != len(parts) or not all(0 < number <= (most or number) for number in numbers):
        bound = "" if most is None else f" and at most {most}"
        raise typer.BadParameter(
            f"{option} is a number of 1 or more{bound}, or several with commas between; got '{text}'."
        )
    return numbers
