"""Finite differences with their uncertainty: slopes, noise and jumps of values along a line.

Noise is estimated by divided differences of high order, in which a smooth function vanishes: Moré
and Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33 (2011),
https://doi.org/10.1137/100786125. Unlike there, points are not equally spaced: noise that is a fast
oscillation, as of rounded phases, could look smooth at equal distances.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["OFFSETS", "JumpSearch", "gauss_legendre", "noise", "slope", "spaced"]

OFFSETS = (-3.06, -1.87, -1.13, 0.0, 0.94, 2.21, 2.83)

_ORDER = 6  # of differences for noise
_HIGH_ORDER = 10  # of differences for jumps, which hardly shrink with the order
_REFINED = 17
_REFINEMENTS = 7
_PLACES = 3
_APART = 2


def slope(values: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Derivative at 0 of values (7, ...) at `OFFSETS` times a step, and its uncertainty.

    Of sixth order; the uncertainty is the distance to the derivative by the five inner points,
    plus three times the error by the noise of the values.
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
    """Weights of the divided differences of an order for all windows of points, each of norm 1."""
    rows = []
    for first in range(len(times) - order):
        window = times[first : first + order + 1]
        row = [1 / math.prod(a - b for b in window if b != a) for a in window]
        norm = math.hypot(*row)
        after = len(times) - order - 1 - first
        rows.append([0.0] * first + [weight / norm for weight in row] + [0.0] * after)
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def noise(values: Tensor, times: Sequence[float]) -> Tensor:
    """Standard deviation of noise in values (n, ...) at n times, by their highest differences."""
    differences = [
        torch.tensordot(_difference_weights(tuple(times), order).to(values), values, 1)
        for order in (_ORDER - 1, _ORDER)
    ]
    return torch.cat(differences).square().mean(0).sqrt()


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


class JumpSearch:
    """Search for jumps or noise of a function of t between -reach and reach.

    Attributes:
        least_smooth: size of a jump that would explain the place where it is least smooth.
    """

    def __init__(self, function: Callable[[float], Tensor], reach: float, count: int) -> None:
        """Evaluate a scalar function of t at ``count`` points from -reach to reach."""
        self._function, self._reach, self._count = function, reach, count
        self._heights, self._times = _heights(function, 0.0, reach, count)
        self.least_smooth = float(self._heights.max())

    def height(self, floor: float) -> float:
        """Size of the jumps; zero if there is none above a floor.

        A kink shrinks in proportion to the distance of points, a smooth function faster; a jump
        keeps its size at any distance. Places are refined one after the other, the least smooth
        first: next to jumps a solver has kinks, and steep parts.
        """
        if not self.least_smooth > floor:
            return 0.0
        heights, few = self._heights.clone(), self._count // 2 + 1
        closer, _ = _heights(self._function, 0.0, self._reach / 6, few)  # a third of the distance
        if float(closer.median()) >= 0.5 * float(heights.median()) > floor:
            return self.least_smooth  # noise, or jumps too dense to separate
        for _ in range(_PLACES):
            place = int(heights.argmax())
            if not heights[place] > floor:
                return 0.0
            distance = 2 * self._reach / (self._count - 1)
            height = _refined(self._function, self._times[place], distance, floor)
            if height > 0:
                return height
            heights[max(0, place - _APART) : place + _APART + 1] = 0
        return 0.0


def _refined(
    function: Callable[[float], Tensor], at: float, distance: float, floor: float
) -> float:
    """Size of a jump near t, by refinement of points at a distance; zero without a jump."""
    sizes: list[float] = []
    while len(sizes) < _REFINEMENTS:
        reach = 2 * distance
        heights, times = _heights(function, at, reach, _REFINED)
        place = int(heights.argmax())
        sizes.append(float(heights[place]))
        if not sizes[-1] > floor:
            return 0.0
        # Points at a sixteenth of the distance: a kink would have shrunk by that factor.
        if len(sizes) > 2 and sizes[-1] > 0.4 * sizes[-3]:
            return sizes[-1]
        at, distance = times[place], 2 * reach / (_REFINED - 1)
    return 0.0


def _heights(
    function: Callable[[float], Tensor], centre: float, reach: float, count: int
) -> tuple[Tensor, list[float]]:
    """Jumps between neighbouring points that would explain all differences, and their places.

    Each is the least-squares fit of one jump to the differences of all windows, weighted by the
    part of them that it explains. All are zero if the function is not finite.
    """
    times = [centre + reach * t for t in spaced(count)]
    values = torch.stack([function(t) for t in times])
    weights, marks = (one.to(values) for one in _jump_marks(count))
    middles = [(a + b) / 2 for a, b in itertools.pairwise(times)]
    if not values.isfinite().all():
        return weights.new_zeros(count - 1), middles
    norms = marks.norm(dim=0)
    # At the ends, where few windows contain a jump, this is less than its size.
    return (marks.T @ (weights @ values)).abs() / (norms * norms.max()), middles


@functools.cache
def _jump_marks(count: int) -> tuple[Tensor, Tensor]:
    """Weights (windows, count) of differences, and differences (windows, count - 1) of unit jumps.

    A jump after point k adds its height to all later values. The weights of a window sum to zero,
    so that their sum from k + 1 on is, up to the sign, the sum up to k.
    """
    weights = _difference_weights(spaced(count), _HIGH_ORDER)
    return weights, weights.cumsum(1)[:, :-1]


@functools.cache
def gauss_legendre(count: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of a Gauss–Legendre quadrature from -1 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return nodes.tolist(), weights.tolist()
