"""The float steps behind an accumulator: each result is rounded, and special values keep their meaning."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from bnnfx.ops.epilogue import Epilogue
from bnnfx.ops.recorder import Operation, operations
from bnnfx.ops.steps import STEPS, Step, step_of, with_shifts

NAN, INF = math.nan, math.inf
Floats = NDArray[np.float32]


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def scaled(accumulators: NDArray[np.int32], factor: Floats, bias: Floats) -> Floats:
    return Epilogue().apply(np, accumulators.astype(np.float32), factor, bias)


def step(name: str, x: Floats, *constants: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return STEPS[name].meaning(np, x, *constants)


def assert_bits(given: Floats, wanted: Floats) -> None:
    """Equal with the signs of zeros; any NaN for a NaN."""
    assert given.dtype == wanted.dtype == np.float32 and given.shape == wanted.shape
    assert [(x, math.copysign(1, x)) if x == x else "NaN" for x in given.ravel().tolist()] == [
        (x, math.copysign(1, x)) if x == x else "NaN" for x in wanted.ravel().tolist()
    ]


def test_scale_rounds_after_the_product_and_after_the_sum() -> None:
    """`3 * (1/3) - 1` is 0 with both roundings, and 2**-25 / 3 or so with one: float32(1/3) is too large."""
    third = floats(1 / 3)
    assert float(np.float64(third[0]) * 3 - 1) != 0
    result = scaled(np.array([[3], [-3]], np.int32), third, floats(-1))
    assert_bits(result, floats(0, -2).reshape(2, 1))


def test_scale_has_a_value_per_channel_or_one_for_all() -> None:
    z = np.array([[1, -2, 3], [0, 5, -7]], np.int32)
    assert_bits(scaled(z, floats(2, 3, -1), floats(0.5)), floats(2.5, -5.5, -2.5, 0.5, 15.5, 7.5).reshape(2, 3))


def test_scale_of_large_accumulators_is_of_their_float32() -> None:
    """2**24 + 1 has no float32: it is rounded before it is multiplied, to the even neighbor."""
    assert_bits(scaled(np.array([2**24 + 1], np.int32), floats(1), floats(0)), floats(2**24))


@pytest.mark.parametrize(
    ("x", "low", "high", "expected"),
    [
        (-1.0, 0.0, 6.0, 0.0),
        (7.0, 0.0, 6.0, 6.0),
        (0.5, 0.0, 6.0, 0.5),
        (-0.0, 0.0, 6.0, -0.0),
        (0.0, -0.0, 6.0, 0.0),
        (-3.0, -0.0, 6.0, -0.0),
        (NAN, 0.0, 6.0, NAN),
        (INF, 0.0, INF, INF),
        (-INF, -INF, 1.0, -INF),
        (INF, -1.0, 1.0, 1.0),
        (6.0, 0.0, 6.0, 6.0),
    ],
)
def test_clamp(x: float, low: float, high: float, expected: float) -> None:
    assert_bits(step("clamp", floats(x), floats(low), floats(high)), floats(expected))


@pytest.mark.parametrize(
    ("x", "slope", "expected"),
    [
        (2.0, 0.25, 2.0),
        (-2.0, 0.25, -0.5),
        (-2.0, -1.0, 2.0),
        (-2.0, 0.0, -0.0),
        (0.0, -1.0, -0.0),
        (-0.0, 0.25, -0.0),
        (-0.0, -0.25, 0.0),
        (NAN, 0.25, NAN),
        (-INF, 0.0, NAN),
        (INF, 0.0, INF),
        (-1.0, 1 / 3, -1 / 3),
    ],
)
def test_prelu(x: float, slope: float, expected: float) -> None:
    assert_bits(step("prelu", floats(x), floats(slope)), floats(expected))


def test_prelu_and_clamp_have_a_value_per_channel() -> None:
    x = floats(-4, -4, 4, 4).reshape(2, 2)
    assert_bits(step("prelu", x, floats(0.5, 2)), floats(-2, -8, 4, 4).reshape(2, 2))
    assert_bits(step("clamp", x, floats(-1, -2), floats(1, 2)), floats(-1, -2, 1, 2).reshape(2, 2))


def test_the_comparison_of_bits_can_fail() -> None:
    assert_bits(floats(NAN, -0.0), floats(-NAN, -0.0))
    for wrong in (floats(NAN, 0.0), floats(0.0, -0.0), floats(NAN, -1e-45), floats(NAN)):
        with pytest.raises(AssertionError):
            assert_bits(wrong, floats(NAN, -0.0))


# --- the table ---


def test_number_of_constants_and_names() -> None:
    """What the meaning takes is what the row names; and every step can be recorded."""
    assert len(STEPS) >= 3
    for name, row in STEPS.items():
        assert row.name == name
        assert operations(row)[-1].result == f"result{len(operations(row)) - 1}"
        x, constants = floats(-4, 0, 2), [floats(0.5)] * len(row.constants)
        assert step(name, x, *constants).dtype == np.float32


def test_meaning_is_the_same_in_torch() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([floats(0, -0.0, NAN, INF, -INF, 3, -3), rng.normal(0, 3, 500).astype(np.float32)])
    for name, row in STEPS.items():
        constants = [rng.random(1).astype(np.float32) for _ in row.constants]
        given = row.meaning(torch, *map(torch.from_numpy, (x, *constants))).numpy()
        assert_bits(given, step(name, x, *constants))


@pytest.mark.parametrize(
    ("module", "name", "constants"),
    [
        (nn.ReLU(), "clamp", (0.0, INF)),
        (nn.ReLU6(), "clamp", (0.0, 6.0)),
        (nn.Hardtanh(-0.0, 2.0), "clamp", (0.0, 2.0)),
        (nn.LeakyReLU(0.1), "prelu", (0.1,)),
    ],
)
def test_step_of_a_module(module: nn.Module, name: str, constants: tuple[float, ...]) -> None:
    found = step_of(module)
    assert found == (STEPS[name], constants)
    assert [math.copysign(1, value) for value in found[1]] == [math.copysign(1, value) for value in constants]


def test_step_of_a_module_equals_it() -> None:
    """On values with and without a fraction, zeros, infinities and NaN; -0.0 counts as 0.0, as torch is free to."""
    rng = np.random.default_rng(0)
    x = np.concatenate([floats(0, NAN, INF, -INF, 3, -3, 6, 1e38), rng.normal(0, 4, 2000).astype(np.float32)])
    kinds = [kind for row in STEPS.values() for kind in row.made_from]
    assert len(kinds) >= 5
    for kind in kinds:
        module = getattr(nn, kind)()
        found = step_of(module)
        assert found is not None
        constants = [torch.as_tensor(value, dtype=torch.float32).detach().reshape(-1).numpy() for value in found[1]]
        wanted = module(torch.from_numpy(x)).detach().numpy()
        assert_bits(step(found[0].name, x, *constants) + np.float32(0), wanted + np.float32(0))


def test_hardswish_is_that_of_torch_to_the_last_bit() -> None:
    """In vectors and in what is left of them; another order of the product and the division would differ here."""
    rng = np.random.default_rng(1)
    x = np.concatenate([floats(0, -0.0, NAN, INF, -INF, 3, -3, -4, 1e38, 3e38, 1e-45), rng.normal(0, 4, 10_003)])
    x = x.astype(np.float32)
    with np.errstate(all="ignore"):
        given = step("hardswish", x)
        other = x * (np.clip(x + np.float32(3), 0, 6) / np.float32(6))
    assert (given != other)[~np.isnan(given)].sum() > 1000
    for size in (len(x), 3, 1):
        wanted = [nn.Hardswish()(torch.from_numpy(x[at : at + size])).numpy() for at in range(0, len(x), size)]
        assert_bits(given, np.concatenate(wanted))


def test_slope_of_a_prelu_is_its_weight() -> None:
    module = nn.PReLU(3)
    found = step_of(module)
    assert found is not None and found[0] is STEPS["prelu"] and found[1] == (module.weight,)


def test_other_modules_are_no_step() -> None:
    class Doubled(nn.ReLU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    for module in (Doubled(), nn.GELU(), nn.Identity(), None):
        assert step_of(module) is None


def test_shifts_around_a_step() -> None:
    assert with_shifts(STEPS["prelu"]) is STEPS["shifted_prelu"]
    assert with_shifts(STEPS["clamp"]) is None


# --- recording ---


def test_recording_has_every_operation() -> None:
    def meaning(xp: object, x: object, c: object) -> object:
        y = (x + 2.0) / c - x * x  # type: ignore[operator]
        return xp.where(x < 0.5, y, xp.where(x > c, x, 1.0))  # type: ignore[operator, attr-defined]

    assert operations(Step("made_up", ("c",), meaning)) == [
        Operation("add", ("x", 2.0), "result0"),
        Operation("divide", ("result0", "c"), "result1"),
        Operation("multiply", ("x", "x"), "result2"),
        Operation("subtract", ("result1", "result2"), "result3"),
        Operation("less", ("x", 0.5), "result4"),
        Operation("greater", ("x", "c"), "result5"),
        Operation("where", ("result5", "x", 1.0), "result6"),
        Operation("where", ("result4", "result3", "result6"), "result7"),
    ]


@pytest.mark.parametrize("number", [0.1, INF, -INF, NAN, 1e-46])
def test_number_that_is_not_exact_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="make it a constant"):
        operations(Step("made_up", (), lambda xp, x: x + number))


def test_step_that_does_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="has to end with an operation"):
        operations(Step("made_up", (), lambda xp, x: x))
