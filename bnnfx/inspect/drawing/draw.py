"""`bnnfx.draw`: a graph as a picture in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from bnnfx.arguments import as_path
from bnnfx.file_writing import require_folder, write_whole
from bnnfx.inspect.drawing.extra import require_extra
from bnnfx.inspect.drawing.file_view import file_view
from bnnfx.inspect.drawing.font import font_files
from bnnfx.inspect.drawing.graph_view import view
from bnnfx.inspect.drawing.svg import to_svg

_DPI = 240.0


def draw(gm: nn.Module | str | Path, path: str | Path, *, example_inputs: tuple[Any, ...] | None = None) -> Path:
    """Draw a graph in any stage, any module that `torch.fx` can trace, or an ONNX file, on one page.

    Layers run from top to bottom and go on in the next column; nodes are coloured by kind, modules of the user's model
    are framed, and values are labelled with shape (batch `N`) and type.

    Args:
        gm: what to draw, a graph or module, which is not changed, or the path of an ONNX file.
        path: the file to write, `.svg` or `.png`; it appears whole or not at all.
        example_inputs: arguments of forward, for the shapes; packed graphs and files need none.

    Returns:
        The path written.

    Raises:
        ValueError: `path` ends otherwise.
        ConversionError: the module cannot be traced.
        ExampleInputError: the example inputs do not fit.
        ModelFileError: there is no such file, or it is no ONNX file.
        ExportError: `path` cannot be written.
        BnnfxError: the extra `draw` is not installed.

    >>> import tempfile, torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw(model, Path(folder) / "model.svg", example_inputs=(torch.zeros(1, 3, 9, 9),)).name
    'model.svg'
    """
    path = as_path(path)
    encode = _ENCODERS.get(path.suffix.lower())
    if encode is None:
        raise ValueError(f"A picture is written as {' or '.join(_ENCODERS)}; got {path.name!r}.")
    seen = file_view(gm) if isinstance(gm, str | Path) else view(gm, example_inputs)
    return write_whole(require_folder(path), encode(to_svg(seen)))


def _svg(text: str) -> bytes:
    return text.encode()


def _png(text: str) -> bytes:
    """The picture as resvg paints it, in the font of the package, as a machine may have none."""
    pixels: bytes = require_extra("resvg_py").svg_to_bytes(
        svg_string=text,
        dpi=_DPI,
        skip_system_fonts=True,
        font_files=[*font_files().values()],
    )
    return pixels


_ENCODERS: dict[str, Callable[[str], bytes]] = {".svg": _svg, ".png": _png}
