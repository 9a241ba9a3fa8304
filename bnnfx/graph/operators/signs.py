"""Which signs a result has: one rule per row, of the call and the signs of its operands."""

import math
from collections.abc import Sequence

from torch import Tensor, fx

from bnnfx.graph.operators.facts import Call, Sign, SignRule


def both(call: Call, signs: Sequence[Sign]) -> Sign:
    """Both signs, whatever the input."""
    return Sign.BOTH


def never(call: Call, signs: Sequence[Sign]) -> Sign:
    """Never negative, whatever the input."""
    return Sign.NEVER_NEGATIVE


def unknown(call: Call, signs: Sequence[Sign]) -> Sign:
    """Whatever the input, perhaps one sign only."""
    return Sign.UNKNOWN


def keeps(call: Call, signs: Sequence[Sign]) -> Sign:
    """That of the input."""
    return signs[0] if signs else Sign.UNKNOWN


def flips(call: Call, signs: Sequence[Sign]) -> Sign:
    """The other sign, or at least both where the input has both."""
    return Sign.BOTH if Sign.BOTH in signs[:1] else Sign.UNKNOWN


def within(low_name: str, high_name: str, low: float = -math.inf, high: float = math.inf) -> SignRule:
    """That of the input, cut off at two bounds.

    Args:
        low_name: the argument of the lower bound.
        high_name: the argument of the upper bound.
        low: the lower bound where none is given.
        high: likewise.
    """

    def rule(call: Call, signs: Sequence[Sign]) -> Sign:
        least, most = call.number(low_name, low), call.number(high_name, high)
        if least is None or most is None or most <= 0 or least >= most:
            return Sign.UNKNOWN
        return Sign.NEVER_NEGATIVE if least >= 0 else keeps(call, signs)

    return rule


def of_slope(call: Call, signs: Sequence[Sign]) -> Sign:
    """Of what multiplies negative values by a number."""
    slope = call.number("negative_slope", 0.01)
    if slope is None:
        return Sign.UNKNOWN
    return keeps(call, signs) if slope > 0 else Sign.NEVER_NEGATIVE


def of_prelu(call: Call, signs: Sequence[Sign]) -> Sign:
    """Of what multiplies negative values by parameters: both signs in the channels whose slope is positive."""
    weight = call.get("weight")
    if not isinstance(weight, Tensor) or weight.is_meta:
        return Sign.UNKNOWN
    return keeps(call, signs) if bool((weight > 0).any()) else Sign.NEVER_NEGATIVE


def of_threshold(call: Call, signs: Sequence[Sign]) -> Sign:
    """Of what replaces all up to a threshold by a value."""
    threshold, value = call.number("threshold", 0.0), call.number("value", 0.0)
    positive = threshold is not None and value is not None and threshold >= 0 and value >= 0
    return Sign.NEVER_NEGATIVE if positive else Sign.UNKNOWN


def of_padding(call: Call, signs: Sequence[Sign]) -> Sign:
    """Of what adds a value at the border."""
    value = call.number("value", 0.0)
    return keeps(call, signs) if (value is not None and value >= 0) or signs == [Sign.BOTH] else Sign.UNKNOWN


def of_sum(call: Call, signs: Sequence[Sign]) -> Sign:
    """Never negative if nothing that is added is; of both signs if some operand is, and the others cannot undo that."""
    numbers = call.numbers()
    if all(sign is Sign.NEVER_NEGATIVE for sign in signs) and all(number >= 0 for number in numbers):
        return Sign.NEVER_NEGATIVE
    tensors = [operand for operand in call.operands if isinstance(operand, fx.Node)]
    added = [sign for sign, operand in zip(signs, tensors, strict=False) if operand.op != "get_attr"]  # none is learned
    return Sign.BOTH if Sign.BOTH in added and Sign.UNKNOWN not in added and not any(numbers) else Sign.UNKNOWN


def of_difference(call: Call, signs: Sequence[Sign]) -> Sign:
    """Of both signs if all operands are; `x - 0` is x, and `x - x` is 0."""
    itself = len(call.operands) > 1 and call.operands[0] is call.operands[1]
    return Sign.BOTH if set(signs) == {Sign.BOTH} and not any(call.numbers()) and not itself else Sign.UNKNOWN


def of_product(call: Call, signs: Sequence[Sign]) -> Sign:
    """Of a value that takes both signs, and gates or numbers that have one."""
    numbers = call.numbers()
    if len(call.operands) > 1 and call.operands[0] is call.operands[1]:
        return Sign.NEVER_NEGATIVE
    if signs.count(Sign.BOTH) == 1 and Sign.UNKNOWN not in signs and all(numbers):
        return Sign.BOTH
    positive = all(sign is Sign.NEVER_NEGATIVE for sign in signs) and all(number > 0 for number in numbers)
    return Sign.NEVER_NEGATIVE if positive else Sign.UNKNOWN


def of_most(call: Call, signs: Sequence[Sign]) -> Sign:
    """The larger of several."""
    numbers = call.numbers()
    if Sign.NEVER_NEGATIVE in signs or any(number >= 0 for number in numbers):
        return Sign.NEVER_NEGATIVE
    return Sign.BOTH if set(signs) == {Sign.BOTH} else Sign.UNKNOWN


def of_largest(call: Call, signs: Sequence[Sign]) -> Sign:
    """One value of many, the largest or the smallest: of one sign almost always."""
    return Sign.NEVER_NEGATIVE if signs[:1] == [Sign.NEVER_NEGATIVE] else Sign.UNKNOWN


def of_max(call: Call, signs: Sequence[Sign]) -> Sign:
    """`torch.max` of one tensor, or of two."""
    return of_most(call, signs) if len(signs) > 1 else of_largest(call, signs)


def of_min(call: Call, signs: Sequence[Sign]) -> Sign:
    """`torch.min` of one tensor, or of two."""
    return of_least(call, signs) if len(signs) > 1 else of_largest(call, signs)


def of_least(call: Call, signs: Sequence[Sign]) -> Sign:
    """The smaller of several."""
    positive = all(number > 0 for number in call.numbers())
    if set(signs) == {Sign.NEVER_NEGATIVE} and positive:
        return Sign.NEVER_NEGATIVE
    kept = Sign.BOTH in signs and Sign.UNKNOWN not in signs and positive
    return Sign.BOTH if kept else Sign.UNKNOWN


def of_all(call: Call, signs: Sequence[Sign]) -> Sign:
    """Of values side by side: both where each of them takes both, for a part of them would be constant else."""
    return signs[0] if len(set(signs)) == 1 else Sign.UNKNOWN


def of_choice(call: Call, signs: Sequence[Sign]) -> Sign:
    """One of two values, as a condition says: `where(x > 0, x, 0)` is a ReLU."""
    positive = {*signs[1:]} <= {Sign.NEVER_NEGATIVE} and all(number >= 0 for number in call.numbers())
    return Sign.NEVER_NEGATIVE if positive else Sign.UNKNOWN


def of_power(call: Call, signs: Sequence[Sign]) -> Sign:
    """An even power is never negative, nor is any of what is not."""
    exponent = call.operands[1] if len(call.operands) > 1 else None
    if isinstance(exponent, int | float) and exponent % 2 == 0:
        return Sign.NEVER_NEGATIVE
    return Sign.NEVER_NEGATIVE if signs and signs[0] is Sign.NEVER_NEGATIVE else Sign.UNKNOWN


def of_values(call: Call, signs: Sequence[Sign]) -> Sign:
    """Of attention: averages of its values."""
    return signs[2] if len(signs) > 2 else Sign.UNKNOWN
