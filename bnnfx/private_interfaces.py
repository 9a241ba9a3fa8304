"""What this package uses of torch and ONNX Runtime that they do not document: all of it, and why.

When a release of theirs breaks something, it is here. Nothing else in the package names what begins with an underscore
there, or a module behind it; `tests/test_private_interfaces.py` looks. ONNX Runtime is imported when it is asked for.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._ops import _OpNamespace as OperatorNamespace
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormWithStatistics
from torch.nn.modules.dropout import _DropoutNd as Dropout
from torch.nn.modules.lazy import LazyModuleMixin as LazyModule
from torch.nn.utils import prune

__all__ = [
    "TRILINEAR",
    "BatchNorm",
    "Dropout",
    "FakeTensorMode",
    "LazyModule",
    "NormWithStatistics",
    "OperatorNamespace",
    "accept_any_axes",
    "assertion",
    "changes_of",
    "compiled_module",
    "convolve",
    "count_hooks",
    "has_hooks",
    "has_hooks_before",
    "hook_tables",
    "hooks_before",
    "invalid_argument",
    "invalid_graph",
    "is_aten",
    "overload_of",
    "pruned_tensor",
    "rename",
    "take_hooks",
    "tracer_of",
    "unknown_operator",
]

# OperatorNamespace: the class of `torch.ops.<namespace>`. A subclass registers operators when one is asked for; torch
# offers to load a shared library then, and nothing for operators that are written in Python.

# FakeTensorMode: runs a graph for its shapes alone, without memory or arithmetic, with weights that are no fakes. What
# is public runs a whole program (`torch.export`) or wants every weight on the device `meta`.

# assertion: the one that a graph keeps though nothing reads it, and that models call to be traced and scripted.
assertion = torch._assert

# BatchNorm: what all batch norms derive from, those of one to three axes, the lazy and the synchronized ones, and those
# of other packages. The public classes have no common base but `nn.Module`. It is the same with Dropout, and with
# NormWithStatistics, which takes in the instance norms.

# LazyModule: what has no weight before its first call; it is documented, under a private module.

TRILINEAR = torch.ops.aten._trilinear
"""The operator behind `F.bilinear`, which torch's counter of operations does not know."""


def overload_of(op: Any) -> tuple[Callable[..., Any], tuple[str, ...], tuple[str, ...]]:
    """What a graph calls for an operator that `torch.library.custom_op` returned, and its arguments.

    The public name of the overload is `torch.ops.<namespace>.<name>.default`, which looks the operator up anew; that of
    its schema does not exist.

    Returns:
        The overload; the names of the leading arguments, which are tensors; the names of the others.
    """
    arguments = op._opoverload._schema.arguments
    tensors = tuple(a.name for a in arguments if isinstance(a.type, torch.TensorType))
    return op._opoverload, tensors, tuple(a.name for a in arguments[len(tensors) :])


def compiled_module(module: nn.Module) -> nn.Module | None:
    """What `torch.compile` returned this module for; the type of what it returns is in a private module."""
    return module._modules.get("_orig_mod")


def is_aten(target: object) -> bool:
    """Whether a graph calls an operator of ATen by its overload; the type of overloads is in a private module."""
    return isinstance(target, OpOverload) and target.namespace == "aten"


def pruned_tensor(hook: prune.BasePruningMethod) -> str:
    """The name of the tensor that a pruning mask is on; `prune.remove` asks for it."""
    return hook._tensor_name


def hook_tables(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """What is called before and behind the module's own `forward`, to be exchanged in place."""
    return module._forward_pre_hooks, module._forward_hooks


def take_hooks(module: nn.Module, source: nn.Module) -> None:
    """Let a module call the hooks around `forward` that another one has."""
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        for name in (kind, f"{kind}_with_kwargs"):
            getattr(module, name).update(getattr(source, name))


_HOOKS = (
    *("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


def count_hooks(module: nn.Module) -> int:
    """How many hooks of all kinds a module and its own parameters have; they cannot be asked for."""
    own = sum(len(getattr(module, kind, None) or ()) for kind in _HOOKS)
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return own + sum(len(getattr(p, kind, None) or ()) for p in module.parameters(recurse=False) for kind in kinds)


def hooks_before(module: nn.Module) -> list[Any]:
    """What is called before the module's own `forward`."""
    return list(module._forward_pre_hooks.values())


def has_hooks_before(module: nn.Module) -> bool:
    """Whether something is called before the module's own `forward`; hooks can be set, but not asked for."""
    return bool(module._forward_pre_hooks)


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before or behind the module's own `forward`."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def convolve(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """What a convolution computes with this weight and without a bias; `F.conv2d` does not know its padding mode."""
    result: Tensor = layer._conv_forward(x, weight, None)
    return result


def changes_of(tensor: Tensor) -> int:
    """How often a tensor was written to; its values before would have to be kept to find out otherwise."""
    return tensor._version


def tracer_of(graph: fx.Graph) -> Any:
    """The tracer that pickling traces a graph again with; it can be given to a new graph, and not be asked for."""
    return graph._tracer_cls


def rename(node: fx.Node, name: str) -> None:
    """Give a node a name, made unique in its graph; `Node.name` can be set, but not made unique."""
    node._rename(name)


def accept_any_axes(batch_norm: BatchNorm) -> None:
    """Take the check of its input's axes out of a batch norm's forward; while it is traced, they have no number."""
    batch_norm._check_input_dim = lambda input: None  # type: ignore[method-assign]


def invalid_argument() -> type[Exception]:
    """What ONNX Runtime raises when the inputs of a run do not fit; its public exceptions are those of Python alone."""
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    return InvalidArgument  # type: ignore[no-any-return]


def invalid_graph() -> type[Exception]:
    """What ONNX Runtime raises for a node that its operator does not take."""
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph

    return InvalidGraph  # type: ignore[no-any-return]


def unknown_operator() -> type[Exception]:
    """What ONNX Runtime raises for a node that no operator is known for."""
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    return Fail  # type: ignore[no-any-return]
