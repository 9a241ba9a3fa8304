"""The training schedule: what schemes change once per epoch, between the user's own epochs."""

from collections.abc import Iterator
from numbers import Integral

from torch import nn

from bnnfx.arguments import is_number, shown
from bnnfx.nn import ActivationBinarizer, BinaryLayer


class Schedule:
    """Iterate over epochs; at the start of each, binarizers follow their schedule.

    Surrogates are annealed with epoch / epochs, and what a scheme recomputes from its weights (RBNN's rotations) is
    recomputed, in place and without gradient. All state lives in buffers of the model, so checkpoints, `deepcopy` and
    distributed data parallel keep it.

    Args:
        gm: a trainable graph of `bnnfx.convert`, or any module that contains binary layers (a wrapper around it).
        epochs: how many epochs the whole training has.
        start_epoch: the epoch to begin with, to go on from a checkpoint.

    Raises:
        ValueError: there is no binary layer or activation in `gm`, as in a float or packed graph; `epochs` is no
            positive whole number; or `start_epoch` is not in [0, epochs].

    >>> from bnnfx.nn import BinaryLinear
    >>> list(Schedule(BinaryLinear(4, 2), epochs=3, start_epoch=1))
    [1, 2]
    """

    def __init__(self, gm: nn.Module, epochs: int, *, start_epoch: int = 0) -> None:
        if not isinstance(gm, nn.Module) or not any(
            isinstance(m, ActivationBinarizer | BinaryLayer) for m in gm.modules()
        ):
            raise ValueError(
                "Schedule takes a trainable graph of bnnfx.convert, or a module that contains one; there is nothing to "
                f"anneal in this {type(gm).__name__}."
            )
        whole = all(isinstance(number, Integral) and is_number(number) for number in (epochs, start_epoch))
        if not whole or epochs < 1 or not 0 <= start_epoch <= epochs:
            raise ValueError(
                "Schedule needs whole numbers epochs >= 1 and 0 <= start_epoch <= epochs; "
                f"got epochs={shown(epochs)}, start_epoch={shown(start_epoch)}."
            )
        self.gm = gm
        self.epochs = int(epochs)
        self.start_epoch = int(start_epoch)

    def __len__(self) -> int:
        """How many epochs are left from `start_epoch` on."""
        return self.epochs - self.start_epoch

    def __iter__(self) -> Iterator[int]:
        """Yield each epoch, with the model set for it."""
        for epoch in range(self.start_epoch, self.epochs):
            self.step(epoch)
            yield epoch

    def step(self, epoch: float) -> None:
        """Set the model for `epoch` in [0, epochs].

        A whole number also recomputes what is recomputed once per epoch; a fraction only anneals, for loops that want
        the annealing to move with every step.
        """
        if not is_number(epoch) or not 0 <= epoch <= self.epochs:
            raise ValueError(f"epoch is in [0, {self.epochs}]; got {shown(epoch)}.")
        for module in self.gm.modules():
            if isinstance(module, ActivationBinarizer | BinaryLayer):
                module.on_epoch(epoch / self.epochs)
            if isinstance(module, BinaryLayer) and epoch == int(epoch):
                module.between_epochs()
