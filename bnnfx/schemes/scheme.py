"""What a scheme is, and the registry of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bnnfx.arguments import require_function, require_mapping, require_text
from bnnfx.nn import ActivationBinarizer, WeightBinarizer
from bnnfx.registry import Registry, complete_options

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
        options: every option of a layer with its default; others are refused, and values of another kind.
        network_options: every option of the network as a whole with its default. Passes look for these:
            `shortcut_per_convolution`, whether residual blocks get one shortcut per convolution, as Bi-Real Net does;
            `width_factor` and `parity`, how `CoupleWidths` narrows the layers.
        nonlinearity: makes what replaces a ReLU beside a binary layer; None removes the ReLU.
        refuses: the reason why the scheme cannot binarize this layer, or None.

    Raises:
        ValueError: a field holds something else.
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

    def __post_init__(self) -> None:
        require_text("Scheme.name", self.name)
        for name in ("activation", "weight", "refuses"):
            require_function(f"Scheme.{name}", getattr(self, name))
        for name in ("options", "network_options"):
            require_mapping(f"Scheme.{name}", getattr(self, name))

    def resolve(self, given: Options) -> dict[str, Any]:
        """The options given over the defaults, those of layers and those of the network.

        Raises:
            ValueError: an option that the scheme does not have, listing those it has, or a value of another kind than
                the default.
        """
        return complete_options(f"Scheme {self.name!r}", {**self.options, **self.network_options}, given)

    def resolve_layer(self, given: Options) -> dict[str, Any]:
        """The options of one layer over the defaults, without those of the network.

        Raises:
            ValueError: as for `resolve`.
        """
        return {name: value for name, value in self.resolve(given).items() if name in self.options}


SCHEMES = Registry(Scheme, "bnnfx.schemes")


def register_scheme(scheme: Scheme) -> Scheme:
    """Make a scheme known under its name.

    Raises:
        ValueError: it is no scheme, or the name is taken.
    """
    return SCHEMES.register(scheme)


def schemes() -> list[str]:
    """The names of all schemes, sorted.

    >>> "xnor" in schemes()
    True
    """
    return list(SCHEMES.known())


def get_scheme(name: str) -> Scheme:
    """The scheme of a name.

    Raises:
        ValueError: no such scheme; the message lists the known ones.
    """
    return SCHEMES.get(name)
