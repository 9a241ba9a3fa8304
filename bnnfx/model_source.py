"""Models named on a command line, as `bnnfx.source_forms` says; and their weights."""

import difflib
import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, fx, nn

from bnnfx._torchvision import import_torchvision
from bnnfx.api import convert, split_if_ternary
from bnnfx.checkpoint import Checkpoint, Fit, State, Weights
from bnnfx.config import Config
from bnnfx.errors import ModelSourceError, first_line, quoted
from bnnfx.source_forms import FORMS, LIBRARIES, named_model


def load_model(source: str) -> nn.Module:
    """Build the model that a text names, with whatever weights its maker gives it.

    Args:
        source: `torchvision:NAME`, a classifier of `torchvision.models.list_models`, or `timm:NAME`, one of
            `timm.list_models` (random weights); or a function, or class, that returns a module when called without
            arguments, as `file.py:function` or `module:function`.

    Raises:
        ModelSourceError: there is no such model, or it cannot be built.
    """
    named = named_model(source)
    if named is not None:
        return _model_of_library(*named)
    place, separator, name = source.rpartition(":")
    if not separator or not place or not name:
        raise ModelSourceError(f"A model is given as {FORMS}; got '{source}'.")
    maker = getattr(_import(place), name, None)
    if maker is None:
        raise ModelSourceError(f"{place} has no '{name}'; a model is given as {FORMS}.")
    try:
        model = maker()
    except (Exception, SystemExit) as error:
        raise ModelSourceError(f"{source} failed: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelSourceError(f"{source} must return a torch.nn.Module when called; it returned {type(model)}.")
    return model


def build(
    source: str,
    scheme: str,
    config: Config,
    weights: Weights | Path | None,
    seed: int,
    example_inputs: tuple[Tensor, ...] | None = None,
) -> fx.GraphModule:
    """Build a model, give it weights, and convert it, in evaluation mode.

    The weights are a `state_dict` of the float model, or of the trainable graph that `convert` makes of it with this
    scheme and configuration, or that `split` makes of that one: which, their names and shapes say. Split weights give
    the split graph. Where they are in a file, their names say, too; a warning says which are taken. The same arguments
    give the same graph every time.

    Args:
        source: as for `load_model`.
        scheme: one of `bnnfx.schemes()`.
        config: which layers stay float, and options of the scheme.
        weights: a file, and the key in it if it has to be told; without one, the weights that the model is made with
            stay.
        seed: of the weights that the model is made with, and of what the scheme draws at random.
        example_inputs: arguments of forward, as for `bnnfx.convert`.

    Raises:
        ModelSourceError: the model cannot be built, or the weights do not fit it.
        ConversionError: it cannot be binarized.
        ValueError: unknown scheme or option.
    """
    torch.manual_seed(seed)
    checkpoint = None if weights is None else Checkpoint(weights if isinstance(weights, Weights) else Weights(weights))
    model = load_model(source).eval()
    if checkpoint is not None and (fit := checkpoint.fit(model.state_dict())) is not None:
        _load(model, fit, checkpoint.weights)
        return convert(model, scheme, example_inputs=example_inputs, config=config)
    gm = convert(model, scheme, example_inputs=example_inputs, config=config)
    if checkpoint is None:
        return gm
    fit = checkpoint.fit(gm.state_dict())
    if fit is None:
        forms = {"the float model": model, "the converted model": gm}
        misfits = {form: checkpoint.closest(module.state_dict()) for form, module in forms.items()}
        closest, (missing, unknown) = min(misfits.items(), key=lambda item: sum(map(len, item[1])))
        raise ModelSourceError(
            f"The names in {checkpoint.weights.path} fit neither the float model nor what convert makes of it with "
            f"scheme '{scheme}'; {closest} is closest: it lacks {quoted(missing)}, and {quoted(unknown)} is not in it."
        )
    if not _has_shapes_of(gm, fit.state):  # those of the split graph have the same names
        gm = split_if_ternary(gm, example_inputs)
    _load(gm, fit, checkpoint.weights)
    return gm


def _has_shapes_of(module: nn.Module, state: State) -> bool:
    return all(state[name].shape == tensor.shape for name, tensor in module.state_dict().items() if name in state)


def _load(module: nn.Module, fit: Fit, weights: Weights) -> None:
    path = weights.path
    if weights.key is None and fit.key:
        others = f"; {quoted(fit.others)} would fit, too (--weights {path}:{fit.others[0]})" if fit.others else ""
        warnings.warn(f"the weights are those under '{fit.key}' in {path}{others}", stacklevel=2)
    try:
        module.load_state_dict(fit.state, strict=False)  # the names were compared
    except RuntimeError as error:
        detail = " ".join(line.strip() for line in str(error).splitlines()[1:2])
        raise ModelSourceError(f"The tensors in {path} do not fit the model: {detail or first_line(error)}") from error


def _import(place: str) -> ModuleType:
    path = Path(place)
    if path.suffix == ".py" and not path.is_file():
        raise ModelSourceError(f"There is no file {path}; a model is given as {FORMS}.")
    # As Python does it for programs and for modules, the folder first: a model's file may import its neighbours.
    for folder in (Path.cwd(), path.resolve().parent) if path.suffix == ".py" else (Path.cwd(),):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
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
    except (Exception, SystemExit) as error:  # what is no module may end the program
        raise ModelSourceError(f"{place} cannot be imported: {type(error).__name__}: {first_line(error)}") from error


def _model_of_library(library: str, name: str) -> nn.Module:
    try:
        models = import_torchvision().models  # timm imports it, too
        if library == "timm":
            models = importlib.import_module(library)
    except ImportError as error:
        raise ModelSourceError(f"{library} is not installed: pip install 'bnnfx[{LIBRARIES[library]}]'.") from error
    known = models.list_models(module=models) if library == "torchvision" else models.list_models()
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, 3)) or ", ".join(known[:3])
        raise ModelSourceError(f"{library} has no classification model '{name}'; it has, for example, {close}.")
    model = models.get_model(name, weights=None) if library == "torchvision" else models.create_model(name)
    assert isinstance(model, nn.Module)
    return model
