"""What a figure depends on besides the model: processor, instruction set, versions."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bnnfx.runtime.library import isa_in_use, isas

_PACKAGES = ("bnnfx", "numpy", "onnx", "onnxruntime", "openvino", "torch", "torchvision")


@dataclass(frozen=True)
class Machine:
    """The machine and the software.

    Attributes:
        processor: its name.
        available: how many processors this process may use.
        system: operating system and architecture.
        isa: the instruction set of our kernels.
        isas: those it could be.
        versions: of Python and the packages that take part, where installed.
    """

    processor: str
    available: int
    system: str
    isa: str
    isas: list[str]
    versions: dict[str, str]


def describe() -> Machine:
    """This machine.

    Raises:
        BenchmarkError: `BNNFX_ISA` names no instruction set of it.
        FileNotFoundError: the kernel library was never built.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    system = f"{platform.system()} {platform.machine()}"
    return Machine(_processor(), available, system, isa_in_use(), isas(), versions)


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return platform.processor() or platform.machine()
