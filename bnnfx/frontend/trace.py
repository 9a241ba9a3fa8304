"""Tracing a user's module, in both modes; what cannot be traced is kept whole, as a leaf, with the reason."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from bnnfx.errors import ConversionError, first_line
from bnnfx.frontend.functions import FailedInside, Functions
from bnnfx.frontend.hooks import REMEDY
from bnnfx.frontend.modes import differing_modules, follow_both_modes
from bnnfx.frontend.tracer import Tracer, Untraceable
from bnnfx.frontend.written_out import WrittenOut, layers_of
from bnnfx.graph.dataflow import WEIGHT_LAYERS, module_calls
from bnnfx.graph.given_models import copy_of, copy_of_modules, obstacle, require_module
from bnnfx.graph.graph_module import BinaryGraphModule, Held
from bnnfx.graph.inplace import unsafe_calls, unsafe_writes, write_back
from bnnfx.graph.known_sizes import KnownSizes
from bnnfx.graph.operators import DROPS_MARK, Kind, operator_of_call
from bnnfx.graph.record import Remark
from bnnfx.private_interfaces import BatchNorm, accept_any_axes


class _Leaf:
    """Why a submodule is kept whole, and what would change it."""

    def __init__(self, reason: str, remedy: str, writes: bool = False) -> None:
        self.reason = reason
        self.remedy = remedy
        self.writes = writes


class _InMode(NamedTuple):
    """What was traced in one mode.

    Attributes:
        gm: the graph.
        gives_input: the submodules that are called in it, and whether each gives nothing but its first input.
    """

    gm: BinaryGraphModule
    gives_input: dict[str, bool]


class Traced(NamedTuple):
    """What `trace` gives.

    Attributes:
        gm: the graph.
        remarks: one per submodule that was kept as a leaf: because it cannot be traced, because it does something else
            in training than in evaluation, or because of what it writes in place.
        modes: those in which the graph does what the model does, by what `training` is there.
    """

    gm: BinaryGraphModule
    remarks: list[Remark]
    modes: tuple[bool, ...]


def trace(
    model: nn.Module,
    whole: Mapping[str, str] | None = None,
    example_inputs: Sequence[Tensor] | None = None,
    changing: Collection[str] = (),
    functions: Functions | None = None,
) -> Traced:
    """Trace a copy of `model`, in training and in evaluation: the graph follows `train()` and `eval()` as it does.

    What the model's own `train()` holds in evaluation, or in training, the graph holds, too.

    Args:
        model: any module.
        whole: the submodules to keep as leaves whatever they do, each with the reason.
        example_inputs: what its forward is called with, if that is known: other arguments have their defaults in the
            graph, and decisions about sizes, but for that of the batch, are made for these.
        changing: the submodules with hooks that change values, which are kept as leaves; other hooks of what is traced
            into are left out.
        functions: which functions are called as a whole, and not traced into; grows by those that cannot be.

    Raises:
        ConversionError: the forward of the model itself cannot be traced, or it is no plain module that can be copied.
    """
    require_module(model)
    modes = {name: module.training for name, module in model.named_modules(remove_duplicate=False)}
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters(remove_duplicate=False)}
    out = WrittenOut(copy_of(model), {*(whole or {}), *changing})
    model = out.model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    traced_into = [path for path in changing if path and not isinstance(model.get_submodule(path), WEIGHT_LAYERS)]
    leaves = {path: _Leaf(_CHANGED, REMEDY) for path in traced_into}
    leaves |= {path: _Leaf(reason, _TRACED_WRONG) for path, reason in (whole or {}).items()}
    held = {training: _held(model, training) for training in (False, True)}
    remarks: list[Remark] = []
    _allow_tracing_batch_norms(model)
    functions = Functions() if functions is None else functions
    while True:
        model.eval()
        evaluation = _trace(out, leaves, example_inputs, functions)
        both, as_whole = set(leaves), len(functions)
        model.train()
        graphs = {False: evaluation, True: _trace(out, leaves, example_inputs, functions)}
        for path in leaves.keys() - both:
            _mark_if_identity(model, path, evaluation)
        with torch.no_grad():  # a subclass of a batch norm counts its batches while it is traced
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        twice = {
            path: _Leaf(_BOTH_WAYS, _ONE_WAY)
            for path in out.called_both_ways(_called(*(traced.gm for traced in graphs.values())))
        }
        leaves |= twice
        if leaves.keys() != both or len(functions) != as_whole:
            continue
        try:
            found = dict(_obstacles(model, graphs, leaves))
        except ConversionError:
            if functions.keep_whole([""]):
                continue
            raise
        if not found:
            break
        if functions.keep_whole(found):
            continue
        assert found.keys().isdisjoint(leaves), "a leaf is found once"
        if found.keys() == {""}:
            remarks.append(Remark(type(model).__name__, found[""].reason, found[""].remedy))
            break
        leaves |= {path: leaf for path, leaf in found.items() if path}
    called = _called(*(traced.gm for traced in graphs.values()))
    one_mode = (modes[""],) if remarks else ()
    gm = graphs[modes[""] if one_mode else False].gm
    if not one_mode:
        follow_both_modes(gm, graphs[True].gm.graph, model)
    gm.recompile()
    gm.hold(held)
    gm.rename(out.renamed(gm))
    for name, module in gm.named_modules():
        module.training = modes.get(name, modes[""])
    for name, parameter in gm.named_parameters():
        if parameter.requires_grad != asked.get(name, parameter.requires_grad):
            parameter.requires_grad_(asked[name])
    for path in sorted(called - leaves.keys()):
        leaf = _no_plain_module(model, path)
        if leaf is not None:
            leaves[path] = leaf
    leaves |= {path: _Leaf(reason, _WRITE_OUT) for path, reason in out.kept.items() if path not in leaves}
    remarks += [
        Remark(path, f"kept as a float leaf, {leaf.reason}", leaf.remedy)
        for path, leaf in leaves.items()
        if not getattr(model.get_submodule(path), DROPS_MARK, False) and (path in called or leaf.reason != _CHANGED)
    ]
    return Traced(gm, remarks, modes=one_mode or (False, True))


def _called(*graphs: fx.GraphModule) -> set[str]:
    """The modules that graphs call as a whole."""
    return {str(node.target) for graph in graphs for node in module_calls(graph, nn.Module)}


def _no_plain_module(model: nn.Module, path: str) -> _Leaf | None:
    """Why a submodule is kept whole, if that is because of what it is."""
    refusal = obstacle(model.get_submodule(path))
    return None if refusal is None else _Leaf(f"it {refusal.reason}", f"as this submodule, {refusal.remedy}")


def _held(model: nn.Module, training: bool) -> Held:
    """What a model's own `train()` does not switch, and the parameters whose gradient it turns off."""
    asked = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    model.train(training)
    return Held(
        frozenset(path for path, module in model.named_modules() if module.training != training),
        frozenset(name for name, parameter in asked if not parameter.requires_grad),
    )


def _trace(
    out: WrittenOut, leaves: dict[str, _Leaf], example_inputs: Sequence[Tensor] | None, functions: Functions
) -> _InMode:
    """The graph of a model in the mode that it is in; `leaves` and `functions` grow by what cannot be traced."""
    model = out.model
    own = set(vars(model))
    while True:
        for path in leaves:
            out.restore(path)
        try:
            known = None if example_inputs is None else KnownSizes(model, example_inputs)
            given = None if example_inputs is None else len(example_inputs)
            called = copy_of_modules(model)  # what its modules keep of the call is no part of the graph
            tracer = Tracer(frozenset(leaves), given, known, functions)
            graph = tracer.trace(called)
            functions.unmark_results()
            _drop_unread_sizes(graph)
            for name in {str(node.target) for node in graph.nodes if node.op == "get_attr"} & vars(called).keys():
                setattr(model, name, getattr(called, name))  # a tensor that forward made, and torch keeps there
            gm = BinaryGraphModule(model, graph, type(model).__name__)
            write_back(gm)
            return _InMode(gm, tracer.gives_input)
        except FailedInside:
            continue
        except Untraceable as failure:
            leaves[failure.path] = _no_plain_module(model, failure.path) or _Leaf(
                f"torch.fx cannot trace it: {first_line(failure.cause)}", _NO_DECISIONS
            )
        except Exception as error:
            raise ConversionError(
                f"{type(model).__name__}.forward cannot be traced by torch.fx: {first_line(error)} Move the part that "
                "depends on the values or the number of its inputs into a submodule of its own (it is then kept as a "
                "float leaf), or rewrite it with tensor operations."
            ) from error
        finally:
            for name in set(vars(model)) - own:  # tensors that forward makes, under names that count up
                delattr(model, name)


def _drop_unread_sizes(graph: fx.Graph) -> None:
    """Remove what asks for a size, a device or an element type that nothing reads, in one mode or in both."""
    for node in reversed(graph.nodes):
        if not node.users and operator_of_call(node).kind is Kind.SIZE:
            graph.erase_node(node)


def _obstacles(
    model: nn.Module, graphs: Mapping[bool, _InMode], leaves: dict[str, _Leaf]
) -> Iterator[tuple[str, _Leaf]]:
    """What has to become a leaf, by its path; the empty path is the model itself, which cannot.

    Raises:
        ConversionError: the model's own forward writes in place what cannot be made functional.
    """
    for gm, _ in graphs.values():
        writers = {path for path, leaf in leaves.items() if leaf.writes}
        for node, reason in (*unsafe_writes(gm), *unsafe_calls(gm, writers)):
            path = _owner(node, leaves)
            if not path:
                raise ConversionError(
                    f"{type(model).__name__}.forward cannot be converted: '{node.name}' ({_target(node)}) {reason}. "
                    "Write it without the in-place call, such as y = y * 2 for y.mul_(2), or move it into a submodule "
                    "of its own, which is then kept as a float leaf."
                )
            yield path, _Leaf(f"'{node.name}' in it {reason}", _FUNCTIONAL, writes=True)
    in_both = graphs[True].gives_input.keys() & graphs[False].gives_input.keys()
    for path in differing_modules(graphs[True].gm.graph, graphs[False].gm.graph, in_both):
        if path:
            _mark_if_identity(model, path, graphs[False])
            yield path, _Leaf("its forward does something else in training than in evaluation", _BOTH_MODES)
        else:
            yield "", _Leaf("converted for one mode only, its forward does something else in the other", _APART)


def _mark_if_identity(model: nn.Module, path: str, evaluation: _InMode) -> None:
    """Note of a submodule that it is called in evaluation, and does nothing there but give its input."""
    if evaluation.gives_input.get(path) and not any(path in _stack(node) for node in evaluation.gm.graph.nodes):
        setattr(model.get_submodule(path), DROPS_MARK, True)


def _owner(node: fx.Node, leaves: dict[str, _Leaf]) -> str:
    """The innermost submodule whose forward makes this call; empty for the model itself."""
    own = str(node.target) if node.op == "call_module" else None
    return next((path for path in reversed(_stack(node)) if path and path != own and path not in leaves), "")


def _stack(node: fx.Node) -> list[str]:
    """The submodules whose forward a node was traced in, from the outermost on."""
    return [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]


def _target(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))


def _allow_tracing_batch_norms(model: nn.Module) -> None:
    """Subclasses of batch norms check the number of axes of their input, which has no value while it is traced."""
    for module in model.modules():
        if isinstance(module, BatchNorm) and not type(module).__module__.startswith("torch."):
            accept_any_axes(module)


_CHANGED = "it has a hook that changes what goes in or comes out, or may"
_NO_DECISIONS = (
    "write its forward without Python decisions about values (torch.where for an if), or move only the part that needs "
    "them into a submodule of its own"
)
_TRACED_WRONG = (
    "write its forward without what tracing does not see, such as Python state that changes or values read out of "
    "tensors; or move only that part into a submodule of its own"
)
_FUNCTIONAL = "write it without the in-place call, such as y = y * 2 for y.mul_(2)"
_BOTH_WAYS = "it is called with one tensor for query, key and value, and with several"
_ONE_WAY = "give each way of calling it a module of its own"
_WRITE_OUT = "write what it computes as a module of your own, whose linear layers forward calls"
_BOTH_MODES = "move only the part that depends on self.training into a submodule of its own"
_APART = (
    "move the part that depends on self.training into a submodule of its own, which then follows train() and eval()"
)


def weight_layers(model: nn.Module, gm: fx.GraphModule | None = None) -> dict[str, str]:
    """Every layer with a weight that a model has, whether its forward calls it or not: names and types.

    Args:
        model: the user's model.
        gm: what was traced of it, which has layers in the place of a module that was written out.

    >>> weight_layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sequential(nn.LSTM(8, 8))))
    {'0': 'Conv2d', '2.0': 'LSTM'}
    """
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, WEIGHT_LAYERS):
            found |= dict(layers_of(name, module, gm)) or {name: type(module).__name__}
    return found
