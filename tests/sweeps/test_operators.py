"""Every operator of torch and torchvision that takes a map and gives one, in every place beside binary layers."""

import copy
import itertools
import warnings
from collections import Counter, defaultdict
from functools import cache

import pytest
import torch
from helpers.operators import NAMESPACES, Operator, example, operators
from helpers.outcomes import equal, run
from helpers.sweep import INPLACE_PLACES, PLACES, BehindNorm, BehindRelu, judge
from torch import nn

import bnnfx
from bnnfx.errors import ConversionError, StageError
from bnnfx.nn import BinaryConv2d

SPOT = 8  # `make test` takes every eighth
SPELLED = ("torch.nn", "torch.nn.functional", "torch", "torch.Tensor", "operator")
EXPORTED = 40  # of those that it takes, every fortieth is exported too: a second each


def found(namespace: str) -> tuple[Operator, ...]:
    try:
        return operators(namespace)
    except ImportError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("place", (*PLACES, *INPLACE_PLACES), ids=lambda place: place.__name__)
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_ends_right_or_in_a_refusal(namespace, place, pytestconfig, record_property, tmp_path):
    fitting = [op for op in found(namespace) if op.inplace or place in PLACES]
    chosen = fitting[:: 1 if pytestconfig.getoption("all_operators") else SPOT]
    if not fitting:
        pytest.skip(f"{namespace} has nothing in place")
    outcomes = {}
    for number, op in enumerate(chosen):
        file = tmp_path / f"{number}.onnx" if number % EXPORTED == 0 else None
        outcome = judge(op, place, file=file)
        if outcome is not None:
            outcomes[str(op)] = outcome
    record_property("operators", Counter(outcome.kind for outcome in outcomes.values()))
    assert outcomes
    failing = [f"{op}: {o.kind}: {o.detail}" for op, o in outcomes.items() if o.kind in ("wrong", "raw error")]
    assert not failing, "\n".join([f"{len(failing)} of {len(outcomes)}:", *failing])


@pytest.mark.parametrize("scheme", [name for name in bnnfx.schemes() if name != "xnor"])
def test_other_schemes(scheme):
    outcomes = [judge(op, BehindNorm, scheme=scheme) for op in found("torch.nn")[::SPOT]]
    assert Counter(o.kind for o in outcomes if o is not None).keys() <= {"right", "refused"}


class BeforeNorm(BehindNorm):
    """The operator between a binary layer and the batch norm behind it."""

    def forward(self, x):
        return self.last(self.conv2(self.bn(self.operator(self.conv1(self.first(x))))))


@cache
def families() -> dict[str, list[Operator]]:
    """Spellings of one operator: of one name, and equal by value."""
    by_name = defaultdict(list)
    for op in itertools.chain.from_iterable(map(operators, SPELLED)):
        if not op.inplace and not any(op.random):
            by_name[op.name.rpartition(".")[2].replace("_", "").lower()].append(op)
    found = {}
    for name, spellings in by_name.items():
        first = run(spellings[0].module(), example(), True)
        same = [op for op in spellings if equal(first, run(op.module(), example(), True))]
        if len({op.form for op in same}) > 1:
            found[name] = same
    return found


@pytest.mark.parametrize("place", (BehindNorm, BehindRelu, BeforeNorm), ids=lambda place: place.__name__)
def test_spellings_of_one_operator_are_treated_alike(place, pytestconfig):
    share = 1 if pytestconfig.getoption("all_operators") else SPOT
    differing = []
    for name, spellings in list(families().items())[::share]:
        structures = {str(op): structure(place(op)) for op in spellings}
        if len(set(structures.values())) > 1:
            differing.append(f"{name}: {structures}")
    assert len(families()) > 100
    assert not differing, "\n".join([f"{len(differing)}:", *differing])


def structure(network):
    """Which layers are binary, which batch norms there are, or why there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            gm = bnnfx.convert(network.eval(), "xnor")
        except Exception as error:
            return type(error).__name__
    kinds = (BinaryConv2d, nn.BatchNorm2d)
    return tuple(sorted(name for name, m in gm.named_modules() if isinstance(m, kinds) and "operator" not in name))


def test_several_hundred_are_found():
    assert len([op for namespace in NAMESPACES[:-1] for op in operators(namespace)]) > 500


def erased(convert):
    """A compiler that forgets the operator."""

    def wrong(model, *args, **kwargs):
        model = copy.deepcopy(model)
        model.operator = nn.Identity()
        return convert(model, *args, **kwargs)

    return wrong


def refusing(text, kind=ConversionError):
    def refuse(*args, **kwargs):
        raise kind(text)

    return lambda convert: refuse


def saturated(convert):
    """A compiler whose bits are constant."""

    def constant(*args, **kwargs):
        gm = convert(*args, **kwargs)
        gm.conv2_sign.forward = torch.ones_like
        return gm

    return constant


@pytest.mark.parametrize(
    ("compiler", "kind", "part"),
    [
        (lambda convert: convert, "right", ""),
        (erased, "wrong", "the canonical graph has other values"),
        (saturated, "wrong", "constant bits"),
        (refusing("'tanh' is not known"), "refused", "tanh"),
        (refusing("this is not known"), "raw error", "names nothing of the model"),
        (refusing("tanh", StageError), "raw error", "StageError"),
        (refusing("tanh", KeyError), "raw error", "KeyError"),
    ],
)
def test_every_kind_of_outcome_is_told(compiler, kind, part, monkeypatch):
    tanh = Operator("torch.tanh", "function", torch.tanh)
    monkeypatch.setattr(bnnfx, "convert", compiler(bnnfx.convert))
    outcome = judge(tanh, BehindNorm)
    assert outcome.kind == kind
    assert part in outcome.detail


def test_a_network_that_does_not_run_is_not_judged():
    assert judge(Operator("torch.add", "function", torch.add, ("no number",)), BehindNorm) is None
