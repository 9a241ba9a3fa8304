"""What the commands share: options of a model, progress, results as tables or JSON, and errors in one line."""

import ast
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from bnnfx.config import FLOAT_KEYWORDS, Config, LayerConfig
from bnnfx.errors import BnnfxError, ModelSourceError, first_line
from bnnfx.file_writing import require_folder, write_whole
from bnnfx.source_forms import FORMS, IMAGE_SIZE, LIBRARIES, named_model

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor, fx

    from bnnfx.bench.whole_models import Notify
    from bnnfx.checkpoint import Weights

_WIDTH = 120  # of tables that do not go to a terminal
STDOUT = "-"
_NOTHING = "none"
_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_FAILED = 2
DIGITS = 18  # of sizes that are numbers for torch, too
_STDOUT_DESCRIPTOR, _STDERR_DESCRIPTOR = 1, 2


_BUGS = (AssertionError, AttributeError, LookupError, NameError, TypeError)
"""What says more about this program than about what it was given; its traceback is shown."""


class _Group(TyperGroup):
    """Keeps the command line as it was typed, for reports that quote it; every failure is one line and status 2."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        ctx.obj = ["bnnfx", *args]
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program. A failure never ends with status 1, which has a meaning; nor does output that is lost."""
        try:
            if sys.stderr is None:
                sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the program runs)
            if sys.stdout is None:
                raise OSError(errno.EBADF, "Standard output is closed")
            try:
                return super().main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # at the end of the program it would be too late
        except (Exception, SystemExit) as error:
            # typer and rich end the program with status 1 where nobody reads what it writes
            failure = error.__context__ if isinstance(error, SystemExit) else error
            if not isinstance(failure, Exception) or (failure is not error and not isinstance(failure, OSError)):
                raise
            with suppress(OSError):
                if isinstance(failure, _BUGS):
                    traceback.print_exception(failure)
                typer.echo(f"Error: {_in_one_line(failure)}", err=True)
            _drop_what_is_lost()
            sys.exit(_FAILED)


def _in_one_line(error: Exception) -> str:
    """A failure for people: messages of ours as they are, others with what they are about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}."
    ours = isinstance(error, BnnfxError | FileNotFoundError | ValueError)
    return " ".join(str(error).split()) if ours else f"{type(error).__name__}: {first_line(error)}"


def _drop_what_is_lost() -> None:
    """Python tries again when the program ends, and gives a status of its own, unless something takes the output."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, stream.fileno())
            os.close(sink)


app = typer.Typer(cls=_Group, no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def main() -> None:
    """bnnfx: a compiler for binary neural networks.

    Exit status: 0, all is well; 1, two models differ (`verify`); 2, the command or what it was given is wrong,
    or it could not be carried out.
    """


def _schemes() -> list[str]:
    from bnnfx.schemes import schemes

    return schemes()


SchemeOption = Annotated[
    str | None, typer.Option(help="Scheme to binarize the model by.", autocompletion=_schemes, show_default=False)
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SIZES",
        help=f"Shape of an argument of forward with its batch, such as `1x3x32x32`; once for each argument. "
        f"`1x3x{IMAGE_SIZE}x{IMAGE_SIZE}` for models of {' and '.join(LIBRARIES)}.",
        show_default=False,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE[:KEY]",
        help="The state_dict of the float model, or of the converted (or split) one after training: `.pt`, `.pth` or "
        "`.safetensors`; KEY says where it is in a checkpoint, such as `state_dict_ema`, if its names do not. Without "
        "it the weights are random.",
        show_default=False,
    ),
]
KeepFloatOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WORD",
        help=f"Layers that stay float: {', '.join(f'`{word}`' for word in FLOAT_KEYWORDS)}; may be repeated. "
        f"All of these if not given; `{_NOTHING}` for none.",
        show_default=False,
    ),
]
LayerOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB=float|binary",
        help="What the layers of this name, or of names that match, become. May be repeated.",
        show_default=False,
    ),
]
OptionOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="An option of the scheme, on or off, a number or a word. May be repeated.",
        show_default=False,
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random.")]
JsonOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Also write everything as JSON; `-` prints it instead of tables.", show_default=False
    ),
]


@dataclass(frozen=True)
class Request:
    """A model to be converted, as the options of a command describe it.

    Attributes:
        source: names the model.
        scheme: to binarize it by.
        config: which layers stay float, and options of the scheme.
        weights: where its weights are, if that was given.
        shapes: of the arguments of forward; none if they were not given.
        seed: of everything random.
    """

    source: str
    scheme: str
    config: Config
    weights: "Weights | None"
    shapes: tuple[tuple[int, ...], ...]
    seed: int

    def build(self) -> "fx.GraphModule":
        """The converted model, in evaluation mode; what is random about it is said on standard error."""
        from bnnfx.model_source import build

        if self.weights is None:
            random = named_model(self.source) is not None
            kind = "random" if random else "those it is made with, random ones unless it loads others"
            say(f"the weights of {self.source} are {kind} (seed {self.seed}); --weights gives trained ones")
        inputs = self.example_inputs() if self.shapes else None
        return build(self.source, self.scheme, self.config, self.weights, self.seed, inputs)

    def example_inputs(self) -> "tuple[Tensor, ...]":
        """Two samples of noise per argument, to find shapes with and to compare what is made of the model on."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        return tuple(torch.randn(2, *shape[1:], generator=generator) for shape in self.shapes)


def request(
    source: str,
    scheme: str | None,
    inputs: list[str] | None,
    weights: str | None,
    keep_float: list[str] | None,
    layers: list[str] | None,
    options: list[str] | None,
    seed: int,
) -> Request:
    """Checks the options of a model before anything is done."""
    if scheme not in (known := _schemes()):
        given = "it was not given" if scheme is None else f"got '{scheme}'"
        raise typer.BadParameter(f"--scheme is one of {', '.join(known)}; {given}.")
    found = None if weights is None else _weights(weights)
    shapes = tuple(shape(text) for text in inputs or ())
    if not shapes and named_model(source) is not None:
        shapes = ((1, 3, IMAGE_SIZE, IMAGE_SIZE),)
    words = tuple(keep_float) if keep_float else FLOAT_KEYWORDS
    words = () if words == (_NOTHING,) else words
    unknown = [word for word in words if word not in FLOAT_KEYWORDS]
    if unknown:
        raise typer.BadParameter(f"--keep-float is {', '.join(FLOAT_KEYWORDS)} or {_NOTHING}; got {unknown[0]}.")
    config = Config(words, dict(_layer(text) for text in layers or ()), dict(_option(text) for text in options or ()))
    return Request(source, scheme, config, found, shapes, seed)


def _weights(text: str) -> "Weights":
    from bnnfx.checkpoint import Weights

    try:
        return Weights.parse(text)
    except ModelSourceError as error:
        raise typer.BadParameter(f"--weights: {error}") from error


def shape(text: str) -> tuple[int, ...]:
    """`1x3x32x32` as numbers."""
    sizes = text.split("x")
    if len(sizes) < 2 or not all(size.isdecimal() and len(size) < DIGITS and int(size) for size in sizes):
        raise typer.BadParameter(f"--input is sizes with x between, the batch first, such as 1x3x32x32; got '{text}'.")
    return tuple(map(int, sizes))


def _layer(text: str) -> tuple[str, LayerConfig]:
    name, _, kind = text.rpartition("=")
    if not name or kind not in ("float", "binary"):
        raise typer.BadParameter(f"--layer is NAME=float or NAME=binary, NAME may be a glob; got '{text}'.")
    return name, LayerConfig(binarize=kind == "binary")


def _option(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise typer.BadParameter(f"--option is NAME=VALUE; got '{text}'.")
    if value.lower() in _TRUTHS:
        return name, _TRUTHS[value.lower()]
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def is_file_of_onnx(text: str) -> bool:
    """Whether a model is given as an ONNX file; anything that ends so, or is a file that is no Python.

    A text that is neither a file nor the name of a model is refused.
    """
    path = Path(text)
    if path.suffix == ".onnx" or (path.is_file() and path.suffix != ".py"):
        if not path.is_file():
            raise typer.BadParameter(f"There is no file {path}; a model is an ONNX file, {FORMS}.")
        return True
    if ":" not in text:
        raise typer.BadParameter(f"There is no file {path}; a model is an ONNX file, {FORMS}.")
    return False


def refuse(options: Mapping[str, object], reason: str) -> None:
    """Raises if one of the options was given."""
    for name, value in options.items():
        if value:
            raise typer.BadParameter(f"{name} {reason}.")


def target(text: str | None, option: str, *, stdout: bool = True) -> Path | None:
    """The file to write, checked before the work rather than after it; None for no file, or standard output.

    Args:
        text: as it was given, if it was.
        option: its name.
        stdout: whether `-` stands for standard output; it is refused else.

    Raises:
        ExportError: there can be no such file.
    """
    if text is None or (stdout and text == STDOUT):
        return None
    if text == STDOUT:
        raise typer.BadParameter(f"{option} writes a file, not to standard output; got '{STDOUT}'.")
    return require_folder(text)


def show(items: "Sequence[RenderableType]", json_text: str, json: str | None, *, beside: bool = False) -> None:
    """Print tables and text, and write JSON, as `--json` says.

    Args:
        items: what is printed.
        json_text: the same as JSON.
        json: the option.
        beside: standard output holds something else, so that tables and text go to standard error.
    """
    path = target(json, "--json")
    if path is not None:
        write_whole(path, json_text)
    if json == STDOUT:
        typer.echo(json_text, nl=False)
        return
    from rich.console import Console

    # names of nodes and messages may hold brackets, which are not markup
    width = None if (sys.stderr if beside else sys.stdout).isatty() else _WIDTH
    console = Console(width=width, stderr=beside, highlight=False, markup=False, emoji=False)
    for item in items:
        console.print(item)


def say(text: str) -> None:
    """A remark on standard error, beside the result."""
    typer.echo(f"note: {text}", err=True)


@contextmanager
def progress() -> Iterator["Notify"]:
    """A line on a terminal's standard error that says what is going on, and vanishes afterwards."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda text, done: bar.update(task, description=text, completed=done)


@contextmanager
def working() -> Iterator[None]:
    """While models are made and run: warnings meant for users become remarks, and standard output stays for results.

    What a model prints goes to standard error, whether Python prints it, or a program or library that it calls.
    """
    with warnings.catch_warnings(record=True) as caught, _prints_to_stderr():
        warnings.simplefilter("default", UserWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning):
                say(text)


@contextmanager
def _prints_to_stderr() -> Iterator[None]:
    sys.stdout.flush()
    kept = os.dup(_STDOUT_DESCRIPTOR)
    try:
        os.dup2(_STDERR_DESCRIPTOR, _STDOUT_DESCRIPTOR)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, _STDOUT_DESCRIPTOR)
        os.close(kept)
