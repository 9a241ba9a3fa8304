"""The command line, `bnnfx`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from typer.core import TyperGroup

from bnnfx.errors import BenchmarkError, BnnfxError
from bnnfx.schemes import schemes

if TYPE_CHECKING:
    from bnnfx.bench.command import Settings
    from bnnfx.bench.model import Notify
    from bnnfx.bench.report import Report

_WIDTH = 120  # of tables that do not go to a terminal
_USUAL_LAYERS = "all"
_STDOUT = "-"


class _Group(TyperGroup):
    """Keeps the command line as it was typed, for reports that quote it."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        ctx.obj = ["bnnfx", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


@app.callback()
def main() -> None:
    """bnnfx: a compiler for binary neural networks."""


@app.command(no_args_is_help=True)
def bench(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="`torchvision:NAME`, or an ONNX file.", show_default=False),
    ] = None,
    scheme: Annotated[str | None, typer.Option(help="Scheme to binarize a model of torchvision by.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Rows and columns of images, where MODEL leaves them open.")
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
    seed: Annotated[int, typer.Option(help="Seed of weights, inputs and calibration data.")] = 0,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write everything as JSON; `-` prints it instead of tables.")
    ] = None,
) -> None:
    """Time a model, or single layers, against ONNX Runtime and OpenVINO.

    All contenders run in turn in one process, and the first column is how many times as fast as the float model each of
    them is, taken round by round: that figure holds where absolute times move with the machine.

    For example:

        bnnfx bench torchvision:resnet18 --scheme bireal --threads 1,2

        bnnfx bench model.onnx --float original.onnx --batch 1,8 --json result.json

        bnnfx bench --layer all

        bnnfx bench --layer 64,128,3,56:2 --layer 256,256,1,14
    """
    if (model is None) == (not layer):
        raise typer.BadParameter("Give either MODEL or --layer.")
    target = _json_target(json)
    with _failure_in_one_line():
        from bnnfx.bench.command import Settings
        from bnnfx.bench.timing import Effort

        settings = Settings(
            context.find_root().obj,
            _numbers(threads, "--threads"),
            _numbers(batch, "--batch"),
            Effort(seconds, rounds),
            memory,
            seed,
        )
        with _progress() as notify:
            if layer:
                _refuse({"--scheme": scheme, "--size": size, "--float": original}, "is for MODEL, not for --layer")
                report = _bench_layers(layer, settings, notify)
            else:
                report = _bench_model(str(model), scheme, size, original, settings, notify)
    _print(report, target, to_stdout=json == _STDOUT)


def _bench_model(
    model: str, scheme: str | None, size: int | None, original: Path | None, settings: "Settings", notify: "Notify"
) -> "Report":
    from bnnfx.bench.command import bench_file, bench_torchvision
    from bnnfx.bench.models import IMAGE_SIZE, PREFIX

    if model.startswith(PREFIX):
        _refuse({"--float": original}, f"is for files; {model} is built together with its float original")
        scheme = scheme or "bireal"
        if scheme not in schemes():
            raise typer.BadParameter(f"--scheme is one of {', '.join(schemes())}; got '{scheme}'.")
        return bench_torchvision(model.removeprefix(PREFIX), scheme, size or IMAGE_SIZE, settings, notify)
    _refuse({"--scheme": scheme}, f"is for models of torchvision, '{PREFIX}NAME'; {model} is a file")
    for path in (Path(model), original):
        if path is not None and not path.is_file():
            raise typer.BadParameter(f"There is no file {path}; MODEL is '{PREFIX}NAME' or the path of an ONNX file.")
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


def _refuse(options: dict[str, object], reason: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"{name} {reason}.")


def _numbers(text: str, option: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(numbers) != len(text.split(",")) or 0 in numbers:
        raise typer.BadParameter(f"{option} is a number of 1 or more, or several with commas between; got '{text}'.")
    return numbers


def _json_target(text: str | None) -> Path | None:
    """The file to write, checked before the measurement rather than after it; None for no file, or standard output."""
    if text is None or text == _STDOUT:
        return None
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise typer.BadParameter(f"--json {path}: give a file in a folder that exists, or '{_STDOUT}'.")
    return path


def _print(report: "Report", target: Path | None, *, to_stdout: bool) -> None:
    if target is not None:
        target.write_text(report.to_json())
    if to_stdout:
        typer.echo(report.to_json(), nl=False)
        return
    # names of nodes and messages may hold brackets, which are not markup
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False, emoji=False)
    for item in report.to_text():
        console.print(item)


@contextmanager
def _progress() -> Iterator["Notify"]:
    """A line on standard error that says what is going on, and vanishes afterwards."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=1.0)
        yield lambda text, done: progress.update(task, description=text, completed=done)


@contextmanager
def _failure_in_one_line() -> Iterator[None]:
    """Turns the errors that are meant for users into one line on standard error and exit status 1."""
    try:
        yield
    except (BnnfxError, FileNotFoundError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
