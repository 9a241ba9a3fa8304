"""What follows an accumulator while it is a float number: the stated order of roundings, in float32.

Each function rounds after every single operation, as the standard-operator bodies and the kernels do; nothing is fused.
Values are `float32[..., C]`, constants have one value, or one per channel.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def scale(accumulators: npt.NDArray[np.int32], factor: Floats, bias: Floats) -> Floats:
    """`float32(accumulator) * factor + bias`, rounded after the product and after the sum."""
    product: Floats = accumulators.astype(np.float32) * factor
    return product + bias


def clamp(x: Floats, low: Floats, high: Floats) -> Floats:
    """`low` where x is below it, `high` where x is above it; NaN and -0.0 stay (-0.0 is not below 0.0)."""
    clamped: Floats = np.where(x > high, high, np.where(x < low, low, x))
    return clamped


def prelu(x: Floats, slope: Floats) -> Floats:
    """X where it is positive, else `x * slope`."""
    with np.errstate(invalid="ignore"):
        result: Floats = np.where(x > 0, x, x * slope)
    return result
