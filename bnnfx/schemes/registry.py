"""What a scheme is, and the registry of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from bnnfx.nn import ActivationBinarizer, WeightBinarizer

Options = Mapping[str, Any]


def _never(layer: nn.Module) -> str | None:
    return None


@dataclass(frozen=True)
class Scheme:
    """One published way to binarize a network, as the compiler needs it.

    What happens once per epoch is a method of the binarizers (`on_epoch`, `between_epochs`), and what folds at the end
    follows from their `forward` and `threshold`.

    Attributes:
        name: as given to `convert`.
        title: one line for people.
        source: the paper.
        activation: makes the binarizer in front of a layer, from the layer's options.
        weight: makes the weight binarizer of a float layer (`Conv2d` or `Linear`), from the layer and its options.
        options: every option with its default; others are refused.
        nonlinearity: makes what replaces a ReLU beside a binary layer; None removes the ReLU.
        shortcut_per_convolution: whether residual blocks get one shortcut per convolution, as Bi-Real Net does.
        refuses: the reason why the scheme cannot binarize this layer, or None.
    """

    name: str
    title: str
    source: str
    activation: Callable[[Options], ActivationBinarizer]
    weight: Callable[[nn.Module, Options], WeightBinarizer]
    options: Options = field(default_factory=dict)
    nonlinearity: Callable[[], nn.Module] | None = None
    shortcut_per_convolution: bool = False
    refuses: Callable[[nn.Module], str | None] = _never

    def resolve(self, given: Options) -> dict[str, Any]:
        """The options given over the defaults.

        Raises:
            ValueError: an option that the scheme does not have, listing those it has.
        """
        unknown = sorted(set(given) - set(self.options))
        if unknown:
            known = ", ".join(f"{name}={value!r}" for name, value in self.options.items()) or "none"
            raise ValueError(
                f"Scheme {self.name!r} has no option {', '.join(map(repr, unknown))}; its options are: {known}."
            )
        return {**self.options, **given}


_SCHEMES: dict[str, Scheme] = {}
_entry_points_read = False


def register_scheme(scheme: Scheme) -> Scheme:
    """Make a scheme known under its name.

    Raises:
        ValueError: the name is taken.
    """
    if scheme.name in _SCHEMES:
        raise ValueError(f"A scheme named {scheme.name!r} is registered already ({_SCHEMES[scheme.name].title}).")
    _SCHEMES[scheme.name] = scheme
    return scheme


def schemes() -> list[str]:
    """The names of all schemes, sorted.

    >>> schemes()
    ['bireal', 'rbnn', 'xnor']
    """
    return sorted(_known())


def get_scheme(name: str) -> Scheme:
    """The scheme of a name.

    Raises:
        ValueError: no such scheme; the message lists the known ones.
    """
    known = _known()
    if name not in known:
        raise ValueError(f"Unknown scheme {name!r}; the known ones are: {', '.join(sorted(known))}.")
    return known[name]


def _known() -> dict[str, Scheme]:
    global _entry_points_read
    if not _entry_points_read:
        _entry_points_read = True
        for entry in entry_points(group="bnnfx.schemes"):
            register_scheme(entry.load())
    return _SCHEMES
