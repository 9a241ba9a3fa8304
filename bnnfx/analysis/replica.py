"""A copy of a model to take measurements on: its forward pass is that of the original, and changes no state."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bnnfx.errors import AnalysisError
from bnnfx.nn import BinaryLayer
from bnnfx.private_interfaces import Dropout, NormWithStatistics, changes_of


def replica(model: nn.Module) -> nn.Module:
    """A copy whose parameters ask for gradients.

    Two things that a forward pass in training mode changes are put aside, with the same result: batch norms take the
    statistics of the batch without averaging them, and schemes that write a projected weight back (XNOR-Net) only
    compute with it.
    """
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, NormWithStatistics) and module.training:
            module.track_running_stats = False
            module.running_mean = module.running_var = None
        if isinstance(module, BinaryLayer) and module.binarizer.projects:
            module.training = False
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        parameter.grad = None
    return copied


@contextmanager
def same_every_time(model: nn.Module) -> Iterator[None]:
    """Watch a forward pass that must give the same result whenever it is repeated; keeps the random state.

    Raises:
        AnalysisError: it drew random numbers, or changed a buffer.
    """
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    before = {name: (b, changes_of(b)) for name, b in model.named_buffers()}
    with torch.random.fork_rng(devices):
        states = _random_states(devices)
        yield
        random = any(not torch.equal(a, b) for a, b in zip(states, _random_states(devices), strict=True))
    if random:
        droppers = [n for n, m in model.named_modules() if m.training and isinstance(m, Dropout)]
        where = f"dropout in training mode: {', '.join(droppers)}" if droppers else "a random operation"
        raise AnalysisError(
            f"The forward pass draws random numbers ({where}), so the loss at two shifted weights would differ without "
            "the shift. Turn it off (its p = 0, or .eval() on it) and measure again."
        )
    changed = [name for name, b in model.named_buffers() if name not in before or not _is_same(before[name], b)]
    if changed:
        raise AnalysisError(
            f"The forward pass changes the buffers {', '.join(changed)}, so that a second one gives another result. "
            "Measure in evaluation mode, .eval()."
        )


def _is_same(before: tuple[Tensor, int], buffer: Tensor) -> bool:
    return before[0] is buffer and before[1] == changes_of(buffer)


def _random_states(devices: list[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
