"""Norm grafting: the step length of Adam on another direction (arXiv 2002.11803)."""

import math
from collections.abc import Sequence

__all__ = ["graft_factors"]

# Most that the spectrum may make the step of a layer longer or shorter than Adam's.
_APART = math.sqrt(2)


def graft_factors(
    graft: str | None, squares: Sequence[float], adam_squares: Sequence[float]
) -> list[float]:
    """Compute the factors that give directions the norms of Adam's steps.

    Args:
        graft: "global" if all layers together get the norm of Adam's step, "layer" if each layer
            does, "eigenbasis" if all together do, and each up to about a factor of the root of
            two; None leaves directions unchanged.
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
    # The spectrum knows which layers move the prediction more: one norm each forgets that. One for
    # all lets few layers of some networks take nearly all of the step.
    whole = _ratio(sum(adam_squares), sum(squares))
    factors = [min(max(whole, factor / _APART), factor * _APART) for factor in factors]
    total = sum(factor**2 * square for factor, square in zip(factors, squares, strict=True))
    return [factor * _ratio(sum(adam_squares), total) for factor in factors]


def _ratio(adam_square: float, square: float) -> float:
    return math.sqrt(adam_square / square) if square > 0 else 0.0
