"""Writes what the C++ of this folder takes from tables: operators, steps of epilogues, instruction sets.

CMake runs it: `generate.py FAMILY FOLDER`, with the family of processors ("x86", "arm" or "none") and the folder for
the files. A file that would stay as it is is not written, so that nothing is compiled again.

The tables import nothing but the standard library and each other. They are loaded from their files, without what their
package imports (torch), and whatever `bnnfx` is installed.
"""

import importlib.util
import sys
import types
from collections.abc import Iterable, Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent


def load_tables() -> None:
    """Put the tables into the place of their package, each from its file."""
    sys.dont_write_bytecode = True
    sys.modules.update((name, types.ModuleType(name)) for name in ("bnnfx", "bnnfx.ops"))
    for table in ("steps", "recorder", "epilogue", "signatures"):  # each imports earlier ones only
        path = SOURCES.parent / "ops" / f"{table}.py"
        spec = importlib.util.spec_from_file_location(f"bnnfx.ops.{table}", path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


if __name__ == "__main__":
    load_tables()

from isas import ISAS, Isa  # noqa: E402

from bnnfx.ops.recorder import operations  # noqa: E402
from bnnfx.ops.signatures import ONNX_DOMAIN, OPSET_VERSION, SIGNATURES, Signature  # noqa: E402
from bnnfx.ops.steps import STEPS, Step  # noqa: E402

ELEMENTS = {"float32": "kFloat32", "uint8": "kUint8", "int32": "kInt32", "float": "kFloat32", "bits": "kUint8"}
SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "greater": ">", "less": "<"}


def camel(name: str) -> str:
    """As in enumerators: `kShiftedPrelu` of "shifted_prelu"."""
    return "k" + "".join(part.capitalize() for part in name.split("_"))


def header(*body: str, namespaces: Sequence[str] = ("bnnfx",)) -> str:
    """A header with a body inside of namespaces."""
    opening = [f"namespace {name} {{" if name else "namespace {" for name in namespaces]
    closing = ["}" for _ in namespaces]
    return "\n".join(["// Written by generate.py.", "", *opening, "", *body, "", *closing, ""])


# --- instruction sets ---


def isas_of(family: str) -> list[Isa]:
    """Of one family, best first."""
    return [isa for isa in reversed(ISAS) if isa.family == family]


def isa_enumeration() -> str:
    """`enum class Isa`, of all families."""
    names = ", ".join(camel(name) for name in ("portable", *(isa.name for isa in ISAS)))
    return header(f"enum class Isa {{ {names} }};")


def isa_rows(family: str) -> str:
    """What there may be on a processor of this family, and how one finds out."""
    rows = []
    for isa in isas_of(family):
        conditions = [f'__builtin_cpu_supports("{feature}") != 0' for feature in isa.features]
        conditions += [isa.condition] if isa.condition else []
        rows.append(
            f'    {{Isa::{camel(isa.name)}, "{isa.name}", [] {{ return {" && ".join(conditions) or "true"}; }}}},'
        )
    rows.append('    {Isa::kPortable, "portable", [] { return true; }},')
    return header("constexpr IsaRow kIsaRows[] = {", *rows, "};")


def kernels(folder: Path, family: str) -> str:
    """The list of the kernels of a folder, best first."""
    names = [isa.name for isa in isas_of(family) if (folder / f"{isa.name}.cpp").exists()] + ["portable"]
    listed = ", ".join(f"&{camel(name)}" for name in names)
    return header(
        *(f"extern const Kernel {camel(name)};" for name in names),
        f"constexpr const Kernel* kKernels[] = {{{listed}}};",
        namespaces=("bnnfx", folder.name),
    )


def isa_flags(family: str) -> str:
    """For CMake: the files that are for one set, and what they are compiled with."""
    lines = [f"set(every_isa {' '.join(isa.name for isa in ISAS)})"]
    lines.append(f"set(isas {' '.join(isa.name for isa in isas_of(family))})")
    for isa in isas_of(family):
        flags = " ".join(f'"{flag}"' for flag in (*(f"-m{feature}" for feature in isa.features), *isa.flags))
        lines.append(f"set({isa.name}_flags {flags})")
    return "\n".join([*lines, ""])


# --- steps of epilogues ---


def step_enumeration() -> str:
    """`enum class Step`, and how many constants each has."""
    names = ", ".join(camel(name) for name in ("none", *STEPS))
    counts = [0, *(len(step.constants) for step in STEPS.values())]
    return header(
        f"enum class Step {{ {names} }};",
        f"constexpr size_t kStepCount = {len(counts)};",
        f"constexpr size_t kConstantCount[kStepCount] = {{{', '.join(map(str, counts))}}};",
        f"constexpr size_t kMostConstants = {max(counts)};",
        namespaces=("bnnfx", "conv"),
    )


def step_function(step: Step) -> list[str]:
    """The class that does a step, by specialization of a template in kernels/conv/epilogue.h."""
    name = "StepFunction"
    kind = f"{name}<Lanes, vectors, Step::{camel(step.name)}>"
    members = ", ".join(f"{constant}(constants[{i}] + slot)" for i, constant in enumerate(step.constants))
    parameters = "const float* const* constants, size_t slot" if members else "const float* const*, size_t"

    def spelled(operand: str | float) -> str:
        if isinstance(operand, float):
            return f"Broadcast<Floats>({operand!r}f)"
        return f"{operand}.value[i]" if operand in step.constants else operand

    lines = []
    for operation in operations(step):
        operands = [spelled(operand) for operand in operation.operands]
        result = f"{operands[0]} {SIGNS[operation.kind]} {operands[1]}" if operation.kind in SIGNS else "{} ? {} : {}"
        lines.append(f"    const auto {operation.result} = {result.format(*operands)};")
    lines[-1] = "    return " + lines[-1].partition(" = ")[2]
    return [
        "template <class Lanes, size_t vectors>",
        f"struct {kind} {{",
        f"  {name}({parameters}){' : ' + members if members else ''} {{}}",
        "  template <class Floats>",
        f"  Floats operator()(Floats x, size_t{' i' if members else ''}) const {{",
        *lines,
        "  }",
        *(f"  Constant<Lanes, vectors> {constant};" for constant in step.constants),
        "};",
    ]


def step_functions() -> str:
    """All of these classes; in an unnamed namespace, as in the header that includes them."""
    body = [line for step in STEPS.values() for line in step_function(step)]
    return header(*body, namespaces=("bnnfx", "conv", ""))


# --- operators ---


class Arrays:
    """Constant arrays, each written once however many use it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[tuple[str, tuple[str, ...]], str] = {}

    def list_of(self, kind: str, rows: Iterable[str]) -> str:
        """The initializer of a `List<kind>` with these rows."""
        key = (kind, tuple(rows))
        if not key[1]:
            return "{nullptr, 0}"
        if key not in self.names:
            self.names[key] = f"kArray{len(self.names)}"
            self.lines.append(f"constexpr {kind} {self.names[key]}[] = {{{', '.join(key[1])}}};")
        return f"{{{self.names[key]}, {len(key[1])}}}"


def definition(signature: Signature, arrays: Arrays) -> str:
    """The row of one operator."""
    inputs = [
        f'{{"{tensor.name}", ElementType::{ELEMENTS[tensor.type]}, {str(tensor.constant).lower()}}}'
        for tensor in signature.inputs
    ]
    attributes = [f'{{"{name}", {str(kind == "ints").lower()}}}' for name, kind in signature.attributes.items()]
    fields = [
        f'"{signature.onnx_name}"',
        f"&Make{signature.kernel}",
        arrays.list_of("Definition::Input", inputs),
        arrays.list_of("Definition::Attribute", attributes),
        arrays.list_of("Definition::Fixed", (f'{{"{name}", {value}}}' for name, value in signature.variant.items())),
        arrays.list_of("ElementType", (f"ElementType::{ELEMENTS[output]}" for output in signature.outputs)),
        str([tensor.name for tensor in signature.inputs].index(signature.in_place or signature.inputs[0].name)),
    ]
    return f"    {{{', '.join(fields)}}},"


def definitions() -> str:
    """The rows of all operators with a kernel, and declarations of the functions that make these."""
    arrays = Arrays()
    with_kernel = [signature for signature in SIGNATURES if signature.kernel is not None]
    rows = [definition(signature, arrays) for signature in with_kernel]
    makers = dict.fromkeys(signature.kernel for signature in with_kernel)
    return header(
        *(f"OperatorPointer Make{maker}(const Node& node);" for maker in makers),
        *arrays.lines,
        "constexpr Definition kDefinitions[] = {",
        *rows,
        "};",
    )


def domain() -> str:
    """Where the operators are in an ONNX file."""
    return header(f'constexpr char kDomain[] = "{ONNX_DOMAIN}";', f"constexpr int kOpsetVersion = {OPSET_VERSION};")


def main(family: str, target: Path) -> None:
    """Write all files."""
    folders = [path.parent for path in SOURCES.rglob("portable.cpp")]
    files = {
        "isas.cmake": isa_flags(family),
        "isas.h": isa_enumeration(),
        "isa_rows.h": isa_rows(family),
        **{f"{folder.name}_kernels.h": kernels(folder, family) for folder in folders},
        "steps.h": step_enumeration(),
        "step_functions.h": step_functions(),
        "definitions.h": definitions(),
        "domain.h": domain(),
    }
    target.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = target / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
