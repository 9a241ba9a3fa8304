"""What a scheme is, and the registry of them."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from bnnfx.errors import first_line
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
        weight: makes the weight binarizer of a float layer with a `weight` `[O, ...]`, from the layer and its options;
            None instead of one leaves the weight float, behind a binarized activation.
        options: every option of a layer with its default; others are refused.
        network_options: every option of the network as a whole with its default. Passes look for these:
            `shortcut_per_convolution`, whether residual blocks get one shortcut per convolution, as Bi-Real Net does;
            `width_factor` and `parity`, how `CoupleWidths` narrows the layers.
        nonlinearity: makes what replaces a ReLU beside a binary layer; None removes the ReLU.
        refuses: the reason why the scheme cannot binarize this layer, or None.
    """

    name: str
    title: str
    source: str
    activation: Callable[[Options], ActivationBinarizer]
    weight: Callable[[nn.Module, Options], WeightBinarizer | None]
    options: Options = field(default_factory=dict)
    network_options: Options = field(default_factory=dict)
    nonlinearity: Callable[[], nn.Module] | None = None
    refuses: Callable[[nn.Module], str | None] = _never

    def resolve(self, given: Options) -> dict[str, Any]:
        """The options given over the defaults, those of layers and those of the network.

        Raises:
            ValueError: an option that the scheme does not have, listing those it has.
        """
        every = {**self.options, **self.network_options}
        unknown = sorted(set(given) - set(every))
        if unknown:
            known = ", ".join(f"{name}={value!r}" for name, value in every.items()) or "none"
            raise ValueError(
                f"Scheme {self.name!r} has no option {', '.join(map(repr, unknown))}; its options are: {known}."
            )
        return {**every, **given}

    def resolve_layer(self, given: Options) -> dict[str, Any]:
        """The options of one layer over the defaults, without those of the network.

        Raises:
            ValueError: as for `resolve`.
        """
        return {name: value for name, value in self.resolve(given).items() if name in self.options}


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

    >>> "xnor" in schemes()
    True
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
            try:
                scheme = entry.load()
                if not isinstance(scheme, Scheme):
                    raise TypeError(f"it is a {type(scheme).__name__}, not a bnnfx.Scheme")
                if _SCHEMES.get(scheme.name) is not scheme:  # else its module has registered it
                    register_scheme(scheme)
            except Exception as error:  # whatever the other package's module does when it is imported
                warnings.warn(
                    f"The entry point {entry.name!r} of group bnnfx.schemes ({entry.value}) is left out: "
                    f"{type(error).__name__}: {first_line(error)} Repair the package that it comes from, or uninstall "
                    "it.",
                    stacklevel=3,
                )
    return _SCHEMES
