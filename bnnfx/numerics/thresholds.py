"""Exact integer thresholds: what a float expression and a comparison do to the values that an accumulator can take."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class IntegerThreshold:
    """Per channel: `bit = (z >= threshold) xor flip`.

    Attributes:
        threshold: `int32[O]`.
        flip: `bool[O]`, true where the bit falls as the accumulator grows.
    """

    threshold: npt.NDArray[np.int32]
    flip: npt.NDArray[np.bool_]


def accumulator_values(fan_in: int, zero_padded: bool) -> npt.NDArray[np.int32]:
    """All values that a dot product of `fan_in` factors +-1 can take, ascending.

    Without padding the parity of `fan_in` is kept, so there are `fan_in + 1`; padded taps count 0 and break parity.

    >>> accumulator_values(3, zero_padded=False)
    array([-3, -1,  1,  3], dtype=int32)
    """
    return np.arange(-fan_in, fan_in + 1, 1 if zero_padded else 2, dtype=np.int32)


def selected_sums(negative: int, positive: int) -> npt.NDArray[np.int32]:
    """All values that the sum of some of a filter's weights can take, ascending: its dot product with {0, 1}.

    Args:
        negative: how many weights are -1.
        positive: how many are +1.

    >>> selected_sums(1, 2)
    array([-1,  0,  1,  2], dtype=int32)
    """
    return np.arange(-negative, positive + 1, dtype=np.int32)


def from_table(values: npt.NDArray[np.int32], bits: npt.NDArray[np.bool_]) -> IntegerThreshold | None:
    """Find the integer threshold that reproduces a table of bits.

    Args:
        values: `int32[V]`, ascending: what the accumulator can be.
        bits: `bool[V, O]`: what the float expression makes of each value, per channel.

    Returns:
        The threshold, or None if some channel is not monotone in the accumulator.

    >>> from_table(np.array([-1, 1], np.int32), np.array([[True, False, True], [False, True, True]]))
    IntegerThreshold(threshold=array([ 1,  1, -1], dtype=int32), flip=array([ True, False, False]))
    """
    flip = bits[0] & ~bits[-1]
    rising = bits ^ flip  # per channel 0...01...1 if the table is monotone
    if np.any(rising[:-1] & ~rising[1:]):
        return None
    zeros = (~rising).sum(axis=0)
    candidates = np.append(values, values[-1] + 1).astype(np.int32)
    return IntegerThreshold(candidates[zeros], flip)
