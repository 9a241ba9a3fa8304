"""A made-up operator and a made-up step, each from its row: without a kernel, a node runs as its body.

What a row makes is in every place that asks for operators: graphs, files, sessions with and without the kernel library.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from helpers import cases
from helpers.cases import Case, assert_same, window
from onnxscript import UINT8, script
from onnxscript import opset18 as op
from onnxscript.values import Opset
from torch import Tensor, nn

import bnnfx
from bnnfx.backends.onnx import functions
from bnnfx.graph.dataflow import packed_op
from bnnfx.ops import BY_ONNX_NAME, BY_TARGET
from bnnfx.ops.epilogue import Epilogue, epilogues
from bnnfx.ops.fused_conv2d import FUSED_CONV2D, define_fused_conv2d
from bnnfx.ops.packed_op import ONNX_DOMAIN, OPSET_VERSION, define
from bnnfx.ops.signatures import Input, Signature
from bnnfx.ops.steps import STEPS, Step

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # infinities are among the cases


@script(Opset(ONNX_DOMAIN, OPSET_VERSION), default_opset=op)
def Invert(x: UINT8, mask: UINT8) -> UINT8:
    y: UINT8 = op.BitwiseXor(x, mask)
    return y


INVERT = Signature("invert", (Input("x", "uint8", constant=False), Input("mask", "uint8")), ("bits",))

# as F.softsign computes it; `* -1.0` because steps have no absolute value
SOFTSIGN = Step(
    "softsign",
    (),
    lambda xp, x: x / (xp.where(x > 0.0, x, x * -1.0) + 1.0),
    made_from={"Softsign": lambda module: ()},
)


@pytest.fixture(scope="module", autouse=True)
def made_up() -> Iterator[None]:
    """Both are there for the tests of this file only."""
    tables = (BY_ONNX_NAME, BY_TARGET, FUSED_CONV2D, STEPS, functions.BODIES)
    before = [dict(table) for table in tables]
    define(INVERT, lambda x, mask: x ^ mask, lambda x, mask: torch.empty_like(x))
    functions.BODIES["Invert"] = Invert.to_function_proto
    STEPS["softsign"] = SOFTSIGN
    for epilogue in epilogues():
        if "softsign" in (epilogue.before, epilogue.after):
            define_fused_conv2d(epilogue)
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)  # type: ignore[arg-type]


def run(case: Case, *, library: bool) -> list[np.ndarray]:
    options = ort.SessionOptions()
    if library:
        options.register_custom_ops_library(str(bnnfx.library_path()))
    session = ort.InferenceSession(case.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, case.inputs)]


def small_model(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), activation, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


def lowered(activation: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    gm = bnnfx.convert(small_model(activation), "bireal").eval()
    packed = bnnfx.lower(gm, (x,))
    assert bnnfx.verify(gm, packed, (x,))
    return packed


def assert_file_equals(packed: torch.fx.GraphModule, path: Path, x: Tensor, node: str) -> None:
    bnnfx.export_onnx(packed, path)
    assert node in {n.op_type for n in onnx.load(path).graph.node}
    for kernels in (True, False):
        result = bnnfx.verify(packed, path, (x,), kernels=kernels)
        assert result, str(result)


# --- the operator ---


@pytest.mark.parametrize("library", [True, False])
def test_operator_without_a_kernel_runs_as_its_body(library: bool) -> None:
    rng = np.random.default_rng(0)
    x, mask = cases.random_bits(rng, 2, 3, 4, 70), cases.random_bits(rng, 70)
    case = Case("Invert", {"x": x}, {"mask": mask})
    assert_same(case.expected(), [x ^ mask])
    assert_same(run(case, library=library), [x ^ mask])


def test_operator_in_a_graph_and_its_file(tmp_path: Path) -> None:
    """Behind the first comparison; and every other bit is inverted, so that the result changes."""
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    packed = lowered(nn.ReLU(), x)
    before = packed(x)
    bits = next(node for node in packed.graph.nodes if packed_op(node) is not None)
    packed.register_buffer("mask", torch.tensor([0b01010101, *[0] * 7], dtype=torch.uint8))
    with packed.graph.inserting_after(bits):
        mask = packed.graph.get_attr("mask")
    with packed.graph.inserting_after(mask):
        inverted = packed.graph.call_function(torch.ops.bnnfx.invert.default, (bits, mask))
    bits.replace_all_uses_with(inverted, delete_user_cb=lambda user: user is not inverted)
    packed.recompile()
    assert packed_op(inverted) is BY_ONNX_NAME["Invert"]
    assert not torch.equal(packed(x), before)
    assert_file_equals(packed, tmp_path / "inverted.onnx", x, "Invert")


def test_name_that_is_taken_is_refused() -> None:
    for signature in (INVERT, BY_ONNX_NAME["Pack"].signature):
        with pytest.raises(ValueError, match=f"There is a packed operator {signature.name} already"):
            define(signature, lambda x: x, lambda x: x)


# --- the step ---


def test_step_is_in_as_many_operators_as_any_other() -> None:
    def having(step: str) -> int:
        return sum(step in (epilogue.before, epilogue.after) for epilogue in FUSED_CONV2D)

    assert having("softsign") == having("clamp") > 0


@pytest.mark.parametrize("library", [True, False])
def test_step_without_a_kernel_runs_as_its_body(library: bool) -> None:
    epilogue = Epilogue("softsign", True, "clamp", ("float", "bits"))
    name = BY_ONNX_NAME["BinaryConv2dSoftsignAddClampFloatBits"].onnx_name
    assert name == FUSED_CONV2D[epilogue].onnx_name
    cases.FUSED[name] = epilogue
    geometry = window((1, 1))
    case = cases.made_convolution(np.random.default_rng(0), name, 9, 70, 1, (3, 3), (5, 6), geometry, low=-1)
    del cases.FUSED[name]
    assert_same(run(case, library=library), case.expected())


def test_step_in_a_network(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Softsign())
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    gm = bnnfx.convert(model, "bireal").eval()
    packed = bnnfx.lower(gm, (x,))
    assert bnnfx.verify(gm, packed, (x,))
    assert not [module for module in packed.modules() if isinstance(module, nn.Softsign)]
    assert_file_equals(packed, tmp_path / "softsign.onnx", x, "BinaryConv2dSoftsignFloat")
