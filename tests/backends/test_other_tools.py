"""Exported files behind other people's tools: they load, give the same bits, and keep packed weights where they can."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn

import bnnfx
from bnnfx.ops.packed_op import ONNX_DOMAIN

DIALECTS = ("bnnfx", "standard")
Tool = Callable[[onnx.ModelProto, Path], onnx.ModelProto]


class Network(nn.Module):
    """Weights of some size, both kinds of convolution, a pool, and steps that hold numbers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 70, 3), nn.BatchNorm2d(70)
        self.a, self.pool, self.bn1 = nn.Conv2d(70, 192, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(192)
        self.b, self.relu6, self.bn2 = nn.Conv2d(192, 192, 3, padding=1), nn.ReLU6(), nn.BatchNorm2d(192)
        self.c, self.hardswish = nn.Conv2d(192, 16, 1), nn.Hardswish()
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.pool(self.a(self.bn0(self.stem(x)))))
        x = self.hardswish(self.c(self.bn2(self.relu6(self.b(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 10, 13, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def packed(x: Tensor) -> fx.GraphModule:
    torch.manual_seed(0)
    return bnnfx.lower(bnnfx.convert(Network().eval(), "bireal"), (x,))


@pytest.fixture(scope="module")
def files(packed: fx.GraphModule, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {d: bnnfx.export_onnx(packed, folder / f"{d}.onnx", dialect=d) for d in DIALECTS}


def onnxsim(**options: Any) -> Tool:
    def run(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
        simplified, agrees = pytest.importorskip("onnxsim").simplify(model, **options)
        assert agrees
        return simplified  # type: ignore[no-any-return]

    return run


def onnxslim(**options: Any) -> Tool:
    return lambda model, folder: pytest.importorskip("onnxslim").slim(model, **options)


def onnxscript(**options: Any) -> Tool:
    def run(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
        from onnxscript import optimizer

        optimized = optimizer.optimize(model, **options)
        assert isinstance(optimized, onnx.ModelProto)
        return optimized

    return run


def runtime(level: str, kernels: bool) -> Tool:
    """What ONNX Runtime saves of the graph that it runs."""

    def run(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        if kernels:
            options.register_custom_ops_library(str(bnnfx.library_path()))
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(folder / "optimized.onnx")

    return run


TOOLS: dict[str, Tool] = {
    "onnxsim": onnxsim(),
    "onnxsim without folding": onnxsim(skip_constant_folding=True),
    "onnxslim": onnxslim(),
    "onnxslim of small tensors": onnxslim(size_threshold=10_000),
    "onnxscript": onnxscript(),
    "onnxscript without inlining": onnxscript(inline=False),
    "onnx inliner": lambda model, folder: onnx.inliner.inline_local_functions(model),
    **{
        f"onnxruntime {level}{' with kernels' if kernels else ''}": runtime(f"ORT_ENABLE_{level}", kernels)
        for level in ("BASIC", "EXTENDED", "ALL")
        for kernels in (False, True)
    },
}

KEEPS_OUR_NODES = {"onnxsim", "onnxsim without folding", "onnxslim", "onnxslim of small tensors"}
KEEPS_OUR_NODES |= {"onnxscript without inlining"}
KEEPS_PACKED_WEIGHTS = {
    "bnnfx": KEEPS_OUR_NODES | {name for name in TOOLS if name.endswith("kernels")} | {"onnxscript", "onnx inliner"},
    "standard": {"onnxsim without folding", "onnxslim of small tensors", "onnxscript", "onnx inliner"}
    | {"onnxscript without inlining"},
}
"""Of the others each folds the unpacking of weights, which makes a float of every bit; the runtime does so to run."""


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", TOOLS)
def test_behind_a_tool(
    packed: fx.GraphModule, files: dict[str, Path], x: Tensor, name: str, dialect: str, tmp_path: Path
) -> None:
    model = TOOLS[name](onnx.load(files[dialect]), tmp_path)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    ours = [node for node in model.graph.node if node.domain == ONNX_DOMAIN]
    if dialect == "bnnfx" and name in KEEPS_OUR_NODES:
        assert len(ours) == sum(node.domain == ONNX_DOMAIN for node in onnx.load(files[dialect]).graph.node)
        assert {node.op_type for node in ours} == {function.name for function in model.functions}
    for kernels in (True, False):
        if ours and not model.functions and not kernels:  # the runtime saves no functions
            continue
        result = bnnfx.verify(packed, path, (x,), kernels=kernels)
        assert result and len(result.nodes) == 4 and result.samples == 3
    grown = path.stat().st_size / files[dialect].stat().st_size
    assert (grown < 1.5) == (name in KEEPS_PACKED_WEIGHTS[dialect]), grown
