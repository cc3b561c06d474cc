"""Finite differences with their uncertainty: slopes, noise and jumps of values along a line.

Noise comes from divided differences of high order, in which a smooth function vanishes: Moré and
Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33 (2011),
https://doi.org/10.1137/100786125. Points are not equally spaced as there: noise that is a fast
oscillation, as of rounded phases, could look smooth at the same distance from one to the next.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["OFFSETS", "gauss_legendre", "jump", "noise", "slope", "spaced"]

OFFSETS = (-3.06, -1.87, -1.13, 0.0, 0.94, 2.21, 2.83)

_ORDER = 6  # of the differences that are taken for noise
_HIGH_ORDER = 10  # and for jumps, which it leaves nearly as large
_REFINED = 17
_REFINEMENTS = 3


def slope(values: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Derivative at 0 of values (7, ...) at `OFFSETS` times a step, and its uncertainty.

    Of sixth order; the uncertainty is the distance to the derivative by the five inner points,
    and three times what the noise of the values makes of it.
    """
    best, inner = (
        torch.tensordot(_slope_weights(points).to(values), part, 1) / step
        for points, part in ((OFFSETS, values), (OFFSETS[1:-1], values[1:-1]))
    )
    return best, (best - inner).abs() + 3 * noise(values, OFFSETS) / step


@functools.cache
def _slope_weights(points: Sequence[float]) -> Tensor:
    """Weights of the derivative at 0 of the polynomial through values at some points."""
    powers = torch.tensor(points, dtype=torch.float64, device="cpu") ** torch.arange(
        len(points), device="cpu"
    ).unsqueeze(1)
    unit = torch.zeros(len(points), dtype=torch.float64, device="cpu")
    unit[1] = 1
    return torch.linalg.solve(powers, unit)


@functools.cache
def _difference_weights(times: Sequence[float], order: int) -> Tensor:
    """Divided differences of an order, for all windows of points, weights of norm 1 each."""
    rows = []
    for first in range(len(times) - order):
        window = times[first : first + order + 1]
        row = [1 / math.prod(a - b for b in window if b != a) for a in window]
        norm = math.hypot(*row)
        rest = len(times) - order - 1 - first
        rows.append([0.0] * first + [weight / norm for weight in row] + [0.0] * rest)
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def noise(values: Tensor, times: Sequence[float]) -> Tensor:
    """Standard deviation of noise in values (n, ...) at n times, by their highest differences."""
    found = [
        torch.tensordot(_difference_weights(tuple(times), order).to(values), values, 1)
        for order in (_ORDER - 1, _ORDER)
    ]
    return torch.cat(found).square().mean(0).sqrt()


@functools.cache
def spaced(count: int) -> tuple[float, ...]:
    """Times from -1 to 1, at distances that differ from one another by up to a half."""
    generator = torch.Generator("cpu").manual_seed(0)
    moves = 0.25 * (
        2 * torch.rand(count, generator=generator, dtype=torch.float64, device="cpu") - 1
    )
    moves[0] = moves[-1] = 0
    middle = (count - 1) / 2
    return tuple(((torch.arange(count, device="cpu") + moves - middle) / middle).tolist())


def jump(function: Callable[[float], Tensor], reach: float, count: int) -> float:
    """Size of jumps or noise of a function of t between -reach and reach; zero for none.

    A kink fades in proportion to the distance of points, a smooth function faster; a discontinuity
    stays as large in however close a look at the place where it is largest.

    Args:
        function: from t to a scalar.
        reach: how far to look.
        count: points of the first look.
    """
    first, at = _heights(function, 0.0, reach, count)
    closer, _ = _heights(function, 0.0, reach / 3, count)
    if float(closer.median()) >= 0.5 * float(first.median()) > 0:
        return float(first.max())  # noise, or jumps too dense to look at one of them
    height = initial = float(first.max())
    for look in range(1, _REFINEMENTS + 1):
        # The middle of the window, at a quarter of the distance between points.
        reach, count = reach * (_REFINED - 1) / (4 * (count - 1)), _REFINED
        heights, at = _heights(function, at, reach, count)
        height = float(heights.max())
        if not height > 0.2 * initial / 2**look:
            return 0.0
    return min(initial, 3 * height)


def _heights(
    function: Callable[[float], Tensor], centre: float, reach: float, count: int
) -> tuple[Tensor, float]:
    """Jumps that would explain the differences of each window; the place of the largest.

    All are zero where the function is not finite.
    """
    times = [centre + reach * t for t in spaced(count)]
    values = torch.stack([function(t) for t in times])
    weights = _difference_weights(spaced(count), _HIGH_ORDER).to(values)
    if not values.isfinite().all():
        return weights.new_zeros(len(weights)), centre
    # A discontinuity enters with the sum of the weights on one side of it.
    heights = (weights @ values).abs() / weights.cumsum(1).abs().amax(1)
    return heights, times[int(heights.argmax()) + _HIGH_ORDER // 2]


@functools.cache
def gauss_legendre(count: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of a Gauss–Legendre quadrature from -1 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return nodes.tolist(), weights.tolist()
