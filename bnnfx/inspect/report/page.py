"""The page itself: a template, into which styles, script, pictures and data are put."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from bnnfx.inspect.drawing import STYLESHEET, GraphView, to_svg

_TEMPLATES = Environment(loader=PackageLoader(__package__, ""), autoescape=True, undefined=StrictUndefined)
_TEMPLATES.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
_SCRIPTS = ("dom.js", "pictures.js", "layers.js", "charts.js", "log.js")


def page(pictures: Sequence[tuple[str, GraphView]], data: dict[str, Any]) -> str:
    """The HTML of a report; whatever is shown of a model is either escaped or data that the script reads.

    Args:
        pictures: the prefix of the ids of each, and what it shows.
        data: of everything else.
    """
    style = "\n".join((STYLESHEET, _read("style.css")))
    script = "".join(map(_read, _SCRIPTS))
    return _TEMPLATES.get_template("page.html").render(
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        title=" → ".join(dict.fromkeys(view.title for _, view in pictures)),
        versions=f"bnnfx {version('bnnfx')}, torch {torch.__version__}",
        style=style,
        pictures=[to_svg(view, prefix=prefix) for prefix, view in pictures],
        data=data,
        script=script,
    )


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """Allows this very text in a content security policy, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
