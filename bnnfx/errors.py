"""The errors that bnnfx raises on purpose, and refusals; each says what was given, what is needed and what to do."""

from collections.abc import Collection
from dataclasses import dataclass


class BnnfxError(Exception):
    """Base of all errors of this package, so that a caller can catch them as one."""


class ConversionError(BnnfxError):
    """A model cannot be rewritten: it cannot be traced, or nothing in it can be binarized."""


class StageError(BnnfxError):
    """A graph does not keep the promise of its stage, or a function was given a graph of another stage."""


class ExampleInputError(BnnfxError):
    """The example inputs do not fit the model."""


class ExportError(BnnfxError):
    """A packed graph cannot be written as ONNX, or a file cannot be written to the path given."""


class ModelFileError(BnnfxError):
    """An ONNX file is missing, is not one of ours, or was written by a newer version of bnnfx."""


class ModelSourceError(BnnfxError):
    """A model named on the command line, or its weights, cannot be had."""


class BenchmarkError(BnnfxError):
    """Something cannot be measured: a contender cannot be built or run."""


class AnalysisError(BnnfxError):
    """A model does not allow a measurement: its loss is random, or nothing in it can be measured."""


@dataclass(frozen=True)
class Refusal:
    """A no to one layer or place of a graph, which the compiler goes on without.

    Attributes:
        reason: what speaks against it.
        remedy: the edit, of the model or of an argument, that would change it; empty where none is known.
    """

    reason: str
    remedy: str = ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, as a sentence, to be quoted in ours.

    >>> first_line(RuntimeError("shapes differ"))
    'shapes differ.'
    """
    text = str(error).strip().splitlines()
    line = text[0].strip() if text else type(error).__name__
    return line if line.endswith(".") else line + "."


def quoted(names: Collection[str], most: int = 3) -> str:
    """The first few of some names, to be quoted in a message.

    >>> quoted(["a", "b", "c", "d"]), quoted([])
    ("'a', 'b', 'c' and 1 more", 'nothing')
    """
    first = [f"'{name}'" for name in names][:most]
    return (", ".join(first) + (f" and {len(names) - most} more" if len(names) > most else "")) or "nothing"
