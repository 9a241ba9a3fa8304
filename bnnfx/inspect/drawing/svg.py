"""A graph as SVG: every node, edge and block is a group with an id, classes and data of its own.

On its own the picture has fixed colours (presentation attributes). Where it stands inside an HTML page, rules for the
classes take precedence over them; `STYLESHEET` has such rules, for light and dark pages.
"""

from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from bnnfx.inspect.drawing.font import FONT, FONT_FAMILY, width_of
from bnnfx.inspect.drawing.geometry import A4, LINE, MARGIN, Box
from bnnfx.inspect.drawing.graph_view import Edge, GraphView, Node
from bnnfx.inspect.drawing.layout import Frame, Layout, layout
from bnnfx.inspect.drawing.layout_routes import Label, Point, Route

_FILL = {
    "input": "#e2e8f0",
    "output": "#e2e8f0",
    "float": "#dbeafe",
    "binarizer": "#fde68a",
    "binary": "#fecaca",
    "packed": "#bbf7d0",
}
_STROKE = {
    "input": "#64748b",
    "output": "#64748b",
    "float": "#3b82f6",
    "binarizer": "#b45309",
    "binary": "#dc2626",
    "packed": "#15803d",
}
_DARK_FILL = {
    "input": "#334155",
    "output": "#334155",
    "float": "#1e3a5f",
    "binarizer": "#713f12",
    "binary": "#7f1d1d",
    "packed": "#14532d",
}
_CAPTION = {
    "input": "input, output",
    "float": "float",
    "binarizer": "binarizer",
    "binary": "binary layer",
    "packed": "packed operator",
}
_LINE = {"float": "#64748b", "bits": "#b91c1c", "ternary": "#b45309", "other": "#a1a1aa"}
_DARK_LINE = {"float": "#94a3b8", "bits": "#f87171", "ternary": "#fbbf24", "other": "#71717a"}
_WIDTH = {"float": "1.2", "bits": "0.9", "ternary": "0.9", "other": "0.6"}
_TEXT, _FAINT, _PAPER, _BLOCK, _BLOCK_LINE = "#0f172a", "#475569", "#ffffff", "#f8fafc", "#94a3b8"


def _stylesheet() -> str:
    pairs = {f"fill-{kind}": (_FILL[kind], _DARK_FILL[kind]) for kind in _FILL}
    pairs |= {f"line-{holds}": (_LINE[holds], _DARK_LINE[holds]) for holds in _LINE}
    pairs |= {"text": (_TEXT, "#f1f5f9"), "faint": (_FAINT, "#cbd5e1"), "paper": (_PAPER, "#0b1220")}
    pairs |= {"block": (_BLOCK, "#111c2e"), "frame": (_BLOCK_LINE, "#475569")}
    colours = "".join(f"--bnnfx-{name}:light-dark({light},{dark});" for name, (light, dark) in pairs.items())
    rules = [
        f".bnnfx-graph{{{colours}}}",
        ".bnnfx-graph .paper{fill:var(--bnnfx-paper)}",
        ".bnnfx-graph text{fill:var(--bnnfx-text)}",
        ".bnnfx-graph .label,.bnnfx-graph .what,.bnnfx-graph .block text{fill:var(--bnnfx-faint)}",
        ".bnnfx-graph .block rect{fill:var(--bnnfx-block);stroke:var(--bnnfx-frame)}",
        *(f".bnnfx-graph .node.{kind} rect{{fill:var(--bnnfx-fill-{kind})}}" for kind in _FILL),
        *(f".bnnfx-graph .edge.{holds} .line{{stroke:var(--bnnfx-line-{holds})}}" for holds in _LINE),
        *(f".bnnfx-graph .edge.{holds} .head{{fill:var(--bnnfx-line-{holds})}}" for holds in _LINE),
    ]
    return "\n".join(rules)


STYLESHEET = _stylesheet()
"""CSS for pages that embed pictures: colours are custom properties of `.bnnfx-graph`; the page's `color-scheme` decides
between light and dark ones."""


def to_svg(view: GraphView, *, prefix: str = "") -> str:
    """The picture of a graph as an SVG document.

    Groups: `<g class="node float" id="node-NAME" data-name data-block>`, `<g class="edge bits" id="edge-VALUE-READER"
    data-source data-target data-value data-shape data-bytes>`, `<g class="block" id="block-PATH" data-path>`; a block
    that goes on in another column has a second group, `block-PATH-2`.

    Args:
        view: what to draw.
        prefix: put in front of every id, so that several pictures can stand in one page.

    Raises:
        BnnfxError: the extra `draw` is not installed.

    >>> from torch import nn
    >>> from bnnfx.inspect.drawing.graph_view import view
    >>> to_svg(view(nn.Sequential(nn.ReLU()))).startswith("<svg")
    True
    """
    return _to_svg(view, layout(view), prefix)


def _to_svg(view: GraphView, placed: Layout, prefix: str) -> str:
    root = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "bnnfx-graph",
            "font-family": FONT_FAMILY,
            "font-size": _number(FONT),
        },
    )
    SubElement(root, "title").text = view.title
    SubElement(root, "rect", {"class": "paper", "width": "100%", "height": "100%", "fill": _PAPER})
    width = max(placed.width, _add_header(root, view) + MARGIN)
    root.set("viewBox", f"0 0 {_number(width)} {_number(placed.height)}")
    scale = min(placed.scale, A4[0] / width)
    for side, length in (("width", width), ("height", placed.height)):
        root.set(side, _number(length * scale) + "pt")
    blocks = SubElement(root, "g", {"class": "blocks"})
    for index, frame in enumerate(placed.frames):
        around = [other for other in placed.frames[:index] if frame.path.startswith(other.path + ".")]
        _add_frame(blocks, frame, max((len(other.path) + 1 for other in around), default=0), prefix)
    edges = SubElement(root, "g", {"class": "edges", "fill": "none"})
    for route in placed.routes:
        _add_edge(edges, route, prefix)
    nodes = SubElement(root, "g", {"class": "nodes"})
    for node in view.nodes:
        _add_node(nodes, node, placed.boxes[node.name], prefix)
    labels = SubElement(root, "g", {"class": "labels"})
    for label in placed.labels:
        _add_label(labels, label)
    return ElementTree.tostring(root, encoding="unicode")


def _add_header(root: Element, view: GraphView) -> float:
    """Title and legend; gives the right end of the longer one."""
    header = SubElement(root, "g", {"class": "header"})
    size = FONT + 3
    _text(header, view.title, MARGIN, MARGIN + FONT + 2, {"font-size": _number(size), "font-weight": "bold"})
    title = MARGIN + width_of(view.title, len(view.title)) * size / FONT
    kinds = {"input" if node.kind == "output" else node.kind for node in view.nodes}
    x, y = MARGIN, MARGIN + FONT + 13
    for kind, caption in _CAPTION.items():
        if kind in kinds:
            entry = SubElement(header, "g", {"class": f"node {kind}"})
            _rectangle(entry, Box(x, y - 6, 8, 7), "1.5", _FILL[kind], _STROKE[kind])
            _text(header, caption, x + 11, y, _length(caption))
            x += 18 + width_of(caption)
    for holds in dict.fromkeys(edge.holds for edge in view.edges):
        if holds != "other":
            entry = SubElement(header, "g", {"class": f"edge {holds}"})
            _line(entry, f"M{_number(x)} {_number(y - 2.5)}h14", holds)
            _text(header, holds, x + 17, y, _length(holds))
            x += 24 + width_of(holds)
    return max(title, x - 7)


def _add_frame(parent: Element, frame: Frame, known: int, prefix: str) -> None:
    """The first `known` letters of its path are read from the frame around it."""
    name = f"{prefix}block-{frame.path}" + (f"-{frame.part + 1}" if frame.part else "")
    group = SubElement(parent, "g", {"class": "block", "id": name, "data-path": frame.path})
    SubElement(group, "title").text = frame.path
    _rectangle(group, frame.box, "4", _BLOCK, _BLOCK_LINE)
    _text(
        group,
        _cut(frame.path[known:], frame.box.width - 8),
        frame.box.x + 4,
        frame.box.y + FONT,
        {"fill": _FAINT, "font-style": "italic"},
    )


def _add_node(parent: Element, node: Node, box: Box, prefix: str) -> None:
    data = {"data-name": node.name, "data-block": node.block}
    group = SubElement(parent, "g", {"class": f"node {node.kind}", "id": f"{prefix}node-{node.name}", **data})
    details = "\n".join(f"{caption}: {text}" for caption, text in node.details.items())
    SubElement(group, "title").text = "\n".join(part for part in (node.name, details) if part)
    _rectangle(group, box, "2.5", _FILL[node.kind], _STROKE[node.kind])
    for index, line in enumerate(node.lines):
        bold = 0 if index else len(node.title)
        shown = _cut(line, box.width - 6, bold)
        title = min(bold, len(shown))
        size = _length(shown, bold)
        text = _text(group, "", box.middle, box.y + LINE * (index + 1) + 0.2, {"text-anchor": "middle", **size})
        if title:
            SubElement(text, "tspan", {"class": "title", "font-weight": "bold"}).text = shown[:title]
        SubElement(text, "tspan", {"class": "what", "fill": _FAINT}).text = shown[title:]


def _add_edge(parent: Element, route: Route, prefix: str) -> None:
    edge = route.edge
    group = SubElement(
        parent,
        "g",
        {
            "class": f"edge {edge.holds}",
            "id": f"{prefix}edge-{edge.value}-{edge.target}",
            **_data_of(edge),
        },
    )
    SubElement(group, "title").text = f"{edge.value} → {edge.target}: {edge.label}".rstrip(": ")
    _line(group, "".join(_path(route.points)), edge.holds)
    x, y = route.points[-1]
    tip = f"M{_number(x)} {_number(y)}l-2 -4h4z"
    SubElement(group, "path", {"class": "head", "d": tip, "fill": _LINE[edge.holds]})


def _data_of(edge: Edge) -> dict[str, str]:
    data = {"data-source": edge.source, "data-target": edge.target, "data-value": edge.value}
    if edge.shape is not None:
        data["data-shape"] = "×".join(edge.shape)
    if edge.bytes is not None:
        data["data-bytes"] = str(edge.bytes)
    return data


def _path(points: tuple[Point, ...]) -> Iterator[str]:
    """Straight where two points share an axis, else a curve that begins and ends vertically."""
    x, y = points[0]
    yield f"M{_number(x)} {_number(y)}"
    for to_x, to_y in points[1:]:
        if abs(to_x - x) < 0.01 or abs(to_y - y) < 0.01:
            yield f"L{_number(to_x)} {_number(to_y)}"
        else:
            half = _number((y + to_y) / 2)
            yield f"C{_number(x)} {half} {_number(to_x)} {half} {_number(to_x)} {_number(to_y)}"
        x, y = to_x, to_y


def _add_label(parent: Element, label: Label) -> None:
    attributes = {"class": "label", "text-anchor": label.anchor, "fill": _FAINT, "data-value": label.value}
    attributes |= _length(label.text)
    _text(parent, label.text, label.x, label.y, attributes)


def _line(parent: Element, path: str, holds: str) -> None:
    attributes = {"class": "line", "d": path, "stroke": _LINE[holds], "stroke-width": _WIDTH[holds], "fill": "none"}
    if holds != "float":
        attributes["stroke-dasharray"] = "3 1.5"
    SubElement(parent, "path", attributes)


def _rectangle(parent: Element, box: Box, corner: str, fill: str, stroke: str) -> None:
    sizes = {"x": box.x, "y": box.y, "width": box.width, "height": box.height}
    texts = {name: _number(size) for name, size in sizes.items()}
    SubElement(parent, "rect", {**texts, "rx": corner, "fill": fill, "stroke": stroke, "stroke-width": "0.6"})


def _text(parent: Element, text: str, x: float, y: float, attributes: dict[str, str]) -> Element:
    element = SubElement(parent, "text", {"x": _number(x), "y": _number(y), "fill": _TEXT, **attributes})
    element.text = text
    return element


def _length(text: str, bold: int = 0) -> dict[str, str]:
    """Squeezes or stretches a text to the width that the layout counts with, in fonts that are wider or narrower."""
    return {"textLength": _number(width_of(text, bold)), "lengthAdjust": "spacingAndGlyphs"}


def _cut(text: str, room: float, bold: int = 0) -> str:
    if width_of(text, bold) <= room:
        return text
    kept = text
    while len(kept) > 1 and width_of(kept + "…", bold) > room:
        kept = kept[:-1]
    return kept + "…"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
