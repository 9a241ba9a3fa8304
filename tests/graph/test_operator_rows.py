"""The table of operators, held against what torch computes: every claim of every row is tried on numbers."""

import inspect
import operator
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bnnfx.frontend.trace import trace
from bnnfx.graph.dataflow import drops
from bnnfx.graph.operators import OPAQUE, ROWS, Call, Kind, Mode, Operator, Sign, call_of, operator_of
from bnnfx.graph.value_flow import follow_values
from bnnfx.nn import BinaryConv2d

ARGUMENTS = {
    **dict.fromkeys(("kernel_size", "output_size", "upscale_factor", "downscale_factor", "groups", "num_groups"), 2),
    **dict.fromkeys(("num_features", "num_channels", "normalized_shape", "num_parameters", "size"), 4),
    **dict.fromkeys(("padding", "pad"), (1, 1, 1, 1)),
    **{"threshold": 0.5, "value": 0.25, "scale_factor": 2, "norm_type": 2.0, "min": -0.5, "max": 0.75, "lower": 0.1},
    **{"min_val": -0.5, "max_val": 0.75, "upper": 0.3, "dim": 1, "p": 0.5, "chunks": 2, "shift": 1, "dims": (2, 3)},
    **{"start_dim": 1, "training": False, "other": 0.5, "exponent": 2, "split_size_or_sections": 2, "repeats": 2},
}
"""What an argument without a default is given, by its name."""


def spellings(row: Operator) -> Iterator[tuple[str, Callable[[Tensor], object] | nn.Module]]:
    """Every way to call a row on one map, as far as its arguments can be made up."""
    for kind in row.modules:
        given = required(kind.__init__)
        if given is not None and row.kind is not Kind.LAYER:
            yield kind.__name__, kind(**given).eval()
    for function in row.functions:
        given = {} if isinstance(function, str) else required(function, skip=1)
        if not isinstance(function, str) and given is not None:
            yield function.__name__, lambda x, function=function, given=given: function(x, **given)
    for method in row.methods:
        yield f".{method}", lambda x, method=method: getattr(x, method)()


def required(function: Callable[..., object], skip: int = 0) -> dict[str, object] | None:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:
        return {}  # built in: perhaps it needs nothing more
    names = [p.name for p in parameters[skip:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    names = [name for name in names if name != "self"]
    return {name: ARGUMENTS[name] for name in names} if set(names) <= set(ARGUMENTS) else None


def tried() -> Iterator[tuple[str, Operator, Callable[[Tensor], object] | nn.Module]]:
    """The spellings that run on a map of 4 channels and give one map."""
    x = torch.rand(2, 4, 6, 6) + 0.1
    for row in ROWS:
        for name, call in spellings(row):
            try:
                result = call(x.clone())
            except (TypeError, RuntimeError, ValueError, IndexError, AssertionError):
                continue
            fits = isinstance(result, Tensor) and result.is_floating_point() and row.axes in (None, 4)
            if fits and (row.kind is Kind.MOVE or result.ndim == 4) and row.kind is not Kind.NORM:
                yield f"{row.name}: {name}", row, call


TRIED = {name: (row, call) for name, row, call in tried()}


def traced(call: Callable[[Tensor], object] | nn.Module) -> tuple[fx.GraphModule, fx.Node]:
    """The graph of one call."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if isinstance(call, nn.Module):
                self.layer = call

        def forward(self, x: Tensor) -> object:
            return self.layer(x) if isinstance(call, nn.Module) else call(x)

    gm = trace(Net().eval()).gm
    return gm, next(node for node in reversed(gm.graph.nodes) if node.op.startswith("call_"))


def test_most_rows_are_tried() -> None:
    assert len(TRIED) > 150
    maps = [row for row in ROWS if row.kind in (Kind.ELEMENTWISE, Kind.POOL) and row.axes in (None, 4)]
    missing = {row.name for row in maps} - {row.name for row, _ in TRIED.values()}
    of_a_row, need_arguments = {"Dropout1d"}, {"clamp", "clip", "clamp_min", "stochastic depth"}
    assert missing <= of_a_row | need_arguments | {f"cast by {name}" for name in ("type", "type_as", "to", "cuda")}


@pytest.mark.parametrize("name", TRIED)
def test_sign(name: str) -> None:
    """What is said never to be negative is not; what is said to take both signs of an input that does, takes both."""
    row, call = TRIED[name]
    gm, node = traced(call)
    assert operator_of(gm, node).kind is row.kind
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 4, 6, 6, generator=generator) * 3
    torch.manual_seed(1)  # of a dropout called as a function: with it some of the values stay
    for x, given in ((both, Sign.BOTH), (both.abs() + 0.01, Sign.NEVER_NEGATIVE)):
        said = row.sign(call_of(gm, node), [given] * (1 if row.kind is Kind.JOIN else len(row.operands)))
        result = call(x.clone())
        assert isinstance(result, Tensor)
        result = result[~result.isnan()]
        if said is Sign.NEVER_NEGATIVE and given is Sign.BOTH:
            assert result.numel() == 0 or result.min() >= 0
        if said is Sign.BOTH:
            assert (result.min() < 0 <= result.max()) or row.kind in (Kind.JOIN, Kind.POOL, Kind.REDUCE)


@pytest.mark.parametrize("name", [name for name, (row, _) in TRIED.items() if row.kind is Kind.ELEMENTWISE])
def test_elementwise(name: str) -> None:
    """Each value of the result depends on its own value and channel only."""
    row, call = TRIED[name]
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(36, generator=torch.Generator().manual_seed(2))

    def moved(y: Tensor) -> Tensor:
        return y.flatten(2)[..., order].unflatten(2, (6, 6))

    results = call(moved(x)), moved(call(x.clone()))  # type: ignore[arg-type]
    gm, node = traced(call)
    if row.mode is Mode.SAME or drops(gm, node):
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", TRIED)
def test_memory_and_axes(name: str) -> None:
    """What is said to lie in memory of its own does; a result has as many axes as is said."""
    row, call = TRIED[name]
    x = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)) + 0.1
    y = call(x)
    assert isinstance(y, Tensor)
    if row.fresh:
        assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    gm, node = traced(call)
    assert row.result_axes(call_of(gm, node), [4]) in (None, y.ndim)


@pytest.mark.parametrize("name", [name for name, (row, _) in TRIED.items() if row.kind is Kind.MOVE])
def test_moves(name: str) -> None:
    """No value of the result is another than those of the input."""
    _, call = TRIED[name]
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    assert set(call(x.clone()).flatten().tolist()) <= {*x.flatten().tolist(), 0.0}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name, (row, _) in TRIED.items() if row.kind is Kind.POOL])
def test_pools(name: str) -> None:
    """Each value of the result lies between the least and the most of its channel."""
    _, call = TRIED[name]
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)) + 5
    y = call(x.clone())
    assert isinstance(y, Tensor)
    assert (y.amax((2, 3)) <= x.amax((2, 3)) + 1e-5).all() and (y.amin((2, 3)) >= x.amin((2, 3)) - 1e-5).all()


@pytest.mark.parametrize("name", TRIED)
def test_monotone_and_shift(name: str) -> None:
    row, call = TRIED[name]
    gm, node = traced(call)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    if row.keeps_shift(call_of(gm, node)):
        torch.testing.assert_close(call(x + 2.5), call(x) + 2.5)  # type: ignore[operator]
    if row.kind is Kind.ELEMENTWISE and (direction := row.monotone(call_of(gm, node))) is not None:
        rising = torch.linspace(-8, 8, 36).reshape(1, 1, 6, 6).expand(2, 4, 6, 6).contiguous()
        steps = call(rising).flatten(2).diff() * direction.reshape(1, -1, 1)  # type: ignore[attr-defined]
        assert (steps >= 0).all()


@pytest.mark.parametrize("name", TRIED)
def test_canonical_spelling_computes_the_same(name: str) -> None:
    row, call = TRIED[name]
    gm, node = traced(call)
    spelling = row.canonical(call_of(gm, node))
    if spelling is not None:
        x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
        function, arguments = spelling
        given = fx.node.map_arg(arguments, lambda value: x)
        function = function.eval() if isinstance(function, nn.Module) else function
        assert torch.equal(function(*given), call(x))  # type: ignore[arg-type]


def test_a_missing_row_is_the_pessimistic_answer() -> None:
    call = Call(fx.Graph().placeholder("x"), None, (), {})
    assert OPAQUE.kind is Kind.OPAQUE and OPAQUE.mode is Mode.UNKNOWN
    assert OPAQUE.sign(call, [Sign.BOTH]) is Sign.UNKNOWN
    assert OPAQUE.monotone(call) is None and OPAQUE.canonical(call) is None and not OPAQUE.keeps_shift(call)
    assert OPAQUE.result_axes(call, [4]) is None and not (OPAQUE.fresh or OPAQUE.identity or OPAQUE.transposed)
    assert not (OPAQUE.batch_norm or OPAQUE.centres or OPAQUE.replaced or OPAQUE.resizable or OPAQUE.macs)


def calling(module: nn.Module) -> fx.GraphModule:
    graph = fx.Graph()
    graph.call_module("m")
    return fx.GraphModule({"m": module}, graph)


def test_subclasses_are_other_operators() -> None:
    kinds = [kind for row in ROWS for kind in row.modules]
    assert len(kinds) > 60
    for kind in kinds:
        module = type("Mine", (kind,), {}).__new__(type("Mine", (kind,), {}))
        nn.Module.__init__(module)
        gm = calling(module)
        assert operator_of(gm, next(iter(gm.graph.nodes))) is OPAQUE


def test_binary_layers_have_the_row_of_their_float_layer() -> None:
    gm = calling(BinaryConv2d(4, 4, 1))
    assert operator_of(gm, next(iter(gm.graph.nodes))).modules == (nn.Conv2d,)


def test_questions_take_time_that_grows_with_the_graph() -> None:
    """Twenty times a sum of both branches are a million paths, and twenty-odd nodes."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    for _ in range(200):
        x = graph.call_function(operator.add, (x, graph.call_function(F.gelu, (x,))))
    graph.output(x)
    values = follow_values(fx.GraphModule(nn.Module(), graph))
    assert values[x].signs.sign is Sign.BOTH


@pytest.mark.parametrize(
    ("spell", "sign"),
    [
        (lambda x: F.relu(x) + 1, Sign.NEVER_NEGATIVE),
        (lambda x: F.relu(x) * 2, Sign.NEVER_NEGATIVE),
        (lambda x: F.interpolate(F.relu(x), scale_factor=2), Sign.NEVER_NEGATIVE),
        (lambda x: F.pad(F.relu(x), (1, 1)), Sign.NEVER_NEGATIVE),
        (lambda x: F.pixel_shuffle(F.relu(x), 2), Sign.NEVER_NEGATIVE),
        (lambda x: torch.maximum(F.relu(x), x), Sign.NEVER_NEGATIVE),
        (lambda x: F.relu(x).clone().float(), Sign.NEVER_NEGATIVE),
        (lambda x: x * torch.sigmoid(x), Sign.BOTH),
        (lambda x: x * x, Sign.NEVER_NEGATIVE),
        (lambda x: x + 100, Sign.UNKNOWN),
        (lambda x: F.relu(x) - 1, Sign.UNKNOWN),
        (lambda x: x.clamp(min=0), Sign.NEVER_NEGATIVE),
        (lambda x: F.threshold(x, 0.0, 0.0), Sign.NEVER_NEGATIVE),
        (lambda x: -F.relu(x), Sign.UNKNOWN),
        (lambda x: 0 - F.relu(x), Sign.UNKNOWN),
        (lambda x: 1 - torch.sigmoid(x), Sign.UNKNOWN),
        (lambda x: x + x.abs(), Sign.NEVER_NEGATIVE),
        (lambda x: x - x.clamp(max=0.5), Sign.NEVER_NEGATIVE),
        (lambda x: torch.maximum(x, -x), Sign.NEVER_NEGATIVE),
        (lambda x: torch.maximum(x, 0.1 * x), Sign.BOTH),
        (lambda x: torch.minimum(x, -x), Sign.UNKNOWN),
        (lambda x: x * F.relu(x), Sign.NEVER_NEGATIVE),
        (lambda x: x - x.roll(1, 2), Sign.BOTH),
        (lambda x: x * F.relu6(x + 3) / 6, Sign.BOTH),
        (lambda x: x - torch.amax(x, 1, keepdim=True), Sign.UNKNOWN),
        (lambda x: x + torch.fft.fft(x).real, Sign.UNKNOWN),
        (lambda x: x + F.avg_pool2d(x, 3, 1, 1), Sign.UNKNOWN),
        (lambda x: x.clamp(min=torch.ones(1)), Sign.UNKNOWN),
        (lambda x: torch.cat([x, F.relu(x)], 1), Sign.UNKNOWN),
        (lambda x: torch.fft.fft(x).real, Sign.UNKNOWN),
    ],
)
def test_signs_of_what_people_write(spell: Callable[[Tensor], Tensor], sign: Sign) -> None:
    gm, node = traced(spell)
    assert follow_values(gm)[node].signs.sign is sign
