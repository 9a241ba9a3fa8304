"""The kernel library: where it is, what it exports, and how RegisterCustomOps behaves towards ONNX Runtime."""

import _ctypes
import ctypes
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import bnnfx
from bnnfx.ops import BY_ONNX_NAME
from bnnfx.runtime import library_path
from bnnfx.runtime.library import ceiling, isa_in_use, isas

NO_KERNEL = "OpWithoutKernel"  # a name that will never have a kernel


def twice_model(*, with_function: bool) -> bytes:
    """`y = ai.bnnfx::OpWithoutKernel(x)`, optionally with a local function that says it is `x + x`."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.bnnfx", 1)]
    add = helper.make_node("Add", ["x", "x"], ["y"])
    body = helper.make_function("ai.bnnfx", NO_KERNEL, ["x"], ["y"], [add], opsets)
    graph = helper.make_graph(
        [helper.make_node(NO_KERNEL, ["x"], ["y"], domain="ai.bnnfx")],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    functions = [body] if with_function else []
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def options_with_library() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(library_path()))
    return options


def run_twice(options: onnxruntime.SessionOptions) -> None:
    session = onnxruntime.InferenceSession(twice_model(with_function=True), options)
    (y,) = session.run(None, {"x": np.arange(5, dtype=np.float32)})
    np.testing.assert_array_equal(y, np.arange(0, 10, 2, dtype=np.float32))


# --- finding it ---


def test_library_is_built():
    assert library_path().is_file()
    assert library_path().is_absolute()


def test_every_directory_of_the_package_is_searched(monkeypatch, tmp_path):
    monkeypatch.setattr(bnnfx, "__path__", [str(tmp_path), *bnnfx.__path__])
    assert library_path().is_file()


def test_missing_library_says_where_it_looked_and_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(bnnfx, "__path__", [str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="pip install") as error:
        library_path()
    assert str(tmp_path / "lib") in str(error.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the ELF symbol table")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
def test_exports_only_the_documented_symbols():
    command = ["nm", "--dynamic", "--defined-only", "--format=posix", str(library_path())]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    exported = ("RegisterCustomOps", "bnnfx_ceiling", "bnnfx_isas")
    assert sorted(line.split()[:2] for line in lines) == [[name, "T"] for name in exported]


# --- what it says about the processor ---


@pytest.mark.parametrize("isa", isas())
def test_ceiling_of_every_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("BNNFX_ISA", isa)
    assert isa_in_use() == isa
    assert 1e9 < ceiling() < 1e14  # not a negative number, nor the rate of a loop that the compiler dropped


def test_best_instruction_set_is_used_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("BNNFX_ISA", raising=False)
    assert isa_in_use() == isas()[0]
    assert isas()[-1] == "portable"


def test_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("BNNFX_ISA", "sse9")
    function = ctypes.CDLL(str(library_path())).bnnfx_ceiling
    function.restype = ctypes.c_double
    assert function() < 0
    with pytest.raises(bnnfx.BenchmarkError, match=rf"'sse9'; this machine has {', '.join(isas())}"):
        ceiling()


# --- with the real ONNX Runtime ---


def test_op_without_kernel_runs_as_its_local_function():
    run_twice(options_with_library())


def test_op_without_kernel_and_without_function_is_refused():
    with pytest.raises(Exception, match=NO_KERNEL):
        onnxruntime.InferenceSession(twice_model(with_function=False), options_with_library())


def test_many_sessions_share_one_set_of_options():
    options = options_with_library()
    for _ in range(3):
        run_twice(options)


def test_many_sessions_one_after_the_other():
    for _ in range(20):
        run_twice(options_with_library())


def test_sessions_in_threads():
    run_twice(options_with_library())  # ONNX Runtime looks up a domain's name and adds it in two steps
    with ThreadPoolExecutor(max_workers=2) as pool:
        for result in [pool.submit(run_twice, options_with_library()) for _ in range(20)]:
            result.result()


def test_session_outlives_its_options():
    session = onnxruntime.InferenceSession(twice_model(with_function=True), options_with_library())
    run_twice(options_with_library())
    (y,) = session.run(None, {"x": np.ones(3, dtype=np.float32)})
    np.testing.assert_array_equal(y, np.full(3, 2, dtype=np.float32))


# --- with a stand-in for ONNX Runtime, for what the real one cannot be made to do ---


def c_function(result, *arguments):
    return ctypes.CFUNCTYPE(result, *arguments)


class OpTable(ctypes.Structure):
    """The start of OrtCustomOp."""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("create_kernel", ctypes.c_void_p),
        ("get_name", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)),
    )


GetApi = c_function(ctypes.c_void_p, ctypes.c_uint32)
GetVersionString = c_function(ctypes.c_void_p)
CreateStatus = c_function(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
CreateDomain = c_function(ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p))
AddOp = c_function(ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(OpTable))
AddDomain = c_function(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
ReleaseDomain = c_function(None, ctypes.c_void_p)

OPTIONS, STATUS, DOMAIN = 0x100, 0x200, 0x300  # addresses that are handed round and never read


class FakeRuntime:
    """The tables that RegisterCustomOps reads, filled with functions that record how they were called."""

    def __init__(self, *, newest=17, oldest=1, create_fails=False, add_op_fails=False, add_fails=False):
        self.versions, self.statuses, self.created, self.added, self.released = [], [], [], [], []
        self.ops = []
        self.newest, self.oldest = newest, oldest
        self.create_fails, self.add_op_fails, self.add_fails = create_fails, add_op_fails, add_fails
        self.version_string = ctypes.create_string_buffer(b"1.%d.0" % newest)
        self.functions = {
            0: CreateStatus(self.create_status),
            26: CreateDomain(self.create_domain),
            27: AddOp(self.add_op),
            28: AddDomain(self.add_domain),
            101: ReleaseDomain(self.released.append),
        }
        self.api = (ctypes.c_void_p * 102)()  # a slot that should not be called stays null and would crash
        for slot, function in self.functions.items():
            self.api[slot] = ctypes.cast(function, ctypes.c_void_p)
        self.base_functions = (GetApi(self.get_api), GetVersionString(lambda: ctypes.addressof(self.version_string)))
        self.base = (ctypes.c_void_p * 2)(*(ctypes.cast(f, ctypes.c_void_p) for f in self.base_functions))

    def get_api(self, version):
        self.versions.append(version)
        return ctypes.addressof(self.api) if self.oldest <= version <= self.newest else None

    def create_status(self, code, message):
        self.statuses.append((code, message.decode()))
        return STATUS

    def create_domain(self, name, out):
        if self.create_fails:
            return STATUS
        self.created.append(name.decode())
        out[0] = DOMAIN
        return None

    def add_op(self, domain, op):
        if self.add_op_fails:
            return STATUS
        assert domain == DOMAIN
        self.ops.append((op.contents.version, op.contents.get_name(ctypes.addressof(op.contents)).decode()))
        return None

    def add_domain(self, options, domain):
        self.added.append((options, domain))
        return STATUS if self.add_fails else None


class LoadedLibrary:
    """A private copy of the library, loaded apart from the one that the real ONNX Runtime uses."""

    def __init__(self, path):
        self.runtimes = []  # kept alive: the library calls them once more when it is unloaded
        self.library = ctypes.CDLL(str(path))
        self.library.RegisterCustomOps.restype = ctypes.c_void_p
        self.library.RegisterCustomOps.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    def register(self, runtime):
        self.runtimes.append(runtime)
        return self.library.RegisterCustomOps(OPTIONS, ctypes.addressof(runtime.base))

    def unload(self):
        if self.library is not None:
            _ctypes.dlclose(self.library._handle)
            self.library = None


@pytest.fixture
def loaded(tmp_path):
    if sys.platform == "win32":
        pytest.skip("unloads the library with dlclose")
    library = LoadedLibrary(shutil.copy(library_path(), tmp_path))
    yield library
    library.unload()


def test_domain_is_made_once_and_added_to_all_options(loaded):
    runtime = FakeRuntime()
    assert [loaded.register(runtime) for _ in range(3)] == [None] * 3
    assert runtime.versions == [17] * 3
    assert runtime.created == ["ai.bnnfx"]
    assert sorted(runtime.ops) == sorted((17, name) for name in BY_ONNX_NAME)
    assert runtime.added == [(OPTIONS, DOMAIN)] * 3


def test_domain_lives_until_the_library_is_unloaded(loaded):
    runtime = FakeRuntime()
    assert loaded.register(runtime) is None
    assert runtime.released == []
    loaded.unload()
    assert runtime.released == [DOMAIN]


def test_each_runtime_in_the_process_gets_its_own_domain(loaded):
    first, second = FakeRuntime(), FakeRuntime(newest=23)
    for runtime in (first, second, first):
        assert loaded.register(runtime) is None
    assert (first.created, second.created) == (["ai.bnnfx"], ["ai.bnnfx"])
    loaded.unload()
    assert (first.released, second.released) == ([DOMAIN], [DOMAIN])


def test_status_of_creating_the_domain_is_returned(loaded):
    runtime = FakeRuntime(create_fails=True)
    assert loaded.register(runtime) == STATUS
    assert runtime.added == []
    runtime.create_fails = False  # the failure leaves nothing behind
    assert loaded.register(runtime) is None
    assert runtime.created == ["ai.bnnfx"]


def test_status_of_adding_an_op_is_returned(loaded):
    runtime = FakeRuntime(add_op_fails=True)
    assert loaded.register(runtime) == STATUS
    assert (runtime.added, runtime.released) == ([], [DOMAIN])
    runtime.add_op_fails = False
    assert loaded.register(runtime) is None
    assert len(runtime.ops) == len(BY_ONNX_NAME)


def test_status_of_adding_the_domain_is_returned(loaded):
    assert loaded.register(FakeRuntime(add_fails=True)) == STATUS


def test_old_runtime_is_refused_with_its_version(loaded):
    runtime = FakeRuntime(newest=16)
    assert loaded.register(runtime) == STATUS
    ((code, message),) = runtime.statuses
    assert code == 1
    assert "1.17" in message
    assert "1.16.0" in message


def test_runtime_without_any_known_api_is_left_alone(loaded):
    runtime = FakeRuntime(newest=16, oldest=2)
    assert loaded.register(runtime) is None
    assert runtime.versions == [17, 1]
    assert (runtime.statuses, runtime.created) == ([], [])
