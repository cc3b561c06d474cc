"""Norm grafting: the step length of Adam on another direction (arXiv 2002.11803)."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hig._kronecker.adam import AdamStep

__all__ = ["GRAFTS", "graft_factors"]

GRAFTS = ("global", "layer", None)


def graft_factors(
    graft: str | None,
    layers: Sequence[Mapping[Tensor, Tensor]],
    steps: Mapping[Tensor, AdamStep],
    others: Mapping[Tensor, AdamStep],
) -> tuple[list[float], float]:
    """Compute the factors that give directions the norms of Adam's steps.

    Args:
        graft: "global" if all layers together get the norm of Adam's step, "layer" if each layer
            does; None leaves directions unchanged.
        layers: the direction of each layer, by parameter.
        steps: Adam's step of every parameter of these layers.
        others: Adam's step of the other parameters, which it updates.

    Returns:
        Factors, one for each layer, and the norm of all steps together, both per unit of learning
        rate. A direction that is zero has the factor zero.
    """
    squares = [[direction.square().sum() for direction in layer.values()] for layer in layers]
    squares += [[steps[parameter].square() for parameter in layer] for layer in layers]
    squares.append([step.square() for step in others.values()])
    *numbers, other_squares = _sums(squares)
    squared_norms, adam_squares = numbers[: len(layers)], numbers[len(layers) :]
    if graft == "global":
        factors = [_ratio(sum(adam_squares), sum(squared_norms))] * len(layers)
    elif graft == "layer":
        factors = [_ratio(*pair) for pair in zip(adam_squares, squared_norms, strict=True)]
    else:
        factors = [1.0] * len(layers)
    total = sum(factor**2 * square for factor, square in zip(factors, squared_norms, strict=True))
    return factors, math.sqrt(total + other_squares)


def _sums(squares: Sequence[Sequence[Tensor]]) -> list[float]:
    """Sum lists of scalars, with one transfer from the device for all of them."""
    flat = [square.double() for several in squares for square in several]
    values = iter(torch.stack(flat).tolist())
    return [sum(next(values) for _ in several) for several in squares]


def _ratio(adam_square: float, square: float) -> float:
    return math.sqrt(adam_square / square) if square > 0 else 0.0
