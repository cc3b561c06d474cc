"""Norm grafting: the step length of Adam on another direction (arXiv 2002.11803)."""

import math
from collections.abc import Sequence

__all__ = ["graft_factors"]


def graft_factors(
    graft: str | None, squares: Sequence[float], adam_squares: Sequence[float]
) -> list[float]:
    """Compute the factors that give directions the norms of Adam's steps.

    Args:
        graft: "global" if all layers together get the norm of Adam's step, "layer" if each layer
            does, "eigenbasis" for the geometric mean of both, in which all layers together have the
            norm of Adam's step; None leaves directions unchanged.
        squares: squared norm of each layer's direction.
        adam_squares: squared norm of Adam's step of each layer, per unit of learning rate.

    Returns:
        Factors, one for each layer, per unit of learning rate. A direction that is zero has the
        factor zero.
    """
    if graft is None:
        return [1.0] * len(squares)
    if graft == "global":
        return [_ratio(sum(adam_squares), sum(squares))] * len(squares)
    factors = [_ratio(*pair) for pair in zip(adam_squares, squares, strict=True)]
    if graft == "layer":
        return factors
    # The spectrum knows which layers move the prediction more, and is off by as much as residuals
    # are no noise: one norm each forgets it, one for all lets few layers take most of the step.
    roots = [math.sqrt(factor) for factor in factors]
    whole = sum(root * root * square for root, square in zip(roots, squares, strict=True))
    return [root * _ratio(sum(adam_squares), whole) for root in roots]


def _ratio(adam_square: float, square: float) -> float:
    return math.sqrt(adam_square / square) if square > 0 else 0.0
