"""`export_onnx`: what is in the file, where it runs, and that it appears whole or not at all."""

import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnnfx
from bnnfx import Config, ExportError, ModelFileError, StageError
from bnnfx.ops import BY_TARGET
from bnnfx.ops.packed_op import ONNX_DOMAIN, OPSET_VERSION
from bnnfx.runtime.session import newest_opset
from bnnfx.verification.bit_trace import trace_bits

DIALECTS = ("bnnfx", "standard")
FLOAT32_STEP = 2.0**-23


class Network(nn.Module):
    """Packing, both kinds of convolution, pooling, and a map that is not square."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10)
        self.a, self.pool, self.bn1 = nn.Conv2d(10, 70, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(70)
        self.b, self.bn2 = nn.Conv2d(70, 10, 1), nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x))
        x = self.bn2(self.b(self.bn1(self.pool(self.a(x)))))
        return self.head(x.mean((2, 3)))


class TwoByTwo(nn.Module):
    """Two inputs, two named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        z = self.a(left) + self.b(right)
        return {"logits": self.head(z).flatten(1), "sum": z}


def trainable(model: nn.Module, scheme: str = "rbnn", config: Config | None = None) -> fx.GraphModule:
    gm = bnnfx.convert(model, scheme, config=config).eval()
    generator = torch.Generator().manual_seed(0)
    for module in gm.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.data.copy_(torch.randn(module.num_features, generator=generator))
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator))
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
    return gm


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 3, 10, 13, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def packed(x: Tensor) -> fx.GraphModule:
    torch.manual_seed(0)
    return bnnfx.lower(trainable(Network()), (x,))


@pytest.fixture(scope="module")
def files(packed: fx.GraphModule, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {d: bnnfx.export_onnx(packed, folder / f"{d}.onnx", dialect=d) for d in DIALECTS}


def tolerance(packed: fx.GraphModule, x: Tensor) -> float:
    """Rounding of the longest float sum (the stem's 27 taps, then the mean over 20 positions) in the last layer."""
    return 64 * FLOAT32_STEP * float(packed(x).abs().max())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_checker_accepts_it(files: dict[str, Path], dialect: str) -> None:
    onnx.checker.check_model(str(files[dialect]), full_check=True)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_stock_runtime_with_any_batch(
    files: dict[str, Path], packed: fx.GraphModule, x: Tensor, dialect: str, batch: int
) -> None:
    y = torch.randn(batch, *x.shape[1:], generator=torch.Generator().manual_seed(batch))
    session = onnxruntime.InferenceSession(str(files[dialect]), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
    assert given.shape == (batch, 4)
    assert np.abs(given - packed(y).numpy()).max() <= tolerance(packed, y)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_reference_evaluator(files: dict[str, Path], packed: fx.GraphModule, x: Tensor, dialect: str) -> None:
    evaluator = onnx.reference.ReferenceEvaluator(str(files[dialect]))
    (given,) = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    assert np.abs(given - packed(x).numpy()).max() <= tolerance(packed, x)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_kernels_or_not_it_is_the_same_result(
    files: dict[str, Path], packed: fx.GraphModule, x: Tensor, dialect: str
) -> None:
    """The bits are equal; the mean and the head behind them add up as the runtime likes."""
    with_kernels, without = (trace_bits(files[dialect], (x,), kernels=k) for k in (True, False))
    assert len(with_kernels.bits) == 3 and with_kernels.bits.keys() == without.bits.keys()
    for name, given in with_kernels.bits.items():
        assert np.array_equal(given.bits, without.bits[name].bits), name
    (a,), (b,) = with_kernels.outputs, without.outputs
    assert np.abs(a - b).max() <= tolerance(packed, x)


@pytest.mark.parametrize("opset", range(18, newest_opset() + 1))
def test_opsets(
    packed: fx.GraphModule, x: Tensor, tmp_path: Path, opset: int, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        path = bnnfx.export_onnx(packed, tmp_path / "m.onnx", opset=opset)
    except ExportError as refused:  # the newest are beyond the converter that keeps names
        assert opset > 23 and "loses the names" in str(refused) and not list(tmp_path.iterdir())
        return
    assert capfd.readouterr() == ("", "")
    imports = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
    assert imports == {"": opset, ONNX_DOMAIN: OPSET_VERSION}
    assert bnnfx.verify(packed, path, (x,))


def test_newest_opset_is_what_the_runtime_says(files: dict[str, Path]) -> None:
    assert 22 <= newest_opset() <= onnx.defs.onnx_opset_version()
    model = onnx.load(files["standard"])
    model.opset_import[0].version = newest_opset() + 1
    with pytest.raises(Exception, match=r"opset|support"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("opset", [17, 0, -1, newest_opset() + 1, 99, 2**70, "20", 20.0, True])
def test_opsets_that_there_are_not(packed: fx.GraphModule, tmp_path: Path, opset: int) -> None:
    with pytest.raises(
        ValueError, match=rf"opset is (18 or higher .*|{newest_opset()} or lower.*|a whole number); got {opset!r}"
    ):
        bnnfx.export_onnx(packed, tmp_path / "m.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_opset_that_the_exporter_does_not_reach(
    packed: fx.GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch says so in a log only, and goes on with the version that it writes itself."""
    monkeypatch.setattr("bnnfx.backends.onnx.onnx_file.newest_opset", lambda: 99)
    with pytest.raises(ExportError, match="cannot be converted to opset 99, only to 18; give that, or none"):
        bnnfx.export_onnx(packed, tmp_path / "m.onnx", opset=99)
    assert list(tmp_path.iterdir()) == []


def test_what_the_file_says_about_itself(files: dict[str, Path]) -> None:
    for path in files.values():
        model = onnx.load(path)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        maps = {packed["name"]: packed["channels"] for packed in json.loads(metadata.pop("bnnfx.packed_maps"))}
        assert maps["a_sign"] == 10
        assert metadata == {
            "bnnfx.version": bnnfx.__version__,
            "bnnfx.opset_version": str(OPSET_VERSION),
            "bnnfx.scheme": "rbnn",
        }
        assert (model.producer_name, model.producer_version) == ("bnnfx", bnnfx.__version__)
        assert model.ir_version <= 9  # what ONNX Runtime 1.17 opens
        (value,) = model.graph.input
        batch, *rest = value.type.tensor_type.shape.dim
        assert batch.dim_param and [d.dim_value for d in rest] == [3, 10, 13]


def test_no_trace_of_the_exporting_machine(files: dict[str, Path]) -> None:
    for path in files.values():
        content = path.read_bytes()
        for word in (b"/site-packages/", os.fsencode(Path.cwd()), b"stack_trace"):
            assert word not in content


def test_functions_are_those_that_are_used(files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(files["bnnfx"])
    used = {node.op_type for node in model.graph.node if node.domain == ONNX_DOMAIN}
    assert used == {"Pack", "BinaryConv2dFloat", "BinaryConv2dThreshold", "MaxPool2d"}
    assert {f.name for f in model.functions if f.domain == ONNX_DOMAIN} == used
    small = bnnfx.lower(
        trainable(nn.Sequential(nn.Conv2d(3, 4, 3)), config=Config(keep_float=())), (torch.zeros(1, 3, 5, 5),)
    )
    model = onnx.load(bnnfx.export_onnx(small, tmp_path / "small.onnx"))
    assert {f.name for f in model.functions} == {"Pack", "BinaryConv2dFloat"}


def test_standard_holds_nothing_of_ours(files: dict[str, Path]) -> None:
    model = onnx.load(files["standard"])
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert ONNX_DOMAIN not in {entry.domain for entry in model.opset_import}


def test_nodes_have_the_names_of_the_packed_graph(files: dict[str, Path], packed: fx.GraphModule, x: Tensor) -> None:
    bits = trace_bits(packed, (x,)).bits
    nodes = {node.name: node for node in onnx.load(files["bnnfx"]).graph.node if node.domain == ONNX_DOMAIN}
    assert bits and set(bits) <= set(nodes)
    assert all(list(nodes[name].output) == [name] for name in bits)
    gm_names = {node.name for node in packed.graph.nodes}
    assert set(nodes) <= gm_names


@pytest.mark.parametrize("dialect", DIALECTS)
def test_several_inputs_and_named_outputs(tmp_path: Path, dialect: str) -> None:
    inputs = torch.randn(2, 3, 7, 9), torch.randn(2, 2, 7, 9)
    packed = bnnfx.lower(trainable(TwoByTwo(), config=Config(keep_float=())), inputs)
    session = bnnfx.load(bnnfx.export_onnx(packed, tmp_path / "m.onnx", dialect=dialect))
    assert [value.name for value in session.ort.get_inputs()] == ["left", "right"]
    outputs, expected = session.run(*inputs), packed(*inputs)
    assert isinstance(outputs, tuple)
    for given, wanted in zip(outputs, expected.values(), strict=True):
        assert np.array_equal(given, wanted.numpy())  # binary layers only: the stated order of roundings


def test_trainable_graph_is_lowered_first(tmp_path: Path, x: Tensor) -> None:
    gm = trainable(Network())
    path = bnnfx.export_onnx(gm, tmp_path / "m.onnx", example_inputs=(x,))
    assert bnnfx.verify(bnnfx.lower(gm, (x,)), path, (x,))


def test_shared_weights_are_stored_once(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(64, 64, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(self.conv(x)))

    x = torch.randn(2, 64, 5, 5)
    packed = bnnfx.lower(trainable(Shared(), config=Config(keep_float=())), (x,))
    path = bnnfx.export_onnx(packed, tmp_path / "m.onnx")
    assert len([t for t in onnx.load(path).graph.initializer if t.dims[1:] == [3, 3, 8]]) == 1


def test_exports_in_several_threads(packed: fx.GraphModule, x: Tensor, tmp_path: Path) -> None:
    """Of one graph, and of several, in both dialects; what they change in the process meanwhile is set back."""
    graphs = [packed, packed, *(bnnfx.lower(trainable(Network(), scheme), (x,)) for scheme in ("xnor", "bireal"))]
    level = logging.getLogger("torch.onnx").level
    with ThreadPoolExecutor(len(graphs)) as pool:
        jobs = [
            pool.submit(bnnfx.export_onnx, gm, tmp_path / f"{number}.onnx", dialect=DIALECTS[number % 2])
            for number, gm in enumerate(graphs)
        ]
        paths = [job.result() for job in jobs]
    assert all(bnnfx.verify(gm, path, (x,)) for gm, path in zip(graphs, paths, strict=True))
    assert logging.getLogger("torch.onnx").level == level


# --- refusals: nothing is written ---


def test_clear_errors_and_no_file(packed: fx.GraphModule, x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"folder .*missing does not exist, so m\.onnx cannot be written"):
        bnnfx.export_onnx(packed, tmp_path / "missing" / "m.onnx")
    with pytest.raises(ExportError, match="is a folder; give the name of a file in it"):
        bnnfx.export_onnx(packed, tmp_path)
    with pytest.raises(ValueError, match=r"Unknown dialect 'tflite'; the known ones are: bnnfx, standard"):
        bnnfx.export_onnx(packed, tmp_path / "m.onnx", dialect="tflite")
    with pytest.raises(ExportError, match=r"needs example_inputs=\(x,\)"):
        bnnfx.export_onnx(trainable(Network()), tmp_path / "m.onnx")
    with pytest.raises(StageError, match=r"bnnfx\.lower returns; got a Network"):
        bnnfx.export_onnx(Network(), tmp_path / "m.onnx")  # type: ignore[arg-type]
    with pytest.raises(StageError, match="takes a graph in stage packed"):
        bnnfx.export_onnx(fx.symbolic_trace(Network()), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_batch_size_fixed_by_the_model(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).reshape(2, 4, 25)

    packed = bnnfx.lower(trainable(Fixed(), config=Config(keep_float=())), (torch.zeros(2, 3, 5, 5),))
    with pytest.raises(
        ExportError, match=r"'reshape' \(reshape\) cannot be written as ONNX with a free batch size: It fixes"
    ):
        bnnfx.export_onnx(packed, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("of", [lambda x: 4, lambda x: 2 * x.shape[0], lambda x: x.size(1) + 1, lambda x: x.dim()])
def test_number_among_the_outputs(of: Callable[[Tensor], int], tmp_path: Path) -> None:
    class Counted(Network):
        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, int]]:  # type: ignore[override]
            return super().forward(x), {"classes": of(x)}

    x = torch.zeros(1, 3, 10, 13)
    packed = bnnfx.lower(trainable(Counted()), (x,))
    with pytest.raises(ExportError, match=r"forward returns the int 4 \(in a batch of 2\), and the outputs of ONNX"):
        bnnfx.export_onnx(packed, tmp_path / "m.onnx")


@pytest.mark.parametrize("where", ["onnx.checker.check_model", "onnx.ModelProto.SerializeToString", "os.replace"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_in_the_middle_leaves_things_as_they_were(
    packed: fx.GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, existing: bool
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("disk full")

    path = tmp_path / "m.onnx"
    if existing:
        path.write_bytes(b"before")
    if where == "onnx.ModelProto.SerializeToString":
        monkeypatch.setattr("bnnfx.file_writing.os.fdopen", fail)  # protobuf's own method cannot be patched
    else:
        monkeypatch.setattr(where, fail)
    with pytest.raises(RuntimeError, match="disk full"):
        bnnfx.export_onnx(packed, path)
    assert [p.name for p in tmp_path.iterdir()] == (["m.onnx"] if existing else [])
    assert not existing or path.read_bytes() == b"before"


def test_an_existing_file_is_replaced_and_readable(packed: fx.GraphModule, x: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    mask = os.umask(0o022)
    try:
        bnnfx.export_onnx(packed, str(path))
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644
    assert bnnfx.verify(packed, path, (x,))


# --- reading back ---


def test_file_of_a_newer_version(files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(files["bnnfx"])
    entry = next(e for e in model.metadata_props if e.key == "bnnfx.opset_version")
    entry.value = str(OPSET_VERSION + 1)
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(
        ModelFileError, match=rf"version {OPSET_VERSION + 1} .* knows version {OPSET_VERSION}. Upgrade bnnfx"
    ):
        bnnfx.load(tmp_path / "newer.onnx")


def test_files_that_are_none_of_ours(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no file .*nowhere\.onnx; bnnfx\.export_onnx writes one"):
        bnnfx.load(tmp_path / "nowhere.onnx")
    with pytest.raises(ModelFileError, match="no file"):
        bnnfx.load(tmp_path)
    for name, content in {
        "text": b"This is no model.",
        "empty": b"",
        "truncated": files["bnnfx"].read_bytes()[:-100],
        "half": files["bnnfx"].read_bytes()[: files["bnnfx"].stat().st_size // 2],
    }.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=rf"{name}\.onnx"):
            bnnfx.load(path)


def test_a_foreign_model_still_opens(tmp_path: Path) -> None:
    torch.onnx.export(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),), tmp_path / "m.onnx", dynamo=True, verbose=False)
    assert bnnfx.load(tmp_path / "m.onnx").run(torch.zeros(1, 3)).shape == (1, 2)  # type: ignore[union-attr]


class PooledTwice(nn.Module):
    """Inception's pooling branch: a pooled map goes on as it is, and pooled again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(self.stem(x)), 2)
        return self.last(torch.cat([self.left(x), self.right(F.max_pool2d(x, 3, 1, 1))], 1))


def test_equal_nodes_that_the_exporter_merges(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 10, 12)
    packed = bnnfx.lower(trainable(PooledTwice()), (x,))
    path = bnnfx.export_onnx(packed, tmp_path / "m.onnx")
    ours = sum(node.target in BY_TARGET for node in packed.graph.nodes)
    assert sum(node.domain == ONNX_DOMAIN for node in onnx.load(path).graph.node) < ours
    result = bnnfx.verify(packed, path, (x,))
    assert result and {"left_sign", "right_sign"} <= {node.name for node in result.nodes}
