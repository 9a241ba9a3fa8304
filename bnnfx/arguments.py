"""What public functions are given: checked before anything is done, with what is wanted and what was got."""

import json
import os
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any


def require_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False: any text is true, "no" too.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is True or False; got {shown(value)}.")


def require_whole(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """A whole number, of Python or of numpy.

    Raises:
        ValueError: it is none, a truth value, or out of range.

    >>> require_whole("bins", 3, least=1)
    3
    """
    words = "a whole number" + ("" if least is None else f" of {least} or more")
    words += "" if most is None else f", at most {most}"
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name} is {words}; got {shown(value)}.")
    return number


def is_number(value: object) -> bool:
    """Whether it is a real number, of Python or of numpy, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require_function(name: str, value: object) -> None:
    """Refuse what cannot be called.

    Raises:
        ValueError: it cannot.
    """
    if not callable(value):
        raise ValueError(f"{name} is a function; got {shown(value)}.")


def require_instance(name: str, value: object, kind: type, words: str) -> None:
    """Refuse what is of another class, the class itself among it.

    Raises:
        ValueError: it is.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {words}; got {shown(value)}.")


def require_text(name: str, value: object) -> None:
    """Refuse what is no text, or an empty one.

    Raises:
        ValueError: it is.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is a text; got {shown(value)}.")


def require_mapping(name: str, value: object) -> None:
    """Refuse what is no dictionary.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is a dictionary, an empty one for nothing; got {shown(value)}.")


def as_path(value: object) -> Path:
    """A path that was given as a text or a path.

    Raises:
        ValueError: it was given as something else, or no file can have it.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(text := os.fspath(value), str):
        raise ValueError(f"A path is a text or a pathlib.Path; got {shown(value)}.")
    if "\0" in text:
        raise ValueError(f"A path has no null byte in it; got {text!r}.")
    return Path(text)


def read_json(path: str | Path) -> Any:
    """What a file of JSON holds; None of what is no JSON.

    Raises:
        ValueError: it cannot be read.
    """
    path = as_path(path)
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError:
        return None


def shown(value: object) -> str:
    """A value as messages quote it: in one line, or by its class where that would be long.

    >>> shown("2"), shown(list(range(99)))
    ("'2'", 'a list')
    """
    text = repr(value)
    short = len(text) <= _LONGEST and "\n" not in text
    return text if short else f"a {type(value).__name__}"


_LONGEST = 80
