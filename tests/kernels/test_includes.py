"""Who may include whom in the kernel library: kernels know no runtime; what adapts them to ONNX Runtime is apart."""

import re
from pathlib import Path

import pytest

import bnnfx

SOURCES = next(Path(path) / "csrc" for path in bnnfx.__path__ if (Path(path) / "csrc").is_dir())
FILES = sorted(path for path in SOURCES.rglob("*") if path.suffix in (".h", ".cpp"))

# folder -> what its files may include of the library, apart from what is in the same folder
ALLOWED = {
    "kernels": {"kernels", "generated"},
    "bench": {"kernels", "generated"},
    "ort": {"kernels", "bench", "generated"},
}
ORT = re.compile(r"\bOrt[A-Z]\w*|\bORT_\w+|\bort::")


def part_of(path: Path) -> str:
    return path.relative_to(SOURCES).parts[0]


def offences(path: Path, text: str) -> list[str]:
    """What a file of the library includes or names although it may not."""
    part, found = part_of(path), []
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE):
        target = (path.parent / name).resolve()
        included = "generated" if name.startswith("generated/") else part_of(target)
        if included not in {part} | ALLOWED[part]:
            found.append(name)
    if part != "ort":
        code = re.sub(r"//.*", "", text)
        found += ORT.findall(code) + re.findall(r"#\s*include\s+<.*onnx.*>", code)
    return found


def test_all_folders_are_there() -> None:
    assert {part_of(path) for path in FILES} == set(ALLOWED)
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_includes(path: Path) -> None:
    assert offences(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("kernels/conv/convolution.h", '#include "../../ort/runtime.h"'),
        ("kernels/operator.h", '#  include "../bench/ceiling.h"'),
        ("kernels/operator.h", "OrtStatus* status;"),
        ("kernels/operator.cpp", "case ORT_FLOAT:"),
        ("bench/ceiling.cpp", "ort::Context context;"),
        ("kernels/operator.cpp", "#include <onnxruntime_c_api.h>"),
    ],
)
def test_wrong_include_is_noticed(path: str, text: str) -> None:
    assert len(offences(SOURCES / path, text)) == 1
