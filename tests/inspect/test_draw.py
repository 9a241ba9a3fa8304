"""Pictures: correct against the graph, nothing on top of anything else, readable in print."""

import dataclasses
import operator
import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from helpers import models
from torch import fx, nn

import bnnfx
from bnnfx._torchvision import import_torchvision
from bnnfx.api import split_if_ternary
from bnnfx.frontend.trace import trace
from bnnfx.inspect.drawing import font
from bnnfx.inspect.drawing.font import FONT, width_of
from bnnfx.inspect.drawing.geometry import A4, Box
from bnnfx.inspect.drawing.graph_view import GraphView, view
from bnnfx.inspect.drawing.layout import Layout, layout
from bnnfx.inspect.drawing.layout_layers import layers_of
from bnnfx.inspect.drawing.svg import STYLESHEET, to_svg

SVG = "{http://www.w3.org/2000/svg}"
SCHEMES = ("binaryduo", "bireal", "rbnn", "xnor")
STAGES = ("float", "trainable", "packed")
IMAGE = (torch.zeros(1, 3, 64, 64),)
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
DOWNSAMPLES = [f"layer{stage}.0.downsample" for stage in (2, 3, 4)]


@pytest.fixture(scope="module")
def graphs():
    """ResNet-18 in every stage, by scheme and stage."""
    pytest.importorskip("PIL", reason="torchvision is an extra")
    model = import_torchvision().models.resnet18().eval()
    found = {}
    for scheme in SCHEMES:
        bnn = bnnfx.convert(model, scheme)
        found |= {(scheme, "float"): trace(model)[0], (scheme, "trainable"): bnn}
        found[scheme, "packed"] = bnnfx.lower(split_if_ternary(bnn), IMAGE)
    return found


@pytest.fixture(scope="module", params=[(scheme, stage) for scheme in SCHEMES for stage in STAGES], ids="-".join)
def resnet(request, graphs):
    """One of them, its view and its layout."""
    gm = graphs[request.param]
    seen = view(gm, IMAGE)
    return gm, seen, layout(seen)


def is_folded(node: fx.Node) -> bool:
    """Constants, and picks from the several results of a packed operator."""
    if node.op == "get_attr":
        return True
    return (
        node.target is operator.getitem
        and isinstance(node.args[1], int)
        and str(node.args[0].target).startswith("bnnfx.")
    )


def svg_of(seen: GraphView, **options: str) -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(seen, **options))


def groups(root: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    """The groups of nodes, edges or blocks, without those of the legend."""
    found = [group for group in root.iter(f"{SVG}g") if group.get("class", "").split()[0] == kind and group.get("id")]
    assert len({group.get("id") for group in found}) == len(found)
    return found


def box_of(group: ElementTree.Element) -> Box:
    rectangle = group.find(f"{SVG}rect")
    return Box(*(float(rectangle.get(name)) for name in ("x", "y", "width", "height")))


# --- against the graph ---


def test_nodes_and_edges_are_those_of_the_graph(resnet):
    gm, seen, _ = resnet
    shown = [node for node in gm.graph.nodes if not is_folded(node)]
    edges = [(value, node) for node in shown for value in node.all_input_nodes if value.op != "get_attr"]
    root = svg_of(seen)
    assert {group.get("data-name") for group in groups(root, "node")} == {node.name for node in shown}
    drawn = {(group.get("data-value"), group.get("data-target")) for group in groups(root, "edge")}
    assert len(groups(root, "edge")) == len(edges) and drawn == {(value.name, node.name) for value, node in edges}


def test_every_constant_is_a_detail_of_its_reader(resnet):
    gm, seen, _ = resnet
    read = {
        (node.name, source.name) for node in gm.graph.nodes for source in node.all_input_nodes if is_constant(source)
    }
    assert {(node.name, name) for node in seen.nodes for name in node.constants} == read
    described = [node for node in seen.nodes if node.kind == "packed"]
    assert all(any("32[" in text or "uint8[" in text for text in node.details.values()) for node in described)


def is_constant(node: fx.Node) -> bool:
    return node.op == "get_attr"


def test_sources_of_edges_compute_their_values(resnet):
    gm, seen, _ = resnet
    nodes = {node.name: node for node in gm.graph.nodes}
    assert seen.edges
    for edge in seen.edges:
        value = nodes[edge.value]
        assert edge.source == (value.args[0].name if is_folded(value) else edge.value)
        assert value in nodes[edge.target].all_input_nodes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_kinds(graphs, scheme):
    assert set(view(graphs[scheme, "float"]).counts()) == {"input", "float", "output"}
    counts = view(graphs[scheme, "trainable"]).counts()
    assert (counts["binarizer"], counts["binary"]) == (16, 16)
    packed = view(graphs[scheme, "packed"])
    assert sum("BinaryConv2d" in node.lines[0] for node in packed.nodes if node.kind == "packed") == 16


def test_blocks_of_resnet(resnet):
    """Also where names are all that lowering left of the modules."""
    _, seen, placed = resnet
    assert {frame.path for frame in placed.frames} == {*BLOCKS, *DOWNSAMPLES}
    in_blocks = [node for node in seen.nodes if node.block]
    assert all(any(node.block in (block, f"{block}.downsample") for block in BLOCKS) for node in in_blocks)
    assert all(
        not node.block for node in seen.nodes if node.name in ("x", "conv1", "avgpool", "flatten", "fc", "output")
    )


# --- values ---


def test_shapes_and_bytes_of_a_trainable_graph():
    model = models.Chain()
    edges = {edge.value: edge for edge in view(bnnfx.convert(model, "bireal"), model.inputs()).edges}
    assert edges["x"].label == "N×3×8×8 float" and edges["x"].bytes == 3 * 8 * 8 * 4
    assert edges["conv1_sign"].label == "N×8×8×8 bits" and edges["conv1_sign"].bytes == 8 * 8 * 8 * 4
    assert edges["flatten"].label == "N×64 float"


def test_packed_bits_are_counted_in_channels_and_stored_in_words():
    """8 channels of bits are a row of 8 bytes: a row is padded to a multiple of 64 bits."""
    model = models.Chain()
    packed = bnnfx.lower(bnnfx.convert(model, "bireal"), model.inputs())
    bits = [edge for edge in view(packed).edges if edge.holds == "bits"]
    assert [edge.shape for edge in bits if edge.value == "conv1_sign"] == [("N", "8", "8", "8")]
    assert [edge.bytes for edge in bits if edge.value == "conv1_sign"] == [8 * 8 * 8]


@pytest.mark.parametrize("name", models.HAZARDS)
def test_shapes_are_those_of_a_run(name):
    """Of a run with two samples; axis 0 is only called N where it holds the batch, or a multiple of it."""
    model = models.HAZARDS[name]().eval()
    inputs = model.inputs()
    seen = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if isinstance(result, torch.Tensor):
                seen[n.name] = tuple(result.shape)
            return result

    gm = trace(model)[0]
    Recorder(gm).run(*inputs)
    edges = view(gm, inputs).edges
    assert edges
    for edge in edges:
        assert (edge.holds == "other") == (edge.value not in seen) == (edge.shape is None)
        if edge.shape is not None:
            first = edge.shape[0]
            batch = int(first.removesuffix("N") or 1) * len(inputs[0]) if first.endswith("N") else int(first)
            assert (batch, *map(int, edge.shape[1:])) == seen[edge.value]


def test_without_example_inputs_no_shape_is_claimed():
    edges = view(bnnfx.convert(models.Chain(), "rbnn")).edges
    assert {edge.shape for edge in edges} == {edge.bytes for edge in edges} == {None}
    assert {edge.label for edge in edges} == {"float", "bits"}


def test_view_changes_nothing():
    model = models.Chain().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bnn = bnnfx.convert(model, "rbnn")
    code = bnn.code
    view(bnn, model.inputs())
    assert bnn.training and bnn.code == code
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


# --- geometry ---


def assert_tidy(seen: GraphView, placed: Layout) -> None:
    """What holds for the picture of any graph."""
    page = Box(0, 0, placed.width, placed.height)
    assert all(page.contains(box) for box in (*placed.boxes.values(), *(frame.box for frame in placed.frames)))
    assert all(0 <= x <= placed.width and 0 <= y <= placed.height for route in placed.routes for x, y in route.points)
    assert not [pair for pair in combinations(placed.boxes.items(), 2) if pair[0][1].overlaps(pair[1][1])]
    for frame in placed.frames:
        for node in seen.nodes:
            inside = f"{node.block}.".startswith(f"{frame.path}.")
            assert frame.box.contains(placed.boxes[node.name]) or not frame.box.overlaps(placed.boxes[node.name])
            assert inside or not frame.box.overlaps(placed.boxes[node.name])
    for route in placed.routes:
        (start_x, start_y), (end_x, end_y) = route.points[0], route.points[-1]
        source, target = placed.boxes[route.edge.source], placed.boxes[route.edge.target]
        assert source.x <= start_x <= source.right and start_y == pytest.approx(source.bottom, abs=1e-9)
        assert target.x <= end_x <= target.right and end_y == pytest.approx(target.y, abs=1e-9)
    assert [route.edge for route in placed.routes] == list(seen.edges)
    for label in placed.labels:
        width = width_of(label.text) * (1 if label.anchor == "start" else -1)
        assert min(label.x, label.x + width) >= 0 and max(label.x, label.x + width) <= placed.width
    assert {label.value for label in placed.labels} == {edge.value for edge in seen.edges if edge.label}


def test_resnet_is_tidy_and_prints_on_a4(resnet):
    _, seen, placed = resnet
    assert_tidy(seen, placed)
    assert placed.scale * FONT >= 5.7  # points
    for frame in placed.frames:
        assert sum(frame.box.contains(placed.boxes[node.name]) for node in seen.nodes) >= 2


def test_lines_do_not_cross_nodes(resnet):
    """Neither straight pieces nor slanted ones, which are looked at in a hundred places."""
    _, _, placed = resnet
    checked = 0
    for route in placed.routes:
        for (x0, y0), (x1, y1) in zip(route.points, route.points[1:], strict=False):
            for step in range(1, 100):
                share = step / 100
                point = Box(x0 + (x1 - x0) * share, y0 + (y1 - y0) * share, 0.01, 0.01)
                hit = [name for name, box in placed.boxes.items() if box.overlaps(point)]
                assert not hit, (route.edge, hit)
            checked += 1
    assert checked > len(placed.boxes)


@pytest.mark.parametrize("name", models.HAZARDS)
@pytest.mark.parametrize("stage", STAGES)
def test_any_graph_is_tidy(name, stage):
    model = models.HAZARDS[name]()
    gm = trace(model)[0]
    if stage != "float":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)  # what stays a leaf
            gm = bnnfx.convert(model, "bireal")
    if stage == "packed":
        gm = bnnfx.lower(gm, model.inputs())
    seen = view(gm, None if stage == "packed" else model.inputs())
    assert_tidy(seen, layout(seen))
    assert len(groups(svg_of(seen), "node")) == len(seen.nodes)


class Tangle(nn.Module):
    """Edges over many layers, parts that are not connected, an unused input, a block that is called twice."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Sequential(nn.ReLU(), nn.Tanh())
        self.deep = nn.Sequential(*(nn.ReLU() for _ in range(40)))

    def forward(self, x, y, unused):
        a = self.twice(x)
        b = self.deep(a)
        return {"sum": a + b + self.twice(b) + x, "pair": (y.relu(), y)}


@pytest.mark.parametrize("inputs", [None, tuple(torch.zeros(2, 3) for _ in range(3))])
def test_tangle(inputs):
    seen = view(Tangle(), inputs)
    assert_tidy(seen, layout(seen))
    assert "unused" in {node.name for node in seen.nodes}


def test_graph_without_edges():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.zeros(3))

        def forward(self):
            return self.value

    seen = view(Constant())
    assert [(node.name, node.constants) for node in seen.nodes] == [("output", ("value",))]
    assert_tidy(seen, layout(seen))


def test_paths_pass_every_layer_between():
    layers = layers_of(6, [(0, 1), (1, 2), (2, 3), (0, 3), (4, 5), (0, 3)])
    assert list(layers.paths) and set(layers.paths) == {(0, 1), (1, 2), (2, 3), (0, 3), (4, 5)}
    for path in layers.paths.values():
        assert [layers.rank[item] for item in path] == list(range(layers.rank[path[0]], layers.rank[path[-1]] + 1))
    assert sorted(item for row in layers.rows for item in row) == sorted(layers.rank)


# --- SVG and files ---


def test_ids_classes_and_data():
    model = models.Residual(downsample=True)
    seen = view(bnnfx.convert(model, "bireal"), model.inputs())
    root = svg_of(seen, prefix="before-")
    by_id = {group.get("id"): group for group in root.iter() if group.get("id")}
    assert by_id["before-node-block_conv2"].get("class") == "node binary"
    assert by_id["before-node-block_conv2"].get("data-block") == "block"
    edge = by_id["before-edge-block_conv2_sign-block_conv2"]
    assert edge.get("class") == "edge bits" and edge.get("data-shape") == "N×16×4×4"
    assert by_id["before-block-block.downsample"].get("data-path") == "block.downsample"
    assert all(name.startswith("before-") for name in by_id)


def test_a_narrow_picture_has_room_for_its_header():
    model = models.Residual()
    seen = view(bnnfx.lower(bnnfx.convert(model, "bireal"), model.inputs()))
    for title in (seen.title, 30 * "Model"):
        root = svg_of(dataclasses.replace(seen, title=title))
        width = float(root.get("viewBox").split()[2])
        texts = {text.text: float(text.get("x")) for text in root.find(f"{SVG}g").iter(f"{SVG}text")}
        assert {title, "packed operator", "bits"} <= texts.keys()
        assert width >= max(x + width_of(text) for text, x in texts.items())
        assert float(root.get("width").removesuffix("pt")) == pytest.approx(min(width, A4[0]), abs=0.01)


def test_stylesheet_reaches_every_class():
    used = {name for group in svg_of(view(models.Chain())).iter() for name in group.get("class", "").split()}
    styled = set(re.findall(r"\.([a-z][a-z-]*)", STYLESHEET))
    assert {"bnnfx-graph", "paper", "block", "label", "what", "line", "head", "float", "input"} <= styled
    assert used - styled <= {"blocks", "edges", "nodes", "labels", "header", "title", "output"} | {"graph"}
    assert STYLESHEET.count("light-dark(") == 15


def test_names_are_escaped():
    """torch.fx itself takes no quotation marks in the names of modules; titles may have them."""
    model = nn.Sequential()
    model.add_module("a<b>&c", nn.Sequential(nn.ReLU(), nn.Tanh()))
    seen = dataclasses.replace(view(model), title="<\"'&")
    root = svg_of(seen)
    assert {group.get("data-path") for group in groups(root, "block")} == {"a<b>&c"}
    assert {group.get("data-block") for group in groups(root, "node")} == {"", "a<b>&c"}
    assert root.find(f"{SVG}title").text == "<\"'&"


@pytest.mark.parametrize("suffix", [".svg", ".png", ".PNG"])
def test_files(tmp_path, suffix):
    model = models.Residual()
    path = tmp_path / f"picture{suffix}"
    path.write_text("old")
    assert bnnfx.draw(model, str(path), example_inputs=model.inputs()) == path
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes().startswith(b"<svg" if suffix == ".svg" else b"\x89PNG")


def test_png_shows_text_without_the_fonts_of_the_machine(tmp_path):
    """The same picture without any text has fewer dark pixels."""
    from bnnfx.inspect.drawing.draw import _png

    image = pytest.importorskip("PIL.Image", reason="torchvision is an extra")
    text = to_svg(view(models.Residual()))
    dark = []
    for number, svg in enumerate((text, re.sub("<text.*?</text>", "", text))):
        path = tmp_path / f"{number}.png"
        path.write_bytes(_png(svg))
        dark.append(sum(image.open(path).convert("L").histogram()[:60]))
    assert dark[0] > 500 and dark[1] == 0


@pytest.mark.parametrize("name", ["picture.pdf", "picture"])
def test_other_files_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(".svg or .png")):
        bnnfx.draw(models.Chain(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_missing_folder(tmp_path):
    with pytest.raises(bnnfx.ExportError, match="does not exist"):
        bnnfx.draw(models.Chain(), tmp_path / "missing" / "picture.svg")


def test_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "picture.svg"
    path.write_text("old")
    with pytest.raises(bnnfx.ExampleInputError):
        bnnfx.draw(models.Chain(), path, example_inputs=(torch.zeros(1, 5, 8, 8),))
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("module", "suffix"),
    [("fast_sugiyama", ".svg"), ("resvg_py", ".png"), ("font_source_sans_pro", ".svg"), ("fontTools.ttLib", ".svg")],
)
def test_missing_extra_is_named(tmp_path, monkeypatch, module, suffix):
    font._advances.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(bnnfx.BnnfxError, match=re.escape("pip install 'bnnfx[draw]'")):
        bnnfx.draw(models.Chain(), Path(tmp_path) / f"picture{suffix}")
    assert not list(tmp_path.iterdir())
