"""Norm grafting: the step length of Adam on another direction (arXiv 2002.11803)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["GRAFTS", "Squares", "graft_factors"]

GRAFTS = ("eigenbasis", "layer", "global", None)

# Squared norms of the parts of each layer, scalars.
Squares = list[list[Tensor]]


def graft_factors(
    graft: str | None, squares: Squares, adam_squares: Squares, others: Sequence[Tensor]
) -> tuple[list[float], float]:
    """Compute the factors that give directions the norms of Adam's steps.

    Args:
        graft: "global" if all layers together get the norm of Adam's step, "layer" and "eigenbasis"
            if each layer does; None leaves directions unchanged.
        squares: squared norms of the parts of each layer's direction.
        adam_squares: squared norms of the parts of Adam's step of each layer.
        others: squared norms of Adam's steps of the other parameters, which it updates.

    Returns:
        Factors, one for each layer, and the norm of all steps together, both per unit of learning
        rate. A direction that is zero has the factor zero.
    """
    *numbers, other_squares = _sums([*squares, *adam_squares, others])
    squared_norms, adams = numbers[: len(squares)], numbers[len(squares) :]
    if graft == "global":
        factors = [_ratio(sum(adams), sum(squared_norms))] * len(squares)
    elif graft in ("layer", "eigenbasis"):
        factors = [_ratio(*pair) for pair in zip(adams, squared_norms, strict=True)]
    else:
        factors = [1.0] * len(squares)
    total = sum(factor**2 * square for factor, square in zip(factors, squared_norms, strict=True))
    return factors, math.sqrt(total + other_squares)


def _sums(squares: Sequence[Sequence[Tensor]]) -> list[float]:
    """Sum lists of scalars, with one transfer from the device for all of them."""
    flat = [square.double() for several in squares for square in several]
    values = iter(torch.stack(flat).tolist())
    return [sum(next(values) for _ in several) for several in squares]


def _ratio(adam_square: float, square: float) -> float:
    return math.sqrt(adam_square / square) if square > 0 else 0.0
