"""Every operator of torch and torchvision that takes a map and gives one, in every place beside binary layers."""

import copy
import itertools
import time
import warnings
from collections import Counter, defaultdict
from functools import cache

import pytest
import torch
from helpers.operators import NAMESPACES, Operator, example, operators, plain
from helpers.outcomes import Outcome, equal, outcome_of, run
from helpers.sweep import INPLACE_PLACES, PLACES, BehindNorm, BehindRelu, judge
from torch import nn

import bnnfx
from bnnfx.errors import ConversionError, StageError
from bnnfx.nn import BinaryConv2d

SPELLED = ("torch.nn", "torch.nn.functional", "torch", "torch.Tensor", "operator")
EXPORTED = ("torch", "torch.nn")  # the functions and modules behind nearly all spellings; a second each


@pytest.fixture(scope="session")
def share(pytestconfig: pytest.Config) -> int:
    """Of how many names one is taken: `make test` takes every twelfth, with all its spellings."""
    return 1 if pytestconfig.getoption("all_operators") else 12


def found(namespace: str, share: int) -> tuple[Operator, ...]:
    try:
        return operators(namespace, 1 if namespace == "torchvision.ops" else share)  # few, and unlike those of torch
    except ImportError as missing:
        pytest.skip(str(missing))


def failing(outcomes: dict[str, Outcome]) -> list[str]:
    return [f"{op}: {o.kind}: {o.detail}" for op, o in outcomes.items() if o.kind not in ("right", "refused")]


@pytest.mark.parametrize("place", (*PLACES, *INPLACE_PLACES), ids=lambda place: place.__name__)
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_ends_right_or_in_a_refusal(namespace, place, share, record_property, tmp_path):
    fitting = [op for op in found(namespace, share) if op.inplace or place in PLACES]
    outcomes = {}
    for number, op in enumerate(fitting):
        exported = place is BehindNorm and namespace in EXPORTED and (share == 1 or number % 4 == 0)
        outcome = judge(op, place, file=tmp_path / f"{number}.onnx" if exported else None)
        if outcome is not None:
            outcomes[str(op)] = outcome
    record_property("operators", dict(Counter(outcome.kind for outcome in outcomes.values())))
    if not outcomes:
        pytest.skip(f"no operator of {namespace} can stand there")
    assert not failing(outcomes), "\n".join(failing(outcomes))


@pytest.mark.parametrize("scheme", [name for name in bnnfx.schemes() if name != "xnor"])
def test_other_schemes(scheme):
    judged = {str(op): judge(op, BehindNorm, scheme=scheme) for op in found("torch.nn", share=12)}
    outcomes = {op: outcome for op, outcome in judged.items() if outcome is not None}
    assert outcomes
    assert not failing(outcomes), "\n".join(failing(outcomes))


class BeforeNorm(BehindNorm):
    """The operator between a binary layer and the batch norm behind it."""

    def forward(self, x):
        return self.last(self.conv2(self.bn(self.operator(self.conv1(self.first(x))))))


@cache
def families(share: int) -> dict[str, list[Operator]]:
    """Spellings of one operator: of one name, and equal by value."""
    by_name = defaultdict(list)
    for namespace in SPELLED:
        for op in operators(namespace, share):
            if not op.inplace and not any(op.random):
                by_name[plain(op.name)].append(op)
    found = {}
    for name, spellings in by_name.items():
        first = run(spellings[0].module(), example(), True)
        same = [op for op in spellings if equal(first, run(op.module(), example(), True))]
        if len({op.form for op in same}) > 1:
            found[name] = same
    return found


@pytest.mark.parametrize("place", (BehindNorm, BehindRelu, BeforeNorm), ids=lambda place: place.__name__)
def test_spellings_of_one_operator_are_treated_alike(place, share):
    differing = []
    for name, spellings in families(share).items():
        structures = {str(op): structure(place(op)) for op in spellings}
        if len(set(structures.values())) > 1:
            differing.append(f"{name}: {structures}")
    assert len(families(share)) > 100 / share
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


def test_several_hundred_are_found(share):
    assert sum(len(operators(namespace, share)) for namespace in SPELLED) > 900 / share


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


def test_a_chain_that_never_ends_is_stopped():
    outcome = outcome_of(lambda: [time.sleep(0.01) for _ in itertools.count()], seconds=1)
    assert outcome == Outcome("raw error", "TimeoutError: not done after 1 s")


def test_a_network_that_does_not_run_is_not_judged():
    assert judge(Operator("torch.add", "function", torch.add, ("no number",)), BehindNorm) is None
