"""Pictures and pages of ONNX files: what the file holds, neither more nor less, whoever wrote it."""

import onnx
import pytest
import torch
from helpers import models
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import bnnfx
from bnnfx.backends.onnx.packed_maps import packed_maps
from bnnfx.inspect.drawing import file_view
from bnnfx.inspect.drawing.layout import layout
from bnnfx.inspect.drawing.svg import to_svg
from bnnfx.ops.packed_op import ONNX_DOMAIN


@pytest.fixture(scope="module", params=["Residual", "Chain", "ManyInputsOutputs"])
def file(request, tmp_path_factory):
    """A network of ours, its packed graph, and its file."""
    torch.manual_seed(0)
    model = getattr(models, request.param)()
    packed = bnnfx.lower(bnnfx.convert(model, "bireal"), model.inputs())
    return packed, bnnfx.export_onnx(packed, tmp_path_factory.mktemp("file") / "net.onnx")


def edges_of(model: onnx.ModelProto) -> list[tuple[str, int]]:
    """Every value that is no constant, and the node that reads it, by number; -1 is the output."""
    constants = {tensor.name for tensor in model.graph.initializer}
    made = {v.name for v in model.graph.input} | {name for node in model.graph.node for name in node.output}
    readers = [(name, i) for i, node in enumerate(model.graph.node) for name in dict.fromkeys(node.input)]
    readers += [(value.name, -1) for value in model.graph.output]
    return [(name, i) for name, i in readers if name in made - constants - {""}]


def test_nodes_and_edges_are_those_of_the_file(file):
    _, path = file
    model = onnx.load(path)
    assert not any(node.op_type == "Constant" for node in model.graph.node)
    seen = file_view(path)
    inputs = [node for node in seen.nodes if node.kind == "input"]
    inner = [node for node in seen.nodes if node.kind in ("float", "packed")]
    assert [node.title for node in inputs] == [value.name for value in model.graph.input]
    assert [node.kind == "packed" for node in inner] == [node.domain == ONNX_DOMAIN for node in model.graph.node]
    assert sum(node.kind == "packed" for node in inner) > 1
    names = [node.name for node in inner]
    found = [(edge.value, names.index(edge.target) if edge.target in names else -1) for edge in seen.edges]
    assert found == edges_of(model)
    assert len({node.name for node in seen.nodes}) == len(seen.nodes)
    assert {edge.source for edge in seen.edges} <= {node.name for node in seen.nodes}


def test_values_that_hold_bits(file):
    packed, path = file
    channels = {found.name: found.channels for found in packed_maps(onnx.load(path))}
    assert channels
    edges = {edge.value: edge for edge in file_view(path).edges}
    assert {value for value, edge in edges.items() if edge.holds == "bits"} == set(channels)
    for value, count in channels.items():
        assert edges[value].shape[0] == "N" and edges[value].shape[-1] == str(count)
    # the picture of the graph that the file was made from says the same of these values
    graph = bnnfx.inspect.drawing.view(packed)
    same = {edge.value: edge.label for edge in graph.edges if edge.value in channels}
    assert same == {value: edges[value].label for value in same} and same


def test_picture_and_page(file, tmp_path):
    packed, path = file
    for name in ("net.svg", "net.png"):
        assert bnnfx.draw(path, tmp_path / name).stat().st_size > 1000
    text = bnnfx.report([packed, path], tmp_path / "page.html").read_text()
    alone = bnnfx.report([str(path)], tmp_path / "alone.html").read_text()
    assert f"{path.name}, ONNX, bireal" in text and f"{path.name}, ONNX, bireal" in alone
    assert len(layout(file_view(path)).boxes) == len(file_view(path).nodes)


def foreign(tmp_path):
    """A file of others: without names, with a Constant, a name twice, open sizes, an optional input left out."""
    weight = numpy_helper.from_array(torch.zeros(4, 2, 3, 3).numpy(), "w")
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(torch.zeros(1).numpy())),
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 1], group=2),
        helper.make_node("Clip", ["a", "", "c"], ["b"], name="twice"),
        helper.make_node("Relu", ["b"], ["d"], name="twice"),
        helper.make_node("Shape", ["d"], ["s"], name="output"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 4, None, "w"])],
        [value("d", TensorProto.FLOAT, [None, 4, None, None]), value("s", TensorProto.INT64, [4])],
        [weight],
    )
    path = tmp_path / "foreign.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_foreign_file(tmp_path):
    seen = file_view(foreign(tmp_path))
    assert [node.lines[0] for node in seen.nodes] == [
        "x input",
        "a Conv 3×3 4→4 /2×1 g2",
        "twice Clip",
        "twice_1 Relu",
        "output_1 Shape",
        "output",
    ]
    labels = [edge.label for edge in seen.edges]
    assert labels == ["N×4×?×w float", "float", "float", "?×4×?×? float", "?×4×?×? float", "4"]
    assert [edge.bytes for edge in seen.edges] == [None] * 5 + [32]
    assert seen.nodes[2].constants == ("c",) and seen.nodes[1].constants == ("w",)
    assert "twice_1" in to_svg(seen)
    assert bnnfx.report([foreign(tmp_path)], tmp_path / "page.html").is_file()


@pytest.mark.parametrize("write", [bnnfx.draw, lambda path, to: bnnfx.report([path], to)])
def test_no_file_and_no_onnx_file(write, tmp_path):
    (tmp_path / "text.onnx").write_text("text")
    for name in ("none.onnx", "text.onnx"):
        with pytest.raises(bnnfx.ModelFileError, match=name):
            write(tmp_path / name, tmp_path / "x.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["text.onnx"]


def test_gemm_says_its_channels(tmp_path):
    path = tmp_path / "linear.onnx"
    model = nn.Sequential(nn.Linear(7, 5))
    torch.onnx.export(model, (torch.zeros(2, 7),), path, dynamo=True, verbose=False)
    assert any("Gemm 7→5" in node.lines[0] for node in file_view(path).nodes)
