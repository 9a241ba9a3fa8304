"""Functions of ours that are one node of any graph that is traced of them."""

import functools
from collections.abc import Callable
from typing import ParamSpec

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

P = ParamSpec("P")


def one_node(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Let `torch.fx` call a function as a whole, as it does torch's own: a graph that was pickled is traced again."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        given = (*args, *kwargs.values())
        if has_torch_function(given):
            return handle_torch_function(call, given, *args, **kwargs)
        return function(*args, **kwargs)

    return call
