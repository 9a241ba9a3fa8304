"""What an export target is, and the registry of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnnfx.arguments import require_flag, require_function, require_mapping, require_text
from bnnfx.registry import Registry, complete_options, require_known

if TYPE_CHECKING:
    from torch import fx


@dataclass(frozen=True)
class Target:
    """One form in which a packed graph goes out: a kind of file.

    Attributes:
        name: as given to `export`.
        title: one line for people.
        render: makes the content of the file, from a graph in stage PACKED and the options as keywords. It leaves the
            graph as it is, and raises `ExportError` for what the target cannot hold.
        options: every option with its default; others are refused.
        onnx: whether the file is ONNX, so that the target is a dialect of `export_onnx`.

    Raises:
        ValueError: a field holds something else.
    """

    name: str
    title: str
    render: Callable[..., bytes | str]
    options: Mapping[str, Any] = field(default_factory=dict)
    onnx: bool = False

    def __post_init__(self) -> None:
        require_text("Target.name", self.name)
        require_function("Target.render", self.render)
        require_mapping("Target.options", self.options)
        require_flag("Target.onnx", self.onnx)

    def content(self, gm: "fx.GraphModule", options: Mapping[str, Any]) -> bytes | str:
        """The content of the file, with the options given over the defaults.

        Raises:
            ValueError: an option that the target does not have, or a value that it does not take.
            ExportError: the target cannot hold the graph.
        """
        return self.render(gm, **complete_options(f"Target {self.name!r}", self.options, options))


ONNX_OPTIONS: Mapping[str, Any] = {"opset": None, "input_names": None, "output_names": None}
"""Of our own targets that are ONNX: what `export_onnx` takes."""

TARGETS = Registry(Target, "bnnfx.targets")


def register_target(target: Target) -> Target:
    """Make an export target known under its name.

    Raises:
        ValueError: it is no target, or the name is taken.
    """
    return TARGETS.register(target)


def targets() -> list[str]:
    """The names of all export targets, sorted.

    >>> targets()
    ['bnnfx', 'standard']
    """
    return list(TARGETS.known())


def dialects() -> list[str]:
    """The names of the targets whose files are ONNX, sorted."""
    return [name for name, target in TARGETS.known().items() if target.onnx]


def require_dialect(name: str) -> None:
    """Refuse a name that is no dialect of ONNX.

    Raises:
        ValueError: the message lists those there are.
    """
    require_known("dialect", name, dialects())
