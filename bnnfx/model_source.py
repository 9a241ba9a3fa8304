"""Models named on a command line: `torchvision:NAME`, `file.py:function` or `module:function`; and their weights."""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, fx, nn

from bnnfx._torchvision import import_torchvision
from bnnfx.api import convert, split_if_ternary
from bnnfx.config import Config
from bnnfx.errors import ModelSourceError, first_line
from bnnfx.source_forms import FORMS, PREFIX

State = Mapping[str, Tensor]


def load_model(source: str) -> nn.Module:
    """Build the model that a text names, with whatever weights its maker gives it.

    Args:
        source: `torchvision:NAME`, a name of `torchvision.models.list_models` (random weights); or a function, or
            class, that returns a module when called without arguments, as `file.py:function` or `module:function`.

    Raises:
        ModelSourceError: there is no such model, or it cannot be built.
    """
    if source.startswith(PREFIX):
        return _torchvision_model(source.removeprefix(PREFIX))
    place, separator, name = source.rpartition(":")
    if not separator or not place or not name:
        raise ModelSourceError(f"A model is given as {FORMS}; got '{source}'.")
    maker = getattr(_import(place), name, None)
    if maker is None:
        raise ModelSourceError(f"{place} has no '{name}'; a model is given as {FORMS}.")
    try:
        model = maker()
    except Exception as error:
        raise ModelSourceError(f"{source} failed: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelSourceError(f"{source} must return a torch.nn.Module when called; it returned {type(model)}.")
    return model


def build(source: str, scheme: str, config: Config, weights: Path | None, seed: int) -> fx.GraphModule:
    """Build a model, give it weights, and convert it, in evaluation mode.

    The weights are a `state_dict` of the float model, or of the trainable graph that `convert` makes of it with this
    scheme and configuration, or that `split` makes of that one: which, their names and shapes say. Split weights give
    the split graph. The same arguments give the same graph every time.

    Args:
        source: as for `load_model`.
        scheme: one of `bnnfx.schemes()`.
        config: which layers stay float, and options of the scheme.
        weights: a file for `read_state`; without one, the weights that the model is made with stay.
        seed: of the weights that the model is made with, and of what the scheme draws at random.

    Raises:
        ModelSourceError: the model cannot be built, or the weights do not fit it.
        ConversionError: it cannot be binarized.
        ValueError: unknown scheme or option.
    """
    torch.manual_seed(seed)
    state = None if weights is None else read_state(weights)
    model = load_model(source).eval()
    if state is not None and _misfits(state, model.state_dict()) == ([], []):
        _load(model, state, weights)
        return convert(model, scheme, config=config)
    gm = convert(model, scheme, config=config)
    if state is None:
        return gm
    misfits = {
        "the float model": _misfits(state, model.state_dict()),
        "the converted model": _misfits(state, gm.state_dict()),
    }
    if misfits["the converted model"] != ([], []):
        closest, (missing, unknown) = min(misfits.items(), key=lambda item: sum(map(len, item[1])))
        raise ModelSourceError(
            f"The names in {weights} fit neither the float model nor what convert makes of it with scheme '{scheme}'; "
            f"{closest} is closest: it lacks {_some(missing)}, and {_some(unknown)} is not in it."
        )
    if not _has_shapes_of(gm, state):  # those of the split graph have the same names
        gm = split_if_ternary(gm)
    _load(gm, state, weights)
    return gm


def read_state(path: Path) -> State:
    """Read a `state_dict`: `.safetensors`, or what `torch.save` wrote of tensors alone (nothing in it is executed).

    A checkpoint that holds it under `state_dict`, `model_state_dict` or `model` is looked into; a prefix `module.`,
    which distributed training puts before every name, is taken off.

    Raises:
        ModelSourceError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ModelSourceError(f"There is no file {path} to read weights from.")
    try:
        if path.suffix == ".safetensors":
            content = importlib.import_module("safetensors.torch").load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ModelSourceError(f"Reading {path} needs the package safetensors: pip install safetensors.") from error
    except Exception as error:
        raise ModelSourceError(
            f"{path} holds no state_dict that can be read without executing code: {first_line(error)} "
            "torch.save(model.state_dict(), file) writes one."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(x, Tensor) for x in content.values()):
        raise ModelSourceError(
            f"{path} holds no state_dict (names and tensors); torch.save(model.state_dict(), file) writes one."
        )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def _misfits(state: State, wanted: State) -> tuple[list[str], list[str]]:
    """Names that are missing, and names that are not known; counters of batches may be missing."""
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    return missing, [name for name in state if name not in wanted]


def _has_shapes_of(module: nn.Module, state: State) -> bool:
    return all(state[name].shape == tensor.shape for name, tensor in module.state_dict().items() if name in state)


def _load(module: nn.Module, state: State, path: Path | None) -> None:
    try:
        module.load_state_dict(state, strict=False)  # the names were compared
    except RuntimeError as error:
        detail = " ".join(line.strip() for line in str(error).splitlines()[1:2])
        raise ModelSourceError(f"The tensors in {path} do not fit the model: {detail or first_line(error)}") from error


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _import(place: str) -> ModuleType:
    path = Path(place)
    if path.suffix == ".py" and not path.is_file():
        raise ModelSourceError(f"There is no file {path}; a model is given as {FORMS}.")
    try:
        if path.suffix != ".py":
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # where classes look for themselves
        spec.loader.exec_module(module)
        return module
    except ModuleNotFoundError as error:
        raise ModelSourceError(
            f"{place} cannot be imported: {first_line(error)} A model is given as {FORMS}."
        ) from error
    except Exception as error:
        raise ModelSourceError(f"{place} cannot be imported: {type(error).__name__}: {first_line(error)}") from error


def _torchvision_model(name: str) -> nn.Module:
    try:
        models = import_torchvision().models
    except ImportError as error:
        raise ModelSourceError("torchvision is not installed: pip install 'bnnfx[vision]'.") from error
    known = models.list_models(module=models)
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, 3)) or ", ".join(known[:3])
        raise ModelSourceError(f"torchvision has no classification model '{name}'; it has, for example, {close}.")
    model = models.get_model(name, weights=None)
    assert isinstance(model, nn.Module)
    return model
