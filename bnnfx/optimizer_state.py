"""What an optimizer knows of a network, for the network that `bnnfx.split` makes of it."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from bnnfx.arguments import require_instance

_POWERS = {
    **dict.fromkeys(("momentum_buffer", "exp_avg"), 1),
    **dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"), 2),
}
"""Averages that torch's optimizers keep per value of a parameter, and the power of the gradient that they average."""


def split_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, split_model: nn.Module) -> dict[str, Any]:
    """The state of an optimizer of `model`, for one of `split_model = bnnfx.split(model)`.

    Make the new optimizer as the old one was made, with the parameters in the same order and groups, and load the
    result into it: learning rates and step counts go on.

    An average m of gradients becomes one for each half, by the chain rule. Halves that start as `c w` both have
    gradients g1 and g2 with `g = c (g1 + g2)`, so each is expected to be `g / (2 c)`: m itself for a weight, of which
    split makes `[W/2, W/2]` (c = 1/2), and m/2 for the parameters of a batch norm, which it copies (c = 1). Averages of
    squares get the square of that factor. It is an estimate, as the pseudo-gradients of two binary activations are not
    those of the ternary one.

    Args:
        optimizer: of `model`, with momentum (SGD, RMSprop), moments (Adam and its kin, Adagrad), or no state yet.
        model: the graph that was split.
        split_model: what `split` returned for it; its parameters have the same names.

    Returns:
        A dictionary for `load_state_dict`. Parameters whose state is of another kind start without one; a warning names
        them.

    Raises:
        ValueError: the optimizer holds a parameter that `model` does not, or the models do not fit each other; or an
            argument is something else.
    """
    require_instance("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
    require_instance("model", model, nn.Module, "a torch.nn.Module")
    require_instance("split_model", split_model, nn.Module, "a torch.nn.Module")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    after = dict(split_model.named_parameters())
    packed = optimizer.state_dict()
    state, fresh = {}, []
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        name = names.get(id(parameter))
        if name is None or name not in after:
            where = "split_model lacks" if name else "model does not have: give the model that it optimizes"
            raise ValueError(f"The optimizer holds a parameter ({name or list(parameter.shape)}) that {where}.")
        if index not in packed["state"]:
            continue
        entries = _split_entries(packed["state"][index], name, parameter, after[name])
        if entries is None:
            fresh.append(name)
        else:
            state[index] = entries
    if fresh:
        warnings.warn(
            f"{type(optimizer).__name__} keeps state of a kind that cannot be split; without state start: "
            f"{', '.join(fresh)}.",
            stacklevel=2,
        )
    return {"state": state, "param_groups": packed["param_groups"]}


def _split_entries(entries: dict[str, Any], name: str, before: Tensor, after: Tensor) -> dict[str, Any] | None:
    """The state of one parameter, or None if some of it is of an unknown kind."""
    doubled = [2 * size if axis == min(1, before.ndim - 1) else size for axis, size in enumerate(before.shape)]
    if after.shape == before.shape:
        return {key: value.clone() if isinstance(value, Tensor) else value for key, value in entries.items()}
    if list(after.shape) != doubled:
        raise ValueError(
            f"'{name}' is {list(before.shape)} in model and {list(after.shape)} in split_model, which split makes "
            f"{doubled}: they are not a model and its split form."
        )
    result = {}
    for key, value in entries.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            result[key] = value.clone() if isinstance(value, Tensor) else value
        elif key in _POWERS and value.shape == before.shape:
            factor = 1.0 if before.ndim > 1 else 0.5 ** _POWERS[key]
            result[key] = torch.cat([value * factor] * 2, dim=min(1, before.ndim - 1))
        else:
            return None
    return result
