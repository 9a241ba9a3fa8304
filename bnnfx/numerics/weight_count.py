"""How many weights a network has as a function of its widths, and the widths that come nearest to a given number."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class Affine:
    """A number of channels: a constant, and so many for each channel of some of the widths, by their index."""

    constant: int
    coefficients: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerWeights:
    """A layer with `factor * inputs * outputs` weights; a convolution of g groups has the factor `kernel / g`."""

    factor: Fraction
    inputs: Affine
    outputs: Affine


class WeightCount:
    """The number of weights of some layers as a function of K widths.

    Args:
        layers: the layers.
        widths: K.

    >>> count = WeightCount([LayerWeights(Fraction(9), Affine(3), Affine(0, {0: 1}))], 1)  # 3x3, 3 -> w channels
    >>> count(np.array([8]))
    216
    """

    def __init__(self, layers: Sequence[LayerWeights], widths: int) -> None:
        self._unit = math.lcm(*(layer.factor.denominator for layer in layers))
        self._factor = np.array([int(layer.factor * self._unit) for layer in layers], np.int64)
        self._constants, self._coefficients = [], []
        for sides in ([layer.inputs for layer in layers], [layer.outputs for layer in layers]):
            coefficients = np.zeros((len(layers), widths), np.int64)
            for row, side in enumerate(sides):
                for index, coefficient in side.coefficients.items():
                    coefficients[row, index] += coefficient
            self._constants.append(np.array([side.constant for side in sides], np.int64))
            self._coefficients.append(coefficients)

    def __call__(self, widths: Integers) -> int:
        """The number of weights at `widths` `int64[K]`."""
        inputs, outputs = self._sides(widths)
        return int((self._factor * inputs * outputs).sum()) // self._unit

    def changes(self, widths: Integers, steps: Integers) -> Integers:
        """By how much the number grows when widths move by `steps` `int64[K]`, with which it stays whole.

        Returns:
            `int64[K, K + 1]`: `[i, j]` for a step up in width i and a step down in width j, `[i, K]` for a step up in
            width i alone; the diagonal is 0.
        """
        (inputs, outputs), (of_inputs, of_outputs) = self._sides(widths), self._coefficients
        linear = ((self._factor * inputs) @ of_outputs + (self._factor * outputs) @ of_inputs) * steps
        quadratic = (of_inputs.T * self._factor) @ of_outputs * steps[:, None] * steps[None, :]
        own = quadratic.diagonal()
        pairs = (linear + own)[:, None] + (own - linear)[None, :] - quadratic - quadratic.T
        np.fill_diagonal(pairs, 0)
        result: Integers = np.concatenate([pairs, (linear + own)[:, None]], axis=1) // self._unit
        return result

    def _sides(self, widths: Integers) -> tuple[Integers, Integers]:
        inputs, outputs = (c + m @ widths for c, m in zip(self._constants, self._coefficients, strict=True))
        return inputs, outputs


def scaled(width: int, factor: Fraction | float, step: int) -> int:
    """`width * factor`, rounded down to a multiple of `step`, but at least one step.

    >>> scaled(64, 0.5**0.5, 1), scaled(512, 0.5**0.5, 1), scaled(64, 0.5**0.5, 8)
    (45, 362, 40)
    """
    # a product such as 100 * 0.29 is a little below the whole number that it should be
    return max(step, math.floor(width * factor + 1e-9) // step * step)


def common_factor(
    count: WeightCount, widths: Integers, steps: Integers, free: Sequence[int], budget: int, most: float = 1
) -> Fraction:
    """The largest factor for all free widths with which a network has no more weights than a budget allows.

    Args:
        count: the number of weights to limit.
        widths: `int64[K]`, the present widths.
        steps: `int64[K]`, what each width has to be a multiple of; the present ones are.
        free: the indices of the widths that are multiplied, as `scaled` does it.
        budget: the number not to exceed.
        most: the largest factor that may be taken.

    Returns:
        A factor at which some width reaches a step; 0, which leaves one step everywhere, if none is small enough.
    """
    sizes = {int(widths[i] // steps[i]) for i in free}
    factors = sorted({Fraction(m, n) for n in sizes for m in range(1, n + 1) if m / n <= most + 1e-9})

    def weights(factor: Fraction) -> int:
        return count(_scale(widths, steps, free, factor))

    within = bisect_right(factors, budget, key=weights)
    return factors[within - 1] if within else Fraction(0)


def fit_widths(count: WeightCount, widths: Integers, steps: Integers, free: Sequence[int], budget: int) -> Integers:
    """Narrow a network to as many weights as a budget allows; arguments as for `common_factor`.

    First the largest common factor of all free widths; then, as long as one helps, the step up in one width, or the
    step up in one and down in another, that comes nearest to the budget without exceeding it. So no change of one or
    two widths by a step comes nearer; another combination of widths might. No width ends above its present one.
    """
    current = _scale(widths, steps, free, common_factor(count, widths, steps, free, budget))
    fixed = np.ones(len(widths), bool)
    fixed[list(free)] = False
    while True:
        changes = count.changes(current, steps)
        changes[fixed | (current + steps > widths)] = 0
        changes[:, :-1][:, fixed | (current <= steps)] = 0
        changes[changes > budget - count(current)] = 0
        up, down = np.unravel_index(changes.argmax(), changes.shape)
        if changes[up, down] <= 0:
            return current
        current[up] += steps[up]
        if down < len(widths):
            current[down] -= steps[down]


def _scale(widths: Integers, steps: Integers, free: Sequence[int], factor: Fraction) -> Integers:
    result = widths.copy()
    for i in free:
        result[i] = scaled(int(widths[i]), factor, int(steps[i]))
    return result
