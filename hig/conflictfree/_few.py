"""Scalar arithmetic for two or three gradients, faster than numpy for so few numbers."""

import math
from collections.abc import Sequence
from operator import add, mul

import torch
from torch import Tensor

__all__ = ["FEW", "GRAM_FLOOR", "in_range", "products", "projected", "solved", "weighted"]

# Up to this many losses, arithmetic is done number by number.
FEW = 3
# A float64 Gram matrix with smaller relative eigenvalues gives the direction to less than 1e-8.
GRAM_FLOOR = 1e-8
# The determinant of three unit gradients is their smallest eigenvalue times at most (3/2)², and
# the largest is at most 3.
SMALLEST_DETERMINANT = 3 * 2.25 * GRAM_FLOOR
# Below this, squares of float64 entries have lost digits, or everything.
SMALLEST_SQUARE = 1e-200

Solution = tuple[list[float], float]


def products(gradients: list[list[float]], factors: list[float]) -> list[float]:
    """Products of a matrix of a few numbers with a vector."""
    return [sum(map(mul, row, factors)) for row in gradients]


def solved(cosines: list[list[float]], weights: list[float]) -> Solution | None:
    """Find the combination of two or three unit gradients that has the given products with them.

    Returns:
        m coefficients, and the length of the combination; None if the gradients are too nearly
        dependent to compute it accurately from their cosines, or if m is not two or three.
    """
    if len(weights) == 2:
        return _two(cosines[0][1], weights)
    return _three(cosines, weights) if len(weights) == 3 else None


def _two(cosine: float, weights: list[float]) -> Solution | None:
    if 1 - abs(cosine) <= GRAM_FLOOR * (1 + abs(cosine)):
        return None
    first, second = weights
    determinant = (1 - cosine) * (1 + cosine)
    factors = [(first - cosine * second) / determinant, (second - cosine * first) / determinant]
    # The squared length is wᵀ C⁻¹ w. The matrix of cosines C has the eigenvectors (1, ±1) and the
    # eigenvalues 1 ± cosine: a sum of terms that are not negative, in which nothing cancels.
    square = (first + second) ** 2 / (1 + cosine) + (first - second) ** 2 / (1 - cosine)
    return factors, math.sqrt(0.5 * square)


def _three(cosines: list[list[float]], weights: list[float]) -> Solution | None:
    """Solve by the Cholesky factors of the cosines, whose diagonal is 1."""
    a, b, c = cosines[1][0], cosines[2][0], cosines[2][1]
    square = (1 - a) * (1 + a)
    if square <= SMALLEST_DETERMINANT:
        return None
    second = math.sqrt(square)
    across = (c - a * b) / second
    last = (1 - b) * (1 + b) - across * across
    if square * last <= SMALLEST_DETERMINANT:
        return None
    third = math.sqrt(last)
    # Forward substitution: components of the combination along the orthogonal directions of the
    # factors, whose squares sum to that of its length. Backward substitution: its coefficients.
    x = weights[0]
    y = (weights[1] - a * x) / second
    z = (weights[2] - b * x - across * y) / third
    r = z / third
    q = (y - across * r) / second
    return [x - a * q - b * r, q, r], math.hypot(x, y, z)


def projected(cosines: list[list[float]], lengths: list[float]) -> list[float]:
    """Coefficients of PCGrad's sum of projected gradients, in terms of the unit gradients."""
    if min(map(min, cosines)) >= 0:
        return lengths
    total = [0.0] * len(lengths)
    for number, length in enumerate(lengths):
        row = [0.0] * len(lengths)
        row[number] = length
        for other, angles in enumerate(cosines):
            conflict = sum(map(mul, row, angles)) if other != number else 0.0
            if conflict < 0:
                row[other] -= conflict
        total = list(map(add, total, row))
    return total


def weighted(rows: Sequence[Tensor], weights: list[float], memory: Tensor | None) -> Tensor:
    """Combination of few rows, written to ``memory`` unless it is None."""
    total = torch.mul(rows[0], weights[0], out=memory)
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total.add_(row, alpha=weight)
    return total


def in_range(squares: list[float], exact: bool) -> bool:
    """Return whether squared lengths are finite, and lost no digits to underflow."""
    return all(
        (square > SMALLEST_SQUARE or (exact and square == 0)) and square < float("inf")
        for square in squares
    )
