"""Argument checks of the reference operators: a wrong shape is an error that shows it, never a wrong answer."""

import torch
from torch import Tensor

from bnnfx.numerics.bits import row_bytes


def require(condition: bool, op: str, rule: str, **given: object) -> None:
    """Raise ValueError naming the operator, the rule that is broken, and what was given."""
    if not condition:
        shown = ", ".join(f"{name} = {_describe(value)}" for name, value in given.items())
        raise ValueError(f"bnnfx::{op}: {rule}; got {shown}")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)


def require_convolution(
    op: str,
    x: Tensor,
    weight: Tensor,
    channels: int,
    groups: int,
    low: int,
    per_output: dict[str, tuple[Tensor, torch.dtype]],
    *,
    copies: int = 1,
) -> None:
    """The checks that the convolution operators share.

    `per_output` holds the tensors with one value per output channel and their element types; `copies` tells how many
    output channels there are per filter.
    """
    require(low in (-1, 0), op, "low, the value of a 0 bit of x, is -1 or 0", low=low)
    require(
        x.dtype == torch.uint8 and x.ndim == 4 and x.shape[3] == row_bytes(channels),
        op,
        f"x is uint8[N, H, W, {row_bytes(channels)}] for {channels} channels",
        x=x,
    )
    require(
        groups > 0
        and channels % groups == 0
        and weight.dtype == torch.uint8
        and weight.ndim == 4
        and weight.shape[3] == row_bytes(channels // groups)
        and weight.shape[0] % groups == 0,
        op,
        f"weight is uint8[O, kh, kw, row_bytes(channels / groups)], groups divide channels = {channels} and O",
        weight=weight,
        groups=groups,
    )
    for name, (tensor, dtype) in per_output.items():
        require(
            tensor.dtype == dtype and tensor.shape == (copies * weight.shape[0],),
            op,
            f"{name} is {str(dtype).removeprefix('torch.')}[{copies * weight.shape[0]}]",
            **{name: tensor},
        )
