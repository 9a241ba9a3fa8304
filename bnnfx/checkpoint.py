"""Files with weights, as training programs write them: which of their tensors are the model's."""

import importlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bnnfx.errors import ModelSourceError, first_line, quoted

State = Mapping[str, Tensor]

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that torch's wrappers put in, at the front or in the middle."""

_USUAL = ("state_dict", "model_state_dict", "model", "net", "module", "network")
"""Where people put their weights, the most usual first: keys of checkpoints and attributes of wrappers."""


@dataclass(frozen=True)
class Weights:
    """A file with weights, and where in it they are.

    Attributes:
        path: of the file.
        key: what stands before their names: keys of nested dictionaries and prefixes of names, with dots between; None
            if it was not given, so that it is found by the names that the model has.
    """

    path: Path
    key: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Weights":
        """`FILE` or `FILE:KEY`; an empty key is the file as it is.

        Raises:
            ModelSourceError: there is no such file.
        """
        path, separator, key = text.rpartition(":")
        if separator and not Path(text).is_file() and Path(path).is_file():
            return cls(Path(path), key)
        if not Path(text).is_file():
            raise ModelSourceError(f"There is no file {text} to read weights from.")
        return cls(Path(text))


@dataclass(frozen=True)
class Fit:
    """Tensors of a file whose names are those of a model.

    Attributes:
        key: what stands before their names in the file.
        state: the tensors, by the names that the model has.
        others: the other keys whose tensors have the names of the model, too.
    """

    key: str
    state: State
    others: tuple[str, ...]


class Checkpoint:
    """The tensors of a file with weights, by key: what stands before their names, with and without it.

    Args:
        weights: the file, `.safetensors` or what `torch.save` wrote of tensors and plain data (nothing in it is
            executed). Tensors may be in dictionaries in it, beside an optimizer's. What `torch.compile` and FSDP put
            into names is taken off.

    Raises:
        ModelSourceError: there is no such file, it holds no tensors, or none under the key.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._states: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for parts, tensor in _tensors(_read(weights.path)):
            kept = [part for part in parts if part not in _WRAPPERS]
            for end in range(len(kept)):
                self._states[".".join(kept[:end])][".".join(kept[end:])] = tensor
        if not self._states:
            raise ModelSourceError(
                f"{weights.path} holds no state_dict (names and tensors); torch.save(model.state_dict(), file) writes "
                "one."
            )
        if weights.key is not None and weights.key not in self._states:
            known = ", ".join(f"'{key}'" for key in self._states if key and "." not in key)
            raise ModelSourceError(
                f"{weights.path} holds no tensors under the key '{weights.key}'; it has {known or 'no keys'}."
            )

    def fit(self, wanted: State) -> Fit | None:
        """The tensors whose names are exactly those wanted, but for counters of batches, which may be missing.

        Raises:
            ModelSourceError: there are several under unusual keys, and none of them was asked for.
        """
        keys = [key for key in self._candidates() if _misfits(self._states[key], wanted) == ([], [])]
        if not keys:
            return None
        best = min(map(_rank, keys))
        chosen, *equals = [key for key in keys if _rank(key) == best]
        if equals:
            raise ModelSourceError(
                f"{self.weights.path} holds weights for the model under several keys: {quoted(keys)}; give one as "
                f"{self.weights.path}:{chosen}."
            )
        return Fit(chosen, self._states[chosen], tuple(key for key in keys if key != chosen))

    def closest(self, wanted: State) -> tuple[list[str], list[str]]:
        """Where no names fit: those that are missing and those that are not known, at the key with the fewest."""
        return min((_misfits(self._states[key], wanted) for key in self._candidates()), key=lambda m: sum(map(len, m)))

    def _candidates(self) -> Collection[str]:
        return self._states if self.weights.key is None else [self.weights.key]


def _misfits(state: State, wanted: State) -> tuple[list[str], list[str]]:
    """Names that are missing, and names that are not known; counters of batches may be missing."""
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    return missing, [name for name in state if name not in wanted]


def _rank(key: str) -> list[int]:
    """Less for what is more usual; nothing before the names is the most usual."""
    return [_USUAL.index(part) if part in _USUAL else len(_USUAL) for part in key.split(".") if part]


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return importlib.import_module("safetensors.torch").load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ModelSourceError(f"Reading {path} needs the package safetensors: pip install safetensors.") from error
    except Exception as error:
        raise ModelSourceError(
            f"{path} holds no state_dict that can be read without executing code: {first_line(error)} "
            "torch.save(model.state_dict(), file) writes one."
        ) from error


def _tensors(content: object, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """All tensors in nested dictionaries, with the parts of their names."""
    if isinstance(content, Tensor) and before:
        yield before, content
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, (*before, *str(key).split(".")))
