"""What the build makes from tables: a made-up row of each kind is where it should be, and nothing else moves."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bnnfx
from bnnfx.ops import BY_ONNX_NAME
from bnnfx.ops.steps import STEPS

PACKAGE = next(Path(path) for path in bnnfx.__path__ if (Path(path) / "csrc").is_dir())
# kind -> file, the line in front of the new row, the row
TABLES = {
    "isa": (
        "csrc/isas.py",
        "ISAS = (\n",
        '    Isa("sse42", "x86", ("sse4.2", "popcnt"), condition="IsMadeUp()", flags=("-O1",)),\n',
    ),
    "step": ("ops/steps.py", "    for step in (\n", '        Step("doubled", (), lambda xp, x: x + x * 1.0),\n'),
    "operator": (
        "ops/signatures.py",
        "SIGNATURES: tuple[Signature, ...] = (\n",
        '    Signature("made_up", (_BITS,), ("bits",), {"number": "int"}, kernel="MadeUp"),\n',
    ),
}


class Build:
    """A copy of the tables, and what the script makes of them for a family of processors."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "bnnfx"
        self.generated = folder / "generated"
        for part in ("csrc", "ops"):
            shutil.copytree(PACKAGE / part, self.package / part)

    def add_row(self, kind: str) -> None:
        file, before, row = TABLES[kind]
        path = self.package / file
        text = path.read_text()
        assert text.count(before) == 1
        path.write_text(text.replace(before, before + row))

    def __call__(self, family: str = "x86") -> dict[str, str]:
        script = self.package / "csrc" / "generate.py"
        subprocess.run([sys.executable, script, family, self.generated], check=True)
        return {path.name: path.read_text() for path in self.generated.iterdir()}


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_operators_are_those_of_the_package(build: Build) -> None:
    assert set(re.findall(r'\{"(\w+)", &Make\w+,', build()["definitions.h"])) == set(BY_ONNX_NAME)


def test_steps_are_those_of_the_package(build: Build) -> None:
    names = re.search(r"enum class Step \{ (.*) \};", build()["steps.h"])
    assert names is not None
    wanted = ["kNone", *("k" + name.title().replace("_", "") for name in STEPS)]
    assert names[1].split(", ") == wanted


@pytest.mark.parametrize(
    ("family", "listed"),
    [("x86", "&kAmx, &kAvx512, &kAvx2, &kPortable"), ("arm", "&kNeon, &kPortable"), ("none", "&kPortable")],
)
def test_kernels_of_a_family(build: Build, family: str, listed: str) -> None:
    made = build(family)
    assert f"kKernels[] = {{{listed}}};" in made["conv_kernels.h"]
    assert "kKernels[] = {&kPortable};" in made["pool_kernels.h"]
    assert ("kAmx" in made["isa_rows.h"]) == (family == "x86")


def test_what_stays_is_not_written_again(build: Build) -> None:
    build()
    times = {path.name: path.stat().st_mtime_ns for path in build.generated.iterdir()}
    build.add_row("isa")
    before = {path.name: path.read_text() for path in build.generated.iterdir()}
    after = build()
    written = {path.name for path in build.generated.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert written == {name for name in after if after[name] != before[name]}
    assert written == {"isas.cmake", "isas.h", "isa_rows.h"}


def test_made_up_instruction_set(build: Build) -> None:
    """One row, and kernels found by its name: it is the least of its family, and there where it has a kernel."""
    build.add_row("isa")
    (build.package / "csrc" / "kernels" / "conv" / "sse42.cpp").touch()
    made = build()
    assert "enum class Isa { kPortable, kSse42, kAvx2" in made["isas.h"]
    assert "&kAvx2, &kSse42, &kPortable};" in made["conv_kernels.h"] and "kSse42" not in made["pack_kernels.h"]
    assert 'set(sse42_flags "-msse4.2" "-mpopcnt" "-O1")' in made["isas.cmake"]
    (row,) = [line for line in made["isa_rows.h"].splitlines() if "kSse42" in line]
    for condition in ('__builtin_cpu_supports("sse4.2") != 0', '__builtin_cpu_supports("popcnt") != 0', "IsMadeUp()"):
        assert condition in row
    assert "sse42" in build("arm")["isas.cmake"].splitlines()[0] and "kSse42" not in build("arm")["conv_kernels.h"]


def test_made_up_step(build: Build) -> None:
    before = build()
    build.add_row("step")
    made = build()
    assert (
        "kDoubled" in made["steps.h"]
        and "const auto result0 = x * Broadcast<Floats>(1.0f);" in made["step_functions.h"]
    )
    assert "return x + result0;" in made["step_functions.h"]
    names = re.findall(r'\{"(\w+)", &Make', made["definitions.h"])
    assert sum("Doubled" in name for name in names) == len(names) - before["definitions.h"].count("&Make") > 60


def test_made_up_operator(build: Build) -> None:
    build.add_row("operator")
    made = build()
    assert "OperatorPointer MakeMadeUp(const Node& node);" in made["definitions.h"]
    assert '{"MadeUp", &MakeMadeUp, ' in made["definitions.h"] and '{{"number", false}}' in made["definitions.h"]
