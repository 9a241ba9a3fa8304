"""What a user can say about single layers: which stay float, how wide they are, and options of the scheme."""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnnfx.arguments import require_mapping

if TYPE_CHECKING:
    from torch import nn

FLOAT_KEYWORDS = ("first", "last", "downsample", "depthwise", "gate")
"""`first`: layers that read a graph input; `last`: layers whose result reaches an output without another layer;
`downsample`: 1x1 convolutions on the shortcut side of a residual add; `depthwise`: convolutions of one channel per
group, of which few products are to be saved and each carries much; `gate`: layers of which only a factor is made that
is one number per channel and never negative, as in squeeze-and-excite."""


ADAPTATIONS = ("activations", "gates")
"""`activations`: a function in front of a sign that keeps the sign, as SiLU, is left out; `gates`: a batch norm is put
between a gate, as of squeeze-and-excite, and a sign, which would not show it."""


@dataclass(frozen=True)
class LayerConfig:
    """Settings of one layer, or of all that a key of `Config.layers` selects; None and absent mean "as before".

    Attributes:
        binarize: whether the layer is binarized.
        options: options of the scheme for this layer, over those of `Config.options`.

    Raises:
        ValueError: `binarize` is neither True, False nor None, or `options` is no dictionary.
    """

    binarize: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.binarize is not None and not isinstance(self.binarize, bool):
            raise ValueError(f"LayerConfig.binarize is True, False or None; got {self.binarize!r}.")
        require_mapping("LayerConfig.options", self.options)


@dataclass(frozen=True)
class Config:
    """Which layers stay float, how wide layers are, and options of the scheme.

    Later rules win over earlier ones: the keywords of `keep_float`, then keys of `layers` that are module types, then
    globs, then exact names.

    Attributes:
        keep_float: any of `"first"`, `"last"`, `"downsample"`, `"depthwise"`, `"gate"`.
        layers: settings by module type, by glob over qualified names, or by exact qualified name.
        options: options of the scheme, for all layers and for the network as a whole.
        widths: number of output channels (features) of a layer, by glob or by exact qualified name; layers whose widths
            are tied together, by a residual add for instance, all get it.
        adapt: what is adapted to signs, any of `"activations"` and `"gates"`.

    Raises:
        ValueError: a field holds something else.

    >>> from torch import nn
    >>> config = Config(layers={nn.Linear: LayerConfig(binarize=False), "features.0": LayerConfig(binarize=True)})
    >>> config.for_layer("features.0", nn.Linear).binarize
    True
    """

    keep_float: tuple[str, ...] = FLOAT_KEYWORDS
    layers: "Mapping[str | type[nn.Module], LayerConfig]" = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    adapt: tuple[str, ...] = ADAPTATIONS

    def __post_init__(self) -> None:
        for name, known in (("keep_float", FLOAT_KEYWORDS), ("adapt", ADAPTATIONS)):
            words = getattr(self, name)
            if not isinstance(words, tuple | list | set | frozenset) or not all(word in known for word in words):
                raise ValueError(f"Config.{name} is a tuple of {known}; got {words!r}.")
        for name in ("layers", "options", "widths"):
            require_mapping(f"Config.{name}", getattr(self, name))
        for key, value in self.layers.items():
            if not isinstance(value, LayerConfig) or not _is_key(key):
                raise ValueError(
                    f"Config.layers maps names, globs or module types to LayerConfig; got {key!r}: {value!r}."
                )
        for key, width in self.widths.items():
            if not isinstance(key, str) or not isinstance(width, int) or isinstance(width, bool) or width < 1:
                raise ValueError(f"Config.widths maps names or globs to positive integers; got {key!r}: {width!r}.")

    def for_layer(self, name: str, kind: "type[nn.Module]") -> LayerConfig:
        """The settings of one layer, all matching keys merged by precedence."""
        by_type = [value for key, value in self.layers.items() if isinstance(key, type) and issubclass(kind, key)]
        by_glob = [value for key, value in self.layers.items() if key != name and _selects(key, name)]
        by_name = [self.layers[name]] if name in self.layers else []
        binarize, options = None, dict(self.options)
        for layer in (*by_type, *by_glob, *by_name):
            binarize = layer.binarize if layer.binarize is not None else binarize
            options |= layer.options
        return LayerConfig(binarize, options)

    def width_of(self, name: str) -> tuple[str, int] | None:
        """The width that is asked for a layer, behind the key that asks for it; None if none does."""
        keys = [key for key in self.widths if key != name and _selects(key, name)]
        keys += [name] if name in self.widths else []
        return (keys[-1], self.widths[keys[-1]]) if keys else None

    def unmatched(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Per field, the names and globs that select none of the layers `names`: misspelled, most likely."""
        found = {
            field_name: [key for key in keys if isinstance(key, str) and not any(_selects(key, name) for name in names)]
            for field_name, keys in (("layers", self.layers), ("widths", self.widths))
        }
        return {field_name: keys for field_name, keys in found.items() if keys}


def _is_key(key: object) -> bool:
    """Whether it can select layers: a name, a glob, or a type of modules."""
    if not isinstance(key, type):
        return isinstance(key, str)
    from torch import nn  # whoever has a type of modules has loaded it

    return issubclass(key, nn.Module)


def _selects(key: "str | type[nn.Module]", name: str) -> bool:
    """Whether a name or glob selects a layer."""
    return isinstance(key, str) and (key == name or fnmatch.fnmatchcase(name, key))
