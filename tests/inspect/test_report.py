"""The page: correct against the graphs, self-contained, and alive in a real browser."""

import base64
import hashlib
import io
import json
import re
import shutil
import time
from html.parser import HTMLParser

import pytest
import torch
from helpers import models
from torch import nn

import bnnfx
from bnnfx import analysis
from bnnfx._torchvision import import_torchvision
from bnnfx.api import split_if_ternary
from bnnfx.bench.machine import Machine
from bnnfx.bench.nodes import NodeRow
from bnnfx.bench.report import Report
from bnnfx.bench.timing import Spread
from bnnfx.bench.whole_models import Row, Table
from bnnfx.inspect.drawing import view

SCHEMES = ("binaryduo", "bireal", "rbnn", "xnor")
IMAGE = (torch.zeros(1, 3, 64, 64),)


class Page(HTMLParser):
    """The groups of the pictures, by class; the tags; and the text of the data element."""

    def __init__(self, path):
        super().__init__()
        self.groups, self.tags, self.attributes, self.data, self._in_data = [], [], [], "", False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.attributes += given.items()
        self._in_data = given.get("id") == "data"
        if tag == "g" and "id" in given:
            self.groups.append((given["class"].split()[0], given["id"]))

    def handle_data(self, data):
        if self._in_data:
            self.data += data

    def handle_endtag(self, tag):
        self._in_data = False

    def count(self, kind, prefix):
        return sum(group == kind and name.startswith(prefix) for group, name in self.groups)

    def contents(self):
        return json.loads(self.data)


def page(path, graphs, **options):
    return Page(bnnfx.report(graphs, path, **options))


# --- against the graphs ---


@pytest.fixture(scope="module")
def resnet():
    pytest.importorskip("PIL", reason="torchvision is an extra")
    torch.manual_seed(0)
    return import_torchvision().models.resnet18().eval()


@pytest.fixture(scope="module", params=SCHEMES)
def resnet_page(request, resnet, tmp_path_factory):
    bnn = bnnfx.convert(resnet, request.param)
    graphs = [resnet, bnn, bnnfx.lower(split_if_ternary(bnn), IMAGE)]
    path = tmp_path_factory.mktemp("page") / "report.html"
    start = time.process_time()
    bnnfx.report(graphs, path, example_inputs=IMAGE)
    return graphs, path, time.process_time() - start


def test_nodes_and_edges_are_those_of_the_graphs(resnet_page):
    graphs, path, _ = resnet_page
    found = Page(path)
    assert len({name for _, name in found.groups}) == len(found.groups)
    for index, gm in enumerate(graphs):
        seen = view(gm, IMAGE)
        assert len(seen.nodes) > 30
        assert found.count("node", f"graph{index}-") == len(seen.nodes)
        assert found.count("edge", f"graph{index}-") == len(seen.edges)
        told = found.contents()["pictures"][index]
        assert [node["name"] for node in told["nodes"]] == [node.name for node in seen.nodes]
        assert len(told["edges"]) == len(seen.edges)


def test_resnet_takes_less_than_twenty_seconds(resnet_page):
    """Of one core: what else runs on the machine is not held against it."""
    assert resnet_page[2] < 20


def test_table_has_every_layer_and_its_figures(resnet_page):
    graphs, path, _ = resnet_page
    data = Page(path).contents()
    costs = {layer.name: layer for layer in bnnfx.summary(graphs[1], IMAGE).layers}
    packed = bnnfx.summary(graphs[2])
    outside = sum(row.cost.packed_bytes for row in packed.layers if row.operands is None)
    errors = analysis.quantization_error(graphs[1])
    layers = [name for name, module in graphs[0].named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [row["name"] for row in data["layers"]] == layers
    for row in data["layers"]:
        cost = costs[row["name"]].cost
        assert row["macs"] == cost.binary_macs + cost.float_macs and row["mbit"] == cost.mbit
        assert row["became"] == ("packed" if row["name"] in errors.layers else "float")
        assert bool(row["why"]) >= (row["became"] == "float")
        assert row["cosine"] == (errors[row["name"]].used.cosine if row["name"] in errors.layers else None)
    assert data["totals"]["packed_bytes"] == packed.totals.packed_bytes
    assert sum(row["packed_bytes"] for row in data["layers"]) == packed.totals.packed_bytes - outside
    assert data["totals"]["mbit_before"] == bnnfx.summary(graphs[0], IMAGE).totals.mbit


def test_layers_are_linked_from_stage_to_stage(resnet_page):
    """A binary layer is the node of its name in every graph; its batch norm is where its scale is."""
    graphs, path, _ = resnet_page
    data = Page(path).contents()
    by_name = [{node["name"]: set(node["keys"]) for node in picture["nodes"]} for picture in data["pictures"]]
    binary = [row["name"] for row in data["layers"] if row["became"] == "packed"]
    assert len(binary) == 16
    for layer in binary:
        assert all(f"layer {layer}" in nodes[layer.replace(".", "_")] for nodes in by_name[:2])
        assert any(f"layer {layer}" in keys for keys in by_name[2].values())
    float_bn = by_name[0]["layer1_0_bn2"]
    (packed,) = (node for node in view(graphs[2]).nodes if "layer1_0_conv2_weight_bits" in node.constants)
    assert [name for name, keys in by_name[2].items() if keys & float_bn] == [packed.name]


def test_only_the_longest_log_is_shown(resnet_page):
    graphs, path, _ = resnet_page
    (log,) = Page(path).contents()["passes"]
    assert [entry["name"] for entry in log["passes"]] == [entry.name for entry in bnnfx.explain(graphs[2]).passes]


# --- a small network with everything ---


def trained(model):
    """Two steps with a log of flips."""
    bnn = bnnfx.convert(model, "rbnn")
    flips = analysis.FlipRate(bnn)
    optimizer = torch.optim.SGD(bnn.parameters(), 1.0)
    for _ in range(2):
        bnn(*model.inputs()).square().mean().backward()
        optimizer.step()
        flips.update()
    return bnn.eval(), flips.history


def timings():
    """A result of a benchmark, as its command writes it."""
    spread = Spread(2.0, 1.0, 3.0)
    rows = [Row("fp32", Spread(1.0, 1.0, 1.0), spread, 5.0, [2.0]), Row("ours", spread, spread, None, [2.0])]
    nodes = [NodeRow("block_conv2", "BinaryConv2dAddFloat", Spread(0.25, 0.2, 0.3), 0.5, 100, None)]
    tables = [Table(1, 1, 5, "fp32", rows, 1e9, nodes, [])]
    machine = Machine("a processor", "a system", 2, "avx2", ["avx2"], {"torch": "2"})
    return json.loads(Report(["bnnfx", "bench"], machine, 0, ["a note"], tables, []).to_json())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Path of the page, its graphs, flips."""
    torch.manual_seed(0)
    model = models.Residual(downsample=True).eval()
    bnn, flips = trained(model)
    graphs = [model, bnn, bnnfx.lower(bnn, model.inputs())]
    path = tmp_path_factory.mktemp("page") / "report.html"
    bnnfx.report(graphs, path, example_inputs=model.inputs(), flips=flips, bench=timings())
    return path, graphs, flips


def test_flips_and_timings(small, tmp_path):
    path, graphs, flips = small
    data = Page(path).contents()
    rows = {row["name"]: row for row in data["layers"]}
    last = flips.records[-1].layers["block.conv2"]
    assert (rows["block.conv2"]["since_start"], rows["block.conv2"]["step"]) == (last.since_start, last.step)
    assert last.since_start > 0 and rows["fc"]["step"] is None
    assert data["flips"]["layers"]["block.conv2"]["step"] == [r.layers["block.conv2"].step for r in flips.records]
    assert {name: row["milliseconds"] for name, row in rows.items() if row["milliseconds"]} == {"block.conv2": 0.25}
    (tmp_path / "bench.json").write_text(json.dumps(timings()))
    flips.save(tmp_path / "flips.json")
    options = {"flips": tmp_path / "flips.json", "bench": str(tmp_path / "bench.json")}
    again = page(tmp_path / "r.html", graphs, example_inputs=graphs[0].inputs(), **options)
    assert again.contents() == data


def test_nothing_is_loaded(small):
    found = Page(small[0])
    loads = [(name, value) for name, value in found.attributes if name in ("src", "href", "srcset", "xlink:href")]
    assert loads == [("href", "data:,")]


def test_only_its_own_script_and_style_may_run(small):
    """The policy has the hash of each, as a browser computes it from the text between the tags."""
    text = small[0].read_text(encoding="utf-8")
    (policy,) = re.findall('<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    (style,), (script,) = (re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("style", "script"))
    hashes = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script))
    expected = "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'"
    assert policy == expected.format(*hashes)


def test_packed_graph_lends_its_shapes(small, tmp_path):
    """So that a page of graphs alone has costs."""
    data = page(tmp_path / "r.html", small[1][1:]).contents()
    assert data["totals"]["macs"] > 0 and data["pictures"][0]["edges"][0]["label"] == "N×3×8×8 float"


def test_what_is_not_known_is_left_out(tmp_path):
    model = models.Chain()
    data = page(tmp_path / "float.html", [model]).contents()
    assert not data["layers"] and not data["weights"] and not data["passes"] and data["bench"] is data["flips"] is None
    data = page(tmp_path / "bnn.html", [bnnfx.convert(model, "xnor")]).contents()
    assert len(data["layers"]) == 5 and {row["macs"] for row in data["layers"]} == {None}
    assert list(data["weights"][0]["layers"][0]["histograms"]) == ["weight"]
    data = page(tmp_path / "costs.html", [model], example_inputs=model.inputs()).contents()
    assert [row["name"] for row in data["layers"]] == ["stem", "conv1", "conv2", "fc1", "fc2"]


def test_two_schemes_have_a_log_each(tmp_path):
    model = models.Chain()
    found = page(tmp_path / "r.html", [bnnfx.convert(model, scheme) for scheme in ("xnor", "bireal")]).contents()
    assert [log["title"] for log in found["passes"]] == ["Chain, trainable, xnor", "Chain, trainable, bireal"]
    assert len(found["weights"]) == 2


def test_binaryduo_has_four_graphs(tmp_path):
    model = models.Residual().eval()
    ternary = bnnfx.convert(model, "binaryduo")
    split = bnnfx.split(ternary)
    graphs = [model, ternary, split, bnnfx.lower(split, model.inputs())]
    found = page(tmp_path / "r.html", graphs, example_inputs=model.inputs())
    assert [found.count("node", f"graph{index}-") for index in range(4)] == [len(view(g).nodes) for g in graphs]
    data = found.contents()
    assert len(data["passes"]) == 1 and len(data["weights"]) == 2
    assert "ternary" in {edge["label"].split(" ")[-1] for edge in data["pictures"][1]["edges"]}


@pytest.mark.parametrize("name", models.HAZARDS)
def test_any_model(name, tmp_path):
    model = models.HAZARDS[name]().eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # what stays a leaf
        bnn = bnnfx.convert(model, "bireal")
    graphs = [model, bnn, bnnfx.lower(bnn, model.inputs())]
    found = page(tmp_path / "r.html", graphs, example_inputs=model.inputs())
    data = found.contents()
    assert [row["name"] for row in data["layers"]] == [layer.name for layer in bnnfx.explain(bnn).layers]
    assert found.count("node", "graph2-") == len(view(graphs[2]).nodes)


def test_report_changes_nothing(tmp_path):
    model = models.Chain().train()
    bnn = bnnfx.convert(model, "rbnn")
    before = {name: tensor.clone() for name, tensor in bnn.state_dict().items()}
    random = torch.random.get_rng_state()
    bnnfx.report([model, bnn], tmp_path / "r.html", example_inputs=model.inputs())
    assert model.training and bnn.training and torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(bnn.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("given", "options", "error", "says"),
    [
        (models.Chain, {}, TypeError, "list of modules"),
        (lambda: "model.onnx", {}, TypeError, "list of modules"),
        (lambda: [3], {}, TypeError, "list of modules"),
        (lambda: [], {}, ValueError, "at least one"),
        (lambda: [models.Chain()], {"bench": {"tables": []}}, ValueError, "bnnfx bench MODEL --json"),
        (lambda: [models.Chain()], {"flips": __file__}, ValueError, "no history of flips"),
        (lambda: [models.Chain()], {"bench": __file__}, ValueError, "bnnfx bench MODEL --json"),
        (
            lambda: [models.Chain()],
            {"example_inputs": (torch.zeros(1, 5, 8, 8),)},
            bnnfx.ExampleInputError,
            "do not fit",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, given, options, error, says):
    with pytest.raises(error, match=says):
        bnnfx.report(given(), tmp_path / "r.html", **options)
    assert not list(tmp_path.iterdir())


def test_missing_folder(tmp_path):
    with pytest.raises(bnnfx.ExportError, match="does not exist"):
        bnnfx.report([models.Chain()], tmp_path / "missing" / "r.html")


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, which keeps its console."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("Debian's packages chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1500,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


def opened(browser, path, scheme="light"):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    return browser


def all_of(browser, selector):
    return browser.find_elements("css selector", selector)


def one(browser, selector):
    (found,) = all_of(browser, selector)
    return found


def hover(browser, element):
    from selenium.webdriver import ActionChains

    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(browser).move_to_element(element).perform()


def click(browser, element):
    hover(browser, element)
    element.click()


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def details(browser):
    return one(browser, "#details").text


def test_the_console_is_heard(browser, tmp_path):
    """Otherwise an empty log would say nothing."""
    path = tmp_path / "bad.html"
    path.write_text("<script>console.error('oh'); missing()</script>")
    browser.get(path.as_uri())
    assert len(browser.get_log("browser")) == 2


def test_resnet_in_the_browser(browser, resnet_page):
    graphs, path, _ = resnet_page
    opened(browser, path)
    for index, gm in enumerate(graphs):
        seen = view(gm, IMAGE)
        assert len(all_of(browser, f"figure:nth-of-type({index + 1}) .node[id]")) == len(seen.nodes)
        assert len(all_of(browser, f"figure:nth-of-type({index + 1}) .edge[id]")) == len(seen.edges)
    assert len(all_of(browser, "#layers tbody tr")) == 21
    assert len(all_of(browser, "#weights .card")) == 16
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_hovering_shows_details_and_marks_the_other_graphs(browser, small):
    opened(browser, small[0])
    hover(browser, one(browser, "#graph1-node-block_bn2"))
    shown = details(browser)
    assert "BatchNorm2d" in shown and "packed, rbnn" in shown and "BinaryConv2d" in shown
    assert "N×16×4×4 float" in shown
    linked = {group.get_attribute("id") for group in all_of(browser, ".node.linked")}
    assert linked == {"graph0-node-block_bn2", "graph2-node-block_conv2"}
    assert one(browser, ".node.hot").get_attribute("id") == "graph1-node-block_bn2"
    hover(browser, one(browser, "h1"))
    assert not all_of(browser, ".hot, .linked") and "Point at a node" in details(browser)


def test_a_node_without_a_counterpart_marks_its_block(browser, small):
    opened(browser, small[0])
    hover(browser, one(browser, "#graph0-node-block_relu"))
    assert {group.get_attribute("data-path") for group in all_of(browser, ".block.linked")} == {"block"}


def test_click_pins_and_escape_lets_go(browser, small):
    from selenium.webdriver.common.keys import Keys

    opened(browser, small[0])
    click(browser, one(browser, "#graph0-node-block_conv1"))
    hover(browser, one(browser, "#graph0-node-fc"))
    assert "block_conv1" in details(browser) and all_of(browser, "#details.pinned")
    press(browser, Keys.ESCAPE)
    assert not all_of(browser, ".pinned")


def test_keyboard_reaches_nodes(browser, small):
    from selenium.webdriver.common.keys import Keys

    opened(browser, small[0])
    for _ in range(20):
        press(browser, Keys.TAB)
        focused = browser.switch_to.active_element.get_attribute("id") or ""
        if focused.startswith("graph0-node-"):
            break
    assert focused == "graph0-node-x" and "input" in details(browser)
    for key, name in (
        (Keys.ARROW_DOWN, "stem_0"),
        (Keys.ARROW_RIGHT, "stem_1"),
        (Keys.ARROW_LEFT, "stem_0"),
        (Keys.END, "output"),
        (Keys.ARROW_UP, "fc"),
        (Keys.HOME, "x"),
    ):
        press(browser, key)
        assert browser.switch_to.active_element.get_attribute("id") == f"graph0-node-{name}"
        assert name in details(browser)
    press(browser, Keys.ENTER)
    assert all_of(browser, "#details.pinned")
    press(browser, Keys.ESCAPE, Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id").startswith("graph1-node-")


def boxes(browser):
    return [
        tuple(map(float, svg.get_dom_attribute("viewBox").split()))
        for svg in all_of(browser, "#pictures figure > svg.bnnfx-graph")
    ]


def test_zoom_is_linked(browser, small):
    opened(browser, small[0])
    before = boxes(browser)
    click(browser, one(browser, "#graph0-node-block_conv2"))
    one(browser, "button[aria-label='Zoom in']").click()
    zoomed = boxes(browser)
    assert before[0][2] / zoomed[0][2] == pytest.approx(1.5)
    assert all(b[2] < a[2] for a, b in zip(before[:2], zoomed[:2], strict=True))
    click(browser, one(browser, "#graph0-node-block_conv2"))
    one(browser, "button[aria-label='Show all']").click()
    assert boxes(browser) == before
    all_of(browser, "#toolbar label")[0].click()  # not linked any more
    one(browser, "button[aria-label='Zoom in']").click()
    assert sum(a != b for a, b in zip(before, boxes(browser), strict=True)) == 1


def test_columns_sort(browser, small):
    opened(browser, small[0])
    rows = {row["name"]: row for row in Page(small[0]).contents()["layers"]}
    names = lambda: [row.get_attribute("data-layer") for row in all_of(browser, "#layers tbody tr")]  # noqa: E731
    order = names()
    assert order == list(rows) and len(order) == 5
    titles = [button.text.split(" ")[0] for button in all_of(browser, "#layers thead button")]
    for title, key in (("Parameters", "parameters"), ("Cosine", "cosine")):
        button = all_of(browser, "#layers thead button")[titles.index(title)]
        button.click()
        known = [rows[name][key] for name in names() if rows[name][key] is not None]
        assert known == sorted(known) and len(set(known)) > 1
        button.click()
        assert [rows[name][key] for name in names()][: len(known)] == sorted(known, reverse=True)
        sorts = [head.get_attribute("aria-sort") for head in all_of(browser, "#layers thead th")]
        assert sorts.count("descending") == 1 and sorts.count("none") == len(sorts) - 1
        assert sorts[titles.index(title)] == "descending"
    all_of(browser, "#layers thead button")[0].click()
    assert names() == order


def test_a_row_shows_its_layer_in_the_graphs(browser, small):
    opened(browser, small[0])
    button = next(b for b in all_of(browser, "#layers tbody button") if b.text == "block.conv2")
    button.click()
    pinned = {group.get_attribute("id") for group in all_of(browser, ".node.pinned")}
    assert pinned == {f"graph{index}-node-block_conv2" for index in range(3)}


def colours(browser):
    """How many pixels of the window have each colour, most frequent first."""
    image = pytest.importorskip("PIL.Image", reason="torchvision is an extra")
    shot = image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    counts = shot.getcolors(shot.width * shot.height)
    return sorted(counts, reverse=True), shot.width * shot.height


def test_screenshots_are_not_blank_and_follow_the_preference(browser, small):
    brightest = {}
    for scheme in ("light", "dark"):
        found, pixels = colours(opened(browser, small[0], scheme))
        paper = found[0][1]
        text = sum(count for count, colour in found if abs(sum(colour) - sum(paper)) > 380)
        assert len(found) > 100 and 0.002 < text / pixels < 0.5
        brightest[scheme] = sum(paper)
    assert brightest["light"] > 700 and brightest["dark"] < 150
    one(browser, "#theme").click()
    assert sum(colours(browser)[0][0][1]) > 700


def test_names_are_escaped(browser, tmp_path):
    """torch.fx itself takes no quotation marks in the names of modules; those of classes may have anything."""
    hostile = "</script><img src=x onerror=alert(1)>"
    model = nn.Sequential()
    model.add_module("a<b>&c", nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)))
    model.__class__ = type(hostile, (nn.Sequential,), {})
    bnn = bnnfx.convert(model, "xnor")
    found = page(tmp_path / "r.html", [model, bnn], example_inputs=(torch.zeros(1, 3, 9, 9),))
    assert "img" not in found.tags and found.tags.count("script") == 2
    assert [row["name"] for row in found.contents()["layers"]] == [f"a<b>&c.{index}" for index in range(3)]
    assert found.contents()["pictures"][0]["title"] == f"{hostile}, float"
    opened(browser, tmp_path / "r.html")
    assert browser.title.startswith(hostile) and not all_of(browser, "img, main > b")
    hover(browser, all_of(browser, "#graphs .node[id]")[1])
    assert "a<b>&c.0" in details(browser)
    assert browser.get_log("browser") == []


def test_nothing_was_reported_in_the_console(browser):
    assert not [entry for entry in browser.get_log("browser") if not re.search("oh|missing", entry["message"])]
