"""One operator in one place of a network, taken through the whole chain, and what came of it."""

import copy
import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import bnnfx
from bnnfx import LayerConfig
from bnnfx.nn import ActivationBinarizer, BinaryConv2d
from helpers.graphs import full_width
from helpers.operators import C, Operator, example, generator
from helpers.outcomes import (
    Outcome,
    Wrong,
    canonical_graphs,
    check_canonical,
    check_lowered,
    equal,
    outcome_of,
    refusals,
    run,
    train_one_step,
    varies,
    worst,
)


class Network(nn.Module):
    """A float layer, a binary one, the operator in a place of its own, a binary layer, and a float one."""

    def __init__(self, op: Operator) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.conv1, self.bn = _conv(self.image(op)), _conv(C), nn.BatchNorm2d(C)
            self.relu = nn.ReLU()
            self.operator = op.module()
            self.conv2, self.last = _conv(self.channels(op)), _conv(C)
        self.bn.weight.data.copy_(torch.tensor([1.5, -1.0, 0.75, -2.0]))  # bits on both sides of 0, whatever the sign
        nn.init.normal_(self.bn.bias, std=0.25, generator=generator())

    def image(self, op: Operator) -> int:
        """Channels in front of the first layer."""
        return C

    def channels(self, op: Operator) -> int:
        """Channels in front of the second binary layer."""
        return C

    def middle(self, u: Tensor) -> Tensor:
        """From the batch norm behind the first binary layer to the second one."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        u = self.bn(self.conv1(self.first(x)))
        return self.last(self.conv2(self.middle(u)))


class BehindRelu(Network):
    def channels(self, op: Operator) -> int:
        return op.shape[1]

    def middle(self, u: Tensor) -> Tensor:
        return self.operator(self.relu(u))


class BehindNorm(Network):
    def channels(self, op: Operator) -> int:
        return op.shape[1]

    def middle(self, u: Tensor) -> Tensor:
        return self.operator(u)


class Outside(Network):
    """The operator in the float part: in front of the first layer and behind the last."""

    def __init__(self, op: Operator) -> None:
        super().__init__(op)
        self.after = op.module()

    def image(self, op: Operator) -> int:
        return op.shape[1]

    def middle(self, u: Tensor) -> Tensor:
        return self.relu(u)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(super().forward(self.operator(x)))


class ResultUnused(Network):
    def channels(self, op: Operator) -> int:
        return op.shape[1]  # transpose_ gives the map other axes

    def middle(self, u: Tensor) -> Tensor:
        self.operator(u)
        return u


class ThroughView(Network):
    def middle(self, u: Tensor) -> Tensor:
        v = u[:, :2]
        self.operator(v)
        return u


PLACES: tuple[type[Network], ...] = (BehindRelu, BehindNorm, Outside)
INPLACE_PLACES: tuple[type[Network], ...] = (ResultUnused, ThroughView)


def _conv(inputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, C, 3, padding=1)


def judge(op: Operator, place: type[Network], *, scheme: str = "xnor", file: Path | None = None) -> Outcome | None:
    """The worst outcome of conversions in both modes, one of them with example inputs.

    Args:
        op: the operator.
        place: where it stands.
        scheme: of `bnnfx.convert`.
        file: where to export the packed network to; it is not exported without.

    Returns:
        None where the float network itself does not run, or does not train though the operator does.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            model = place(op)
            finite = train_one_step(copy.deepcopy(model), example()) if op.trains else False
            for training in (False, True):
                run(copy.deepcopy(model), example(), training)
        except Exception:
            return None
        name = op.name.rpartition(".")[2]
        return worst(
            [
                outcome_of(
                    lambda training=training: _chain(model.train(training), op, scheme, finite, file),
                    *(name, "'operator", "'after"),
                )
                for training in (False, True)
            ]
        )


def _chain(model: Network, op: Operator, scheme: str, finite: bool, file: Path | None) -> str:
    given = not model.training  # one of each: with and without example inputs
    # the operator stands where it is, also where a sign does not show it
    layers = dict.fromkeys(("first", "last"), LayerConfig(binarize=False))
    config = replace(full_width(scheme), layers=layers, adapt=())
    with canonical_graphs() as canonical:
        gm = bnnfx.convert(model, scheme, example_inputs=(example(),) if given else None, config=config)
    check_canonical(canonical[0], model, example())
    for training in (False, True):
        _check_maps(gm, model, op, training)
    if op.trains and not train_one_step(gm, example()) and finite:
        raise Wrong("a gradient is not finite, and those of the float network are")
    blind = op.random[False] or _is_steep(gm, model)
    check_lowered(gm, example(), compare=not blind, file=file if given else None)
    return refusals(gm, "conv2")


class _Recorder(fx.Interpreter):
    """What each node was given first, at that moment, and what it gave."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.read: dict[str, Tensor] = {}
        self.gave: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        sources = [self.env[source] for source in n.all_input_nodes]
        if sources and isinstance(sources[0], Tensor):
            self.read[n.name] = sources[0].clone()
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.gave[n.name] = value.clone()
        return value


def _check_maps(gm: fx.GraphModule, model: Network, op: Operator, training: bool) -> None:
    """Each map of the trainable graph is what the user's own modules make of the map that it comes from."""
    gm = copy.deepcopy(gm).train(training)
    recorder = _Recorder(gm)
    torch.manual_seed(1)
    with torch.no_grad():
        out = recorder.run(example())
    calls = {str(node.target): node for node in gm.graph.nodes if node.op == "call_module"}
    mode = "in train()" if training else "in eval()"

    def users(part: Callable[[Network], Tensor]) -> Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            return part(copy.deepcopy(model).train(training))

    if isinstance(model, Outside):
        if not equal(recorder.read[calls["first"].name], users(lambda m: m.operator(example()))):
            raise Wrong(f"another map in front of 'first' {mode}")
        # of two that draw numbers, the second one draws others than it would alone
        if not op.random[training] and not equal(
            out, users(lambda m: m.after(recorder.gave[calls["last"].name].clone()))
        ):
            raise Wrong(f"another map behind 'last' {mode}")
    u = recorder.gave[calls["bn"].name]
    wanted = users(lambda m: m.middle(u.clone()))
    conv2 = calls["conv2"]
    if not isinstance(gm.get_submodule("conv2"), BinaryConv2d):
        if not equal(recorder.read[conv2.name], wanted):
            raise Wrong(f"another map in front of the float 'conv2' {mode}")
        return
    binarizer = conv2.all_input_nodes[0]
    while not _calls(gm, binarizer, ActivationBinarizer):
        binarizer = binarizer.all_input_nodes[0]
    bits = recorder.gave[binarizer.name]
    if binarizer is not conv2.all_input_nodes[0]:  # a dropout is applied to the bits
        if not equal(recorder.read[conv2.name], users(lambda m: m.operator(bits.clone()))):
            raise Wrong(f"another map between the bits and 'conv2' {mode}")
    else:
        found = recorder.read[_first_new_norm(gm, model, binarizer).name]
        allowed = _with_any_relus_removed(lambda: users(lambda m: m.middle(u.clone())))
        if any(equal(wanted, clipped) for clipped in (u.relu(), u.clamp(0, 6))):
            allowed.append(u)  # the operator is a ReLU itself
        if not any(equal(found, map_) for map_ in allowed):
            raise Wrong(f"another map in front of 'conv2' {mode}")
        if bool((found.isnan() & ~wanted.isnan()).any()):
            raise Wrong(f"NaN in front of 'conv2', where the float network has none, {mode}")
    if training and varies(wanted) and not varies(bits):  # in evaluation, the statistics are of no data yet
        raise Wrong("constant bits in front of 'conv2'")


def _calls(gm: fx.GraphModule, node: fx.Node, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(gm.get_submodule(str(node.target)), kind)


def _first_new_norm(gm: fx.GraphModule, model: Network, binarizer: fx.Node) -> fx.Node:
    """Back over the batch norms in front of a binarizer that the user's network does not have."""
    node, own = binarizer, dict(model.named_modules())
    while _calls(gm, source := node.all_input_nodes[0], nn.BatchNorm2d) and str(source.target) not in own:
        node = source
    return node


def _is_steep(gm: fx.GraphModule, model: Network) -> bool:
    """Whether the operator makes more of a rounding than `verify` can know of: near a pole, at a jump."""
    recorder = _Recorder(copy.deepcopy(gm).eval())
    with torch.no_grad():
        recorder.run(example())
        name, part = ("last", model.eval().after) if isinstance(model, Outside) else ("bn", model.eval().middle)
        y = next(recorder.gave[node.name] for node in gm.graph.nodes if node.target == name)
        noise = _ROUNDING * y.abs().max() * (2 * torch.rand(y.shape, generator=generator()) - 1)
        moved, there = part(y + noise).nan_to_num(), part(y.clone()).nan_to_num()
    return bool((moved - there).abs().max() > 10 * _ROUNDING * there.abs().max())


_ROUNDING = 1e-5  # of the largest value: what `verify` allows for the sums of these networks


class _WithoutRelus(TorchFunctionMode):
    """The user's network as a scheme has it that removes ReLUs in front of a sign: those of these numbers, in order."""

    def __init__(self, removed: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.removed = removed
        self.met = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_relu(func, args, kwargs):
            return func(*args, **kwargs)
        self.met += 1
        return args[0] if self.met - 1 in self.removed else func(*args, **kwargs)


_RELUS = (torch.relu, torch.relu_, F.relu, F.relu6, Tensor.relu, Tensor.relu_)
_CLAMPS = (torch.clamp, torch.clip, torch.clamp_min, Tensor.clamp, Tensor.clip, Tensor.clamp_min)


def _is_relu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func in _CLAMPS:
        low, high = (*args[1:], *([None] * (3 - len(args))))
        low, high = kwargs.get("min", low), kwargs.get("max", high)
        return isinstance(low, int | float) and low == 0 and high is None
    return func in _RELUS


def _with_any_relus_removed(part: Callable[[], Tensor]) -> list[Tensor]:
    with _WithoutRelus() as all_of_them:
        part()
    subsets = [
        chosen
        for count in range(all_of_them.met + 1)
        for chosen in itertools.combinations(range(all_of_them.met), count)
    ]
    results = []
    for removed in subsets:
        with _WithoutRelus(removed):
            results.append(part())
    return results
