"""Finite differences with their uncertainty: slopes, noise and jumps of equally spaced values.

The noise level comes from differences of high order, in which a smooth function vanishes: Moré and
Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33 (2011), https://doi.org/10.1137/100786125.
"""

import math

import torch
from torch import Tensor

__all__ = ["OFFSETS", "integral", "jump", "noise", "slope"]

OFFSETS = (-3, -2, -1, 0, 1, 2, 3)

_FOURTH = ((1, 4 / 3), (2, -1 / 3))
_SIXTH = ((1, 1.5), (2, -0.6), (3, 0.1))
_ORDER = 6  # of the differences that are taken for noise


def slope(values: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Derivative in the middle of seven values (7, ...), to sixth order, and its uncertainty.

    The uncertainty is the distance to the derivative of fourth order, and three times what the
    noise of the values makes of it.
    """

    def central(weights: tuple[tuple[int, float], ...]) -> Tensor:
        terms = [w / (2 * k * step) * (values[3 + k] - values[3 - k]) for k, w in weights]
        return torch.stack(terms).sum(0)

    best = central(_SIXTH)
    return best, (best - central(_FOURTH)).abs() + 3 * noise(values) / step


def noise(values: Tensor) -> Tensor:
    """Standard deviation of noise in seven or more values (n, ...), by sixth and fifth differences."""
    found = []
    for order in (_ORDER - 1, _ORDER):
        differences = values.diff(n=order, dim=0)
        found.append(differences.square().mean(0) / math.comb(2 * order, order))
    return torch.stack(found).mean(0).sqrt()


def jump(values: Tensor) -> float:
    """Size of jumps or noise in a row of values (n,), n at least 25; zero where there are none.

    Sixth differences at the spacings 1 and 4 separate a discontinuity from a kink and a smooth
    function: the first stays as large, the others grow by 4 and 4⁶.
    """
    near, far = values.diff(n=_ORDER), values[::4].diff(n=_ORDER)
    size = float(near.square().mean().sqrt())
    if not math.isfinite(size) or float(far.square().mean().sqrt()) > 4**0.8 * size:
        return 0.0
    # A single jump enters sixth differences with 1, 5, 10, 10, 5, 1 times its size.
    return float(near.abs().max()) / math.comb(_ORDER - 1, 2)


def integral(values: Tensor, step: float) -> float:
    """Integral over 4 k + 1 equally spaced values, by Boole's rule."""
    parts = values.unfold(0, 5, 4) * values.new_tensor([7.0, 32, 12, 32, 7])
    return float(parts.sum()) * step * 2 / 45
