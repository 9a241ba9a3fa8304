"""The page itself: a template, into which styles, script, pictures and data are put."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from string import Template
from typing import Any

import torch

from bnnfx.inspect.drawing import STYLESHEET, GraphView, to_svg

_SCRIPTS = ("dom.js", "pictures.js", "layers.js", "charts.js", "log.js")


def page(pictures: Sequence[tuple[str, GraphView]], data: dict[str, Any]) -> str:
    """The HTML of a report; whatever is shown of a model is either escaped or data that the script reads.

    Args:
        pictures: the prefix of the ids of each, and what it shows.
        data: of everything else.
    """
    style = "\n".join((STYLESHEET, _read("style.css")))
    script = "".join(map(_read, _SCRIPTS))
    figures = (f"<figure>{to_svg(view, prefix=prefix)}</figure>" for prefix, view in pictures)
    return Template(_read("page.html")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        title=html.escape(" → ".join(dict.fromkeys(view.title for _, view in pictures))),
        versions=html.escape(f"bnnfx {version('bnnfx')}, torch {torch.__version__}"),
        style=style,
        pictures="\n".join(figures),
        data=json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        script=script,
    )


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """Allows this very text in a content security policy, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
