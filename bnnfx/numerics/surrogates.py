"""Pseudo-gradients of step functions such as sign: the factor for the incoming gradient, as a function of x.

Each is the derivative of a primitive that approximates the steps; the area under it says how far the primitive rises.
"""

import math

from torch import Tensor

SQRT2 = math.sqrt(2.0)


def clipped_identity(x: Tensor) -> Tensor:
    """Straight-through estimator: 1 where |x| <= 1, else 0. Area 2.

    Source: the weight gradient of XNOR-Net's and Bi-Real Net's PyTorch code.
    """
    return (x.abs() <= 1).to(x.dtype)


def open_clipped_identity(x: Tensor) -> Tensor:
    """`clipped_identity` without its ends: 1 where |x| < 1, else 0.

    Source: the activation gradient of XNOR-Net's PyTorch code, which zeroes it from |x| = 1 on.
    """
    return (x.abs() < 1).to(x.dtype)


def unit_identity(x: Tensor) -> Tensor:
    """Derivative of the clip to [0, 1], for levels between 0 and 1: 1 where 0 < x < 1, else 0. Area 1.

    Source: BinaryDuo's Torch code, whose clip stands in front of a rounding that passes gradients on unchanged.
    """
    return ((x > 0) & (x < 1)).to(x.dtype)


def approx_sign(x: Tensor) -> Tensor:
    """Derivative of Bi-Real Net's piecewise polynomial: max(0, 2 - 2|x|). Area 2.

    Source: Bi-Real Net (arXiv 1808.00278), equation 3.
    """
    return (2 - 2 * x.abs()).clamp_min(0)


def training_aware(x: Tensor, t: Tensor | float, k: Tensor | float) -> Tensor:
    """RBNN's training-aware approximation: max(0, k (sqrt(2) t - t^2 |x|)). Area 2k, zero from |x| = sqrt(2)/t on.

    Source: RBNN (arXiv 2009.13055), as in the authors' code. With t = sqrt(2), k = 1 it is `approx_sign`.
    """
    return (k * (SQRT2 * t - t * t * x.abs())).clamp_min(0)


def training_aware_primitive(x: Tensor, t: float, k: float) -> Tensor:
    """The function whose derivative is `training_aware`: quadratic near 0, then constant +-k; once differentiable.

    Source: integrated from `training_aware`; value k and slope 0 at the joint.
    """
    inside = k * (SQRT2 * t * x - x.sign() * t * t * x * x / 2)
    return inside.where(x.abs() < SQRT2 / t, k * x.sign())


def annealing(progress: float, t_min: float = 1e-2, t_max: float = 1e1) -> tuple[float, float]:
    """The (t, k) of `training_aware` at a share `progress` = epoch / epochs of the training.

    `t` grows geometrically from `t_min` to `t_max`, and `k = max(1 / t, 1)`: with the defaults the slope at 0 stays
    sqrt(2) for the first two thirds.

    Source: RBNN (arXiv 2009.13055), as in the authors' code.

    >>> annealing(0.0)
    (0.01, 100.0)
    >>> annealing(1.0)
    (10.0, 1.0)
    """
    t = 10 ** (math.log10(t_min) + (math.log10(t_max) - math.log10(t_min)) * progress)
    return t, max(1 / t, 1.0)
