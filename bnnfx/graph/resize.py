"""Give a module another number of channels, in place."""

from typing import Any

import torch
from torch import nn

from bnnfx.graph.operators import Kind, operator_of_module


def resize(module: nn.Module, inputs: int, outputs: int) -> None:
    """Change a convolution, linear layer, normalization or PReLU to other numbers of channels.

    Every tensor keeps its first entries along each axis, so that a narrower layer starts with the distribution that its
    weights were initialized with, and no random number is drawn. Where it grows, the new entries come from the module's
    own `reset_parameters`. Groups keep their number; a depthwise convolution stays one.

    >>> layer = nn.Conv2d(8, 8, 3)
    >>> resize(layer, 5, 6)
    >>> layer
    Conv2d(5, 6, kernel_size=(3, 3), stride=(1, 1))
    """
    sizes: dict[str, tuple[int, ...]] = {}
    if isinstance(module, nn.Linear):
        sizes["weight"] = (outputs, inputs)
        module.in_features, module.out_features = inputs, outputs
    elif operator_of_module(module).kind is Kind.LAYER:
        layer: Any = module
        if layer.groups == layer.in_channels > 1:
            layer.groups = inputs
        first, second = (inputs, outputs) if operator_of_module(module).transposed else (outputs, inputs)
        sizes["weight"] = (first, second // layer.groups, *layer.kernel_size)
        layer.in_channels, layer.out_channels = inputs, outputs
    elif isinstance(module, nn.PReLU):
        module.num_parameters = inputs
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = inputs
    else:
        module.num_features = inputs  # type: ignore[assignment]
    _fit(module, sizes, outputs)


def _fit(module: nn.Module, sizes: dict[str, tuple[int, ...]], channels: int) -> None:
    """Give every tensor of a module its size: that of `sizes`, or a value per channel; single values stay."""
    old = {name: tensor for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    grows = False
    for name, tensor in old.items():
        size = sizes.get(name, (channels,) if tensor.ndim == 1 else tuple(tensor.shape))
        grows |= any(new > present for new, present in zip(size, tensor.shape, strict=True))
        fresh = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
        if isinstance(tensor, nn.Parameter):
            setattr(module, name, nn.Parameter(fresh, tensor.requires_grad))
        else:
            setattr(module, name, fresh)
    if grows:
        module.reset_parameters()  # type: ignore[operator]
    with torch.no_grad():
        for name, tensor in old.items():
            new = getattr(module, name)
            overlap = tuple(slice(min(pair)) for pair in zip(new.shape, tensor.shape, strict=True))
            new[overlap] = tensor[overlap]
