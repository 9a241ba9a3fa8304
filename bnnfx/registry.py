"""Things that are known by name: ours register themselves, those of other packages come by entry points."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from numbers import Integral, Real
from typing import Any, Generic, Protocol, TypeVar

from bnnfx.arguments import require_instance

_said: set[str] = set()


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str:
        """As it is asked for."""

    @property
    def title(self) -> str:
        """One line for people."""


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """The things of one kind, by name.

    Args:
        kind: their class; its name, in lower case, is what errors call them.
        group: the entry-point group of other packages', whose objects are instances of `kind`.
    """

    def __init__(self, kind: type[T], group: str) -> None:
        self._kind = kind
        self._group = group
        self._things: dict[str, T] = {}
        self._complete = False

    def register(self, thing: T) -> T:
        """Make a thing known under its name.

        Raises:
            ValueError: it is something else, or the name is taken.
        """
        kind = self._kind.__name__
        require_instance(f"What is registered as a {kind.lower()}", thing, self._kind, f"a bnnfx.{kind}")
        if thing.name in self._things:
            raise ValueError(
                f"A {self._kind.__name__.lower()} named {thing.name!r} is registered already "
                f"({self._things[thing.name].title})."
            )
        self._things[thing.name] = thing
        return thing

    def registered(self) -> list[T]:
        """What is there without a look at entry points, which would import other packages."""
        return list(self._things.values())

    def known(self) -> dict[str, T]:
        """Everything there is, by name, sorted; entry points are read at the first call."""
        if not self._complete:
            self._complete = True
            read_entry_points(self._group, self._take)
        return dict(sorted(self._things.items()))

    def get(self, name: str) -> T:
        """The thing of a name.

        Raises:
            ValueError: there is none; the message lists the known ones.
        """
        known = self.known()
        require_known(self._kind.__name__.lower(), name, known)
        return known[name]

    def _take(self, entry: metadata.EntryPoint, found: object) -> None:
        if not isinstance(found, self._kind):
            raise TypeError(f"it must be an instance of bnnfx.{self._kind.__name__}, and is {found!r}")
        if self._things.get(found.name) is not found:  # its module may have registered it itself
            self.register(found)


def read_entry_points(group: str, take: Callable[[metadata.EntryPoint, Any], None]) -> None:
    """Give every object of an entry-point group to a function; one that fails is left out, with a warning.

    The order is that of the names of the packages, and within one package that of its list of entry points.

    Args:
        group: the name of the group.
        take: called with an entry point and its object; raises what is wrong with it.
    """
    for entry in sorted(metadata.entry_points(group=group), key=_package):
        try:
            take(entry, entry.load())
        except Exception as error:
            text = (
                f"{entry_point(group, entry)} is left out: {type(error).__name__}: {error} "
                f"Update or uninstall {_package(entry) or 'the package that registers it'}."
            )
            if text not in _said:
                _said.add(text)
                warnings.warn(text, stacklevel=2)


def entry_point(group: str, entry: metadata.EntryPoint) -> str:
    """An entry point as messages name it."""
    return f"The entry point {entry.name!r} of group {group} ({entry.value})"


def _package(entry: metadata.EntryPoint) -> str:
    package = getattr(entry, "dist", None)  # an entry point that was made by hand has none
    return str(package.name or "") if package is not None else ""


def require_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is none of the known ones.

    Raises:
        ValueError: the message lists them.
    """
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"Unknown {kind} {name!r}; the known ones are: {', '.join(known)}.")


def complete_options(owner: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options given over the defaults.

    Args:
        owner: whose options they are, for the message.
        defaults: every option there is.
        given: some of them.

    Raises:
        ValueError: an option that the owner does not have, listing those it has; or a value of another kind than the
            default, where there is one.

    >>> complete_options("A thing", {"share": 0.5, "fast": False}, {"share": 1})
    {'share': 1, 'fast': False}
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{owner} takes its options as a dictionary of names and values; got {given!r}.")
    unknown = [name for name in given if name not in defaults]
    if unknown:
        known = ", ".join(f"{name}={value!r}" for name, value in defaults.items()) or "none"
        raise ValueError(f"{owner} has no option {', '.join(sorted(map(repr, unknown)))}; its options are: {known}.")
    for name, value in given.items():
        _require_kind(f"Option {name!r} of {owner[:1].lower()}{owner[1:]}", defaults[name], value)
    return {**defaults, **given}


_KINDS = (
    (bool, "True or False", bool),
    (int, "a whole number", Integral),
    (float, "a number", Real),
    (str, "a text", str),
)
"""Of options, by their default: the class, in words, and what is taken for one."""


def _require_kind(option: str, default: object, value: object) -> None:
    for kind, words, taken in _KINDS:
        if isinstance(default, kind):
            # a truth value is a number for Python, and any text is true
            if not isinstance(value, taken) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"{option} is {words}; got {value!r}.")
            return
