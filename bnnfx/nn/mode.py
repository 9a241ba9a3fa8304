"""A function whose arguments follow `train()` and `eval()`."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


class CallByMode(nn.Module):
    """Call a function with other arguments in training than in evaluation.

    What a model writes as `F.dropout2d(x, 0.1, self.training)` is a call with a constant once it is traced; traced in
    both modes it is two, and this module is both.

    Args:
        function: any function, found again by its name when the module is unpickled.
        training: the arguments that differ, by name or position, as training has them.
        evaluation: the same as evaluation has them.

    >>> import torch
    >>> from torch.nn import functional as F
    >>> halve = CallByMode(F.dropout, {"training": True}, {"training": False})
    >>> halve.eval()(torch.ones(2), p=0.5)
    tensor([1., 1.])
    """

    def __init__(
        self,
        function: Callable[..., Any],
        training: Mapping[str | int, Any],
        evaluation: Mapping[str | int, Any],
    ) -> None:
        super().__init__()
        self.function = function
        self.in_training = dict(training)
        self.in_evaluation = dict(evaluation)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; arguments that follow the mode take the place of those given."""
        positional, named = self.arguments(self.training, args, kwargs)
        return self.function(*positional, **named)

    def arguments(
        self, training: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the function in one mode."""
        chosen = self.in_training if training else self.in_evaluation
        positional = tuple(chosen.get(place, given) for place, given in enumerate(args))
        named = {**kwargs, **{name: value for name, value in chosen.items() if isinstance(name, str)}}
        return positional, named

    def extra_repr(self) -> str:
        """The function and what differs."""
        name = getattr(self.function, "__name__", repr(self.function))
        return f"{name}, training={self.in_training}, evaluation={self.in_evaluation}"
