"""Random points in boxes, on their faces, and where they are needed most."""

from collections.abc import Sequence

import torch
from torch import Tensor


def latin_hypercube(
    count: int, low: Sequence[float], high: Sequence[float], generator: torch.Generator
) -> Tensor:
    """Points of which each coordinate falls into each of ``count`` equal strata exactly once.

    McKay, Beckman, Conover, Technometrics 21 (1979).

    Args:
        count: Number of points.
        low: Lower corner of the box, one number per coordinate.
        high: Upper corner.
        generator: CPU generator; its state alone decides the points.

    Returns:
        (count, coordinates), float64 on the CPU, in random order.
    """
    low, high = torch.tensor([low, high], dtype=torch.float64)
    within = torch.rand(len(low), count, generator=generator, dtype=torch.float64)
    strata = torch.stack([torch.randperm(count, generator=generator) for _ in low])
    return low + (high - low) * ((strata + within) / count).T


def on_faces(
    points: Tensor, low: Sequence[float], high: Sequence[float], axes: Sequence[int]
) -> Tensor:
    """Points moved onto the faces of a box, in turn: every face gets the same share.

    Args:
        points: (count, coordinates) in random order.
        low: Lower corner of the box.
        high: Upper corner.
        axes: Coordinates across whose two faces the points are spread.

    Returns:
        (count, coordinates): each point with one coordinate put to one end.
    """
    points = points.clone()
    faces = [(axis, end[axis]) for axis in axes for end in (low, high)]
    for index, (axis, end) in enumerate(faces):
        points[index :: len(faces), axis] = end
    return points


def weighted_choice(weights: Tensor, luck: Tensor, count: int) -> Tensor:
    """Choose without replacement, each next one in proportion to its weight among those left.

    Efraimidis, Spirakis, Information Processing Letters 97 (2006).

    Args:
        weights: (candidates,), not negative.
        luck: (candidates,) from the exponential distribution of mean 1.
        count: How many to choose.

    Returns:
        Indices (count,), on the device of the weights.
    """
    return (weights / luck).topk(count).indices


def grid(low: Sequence[float], high: Sequence[float], counts: Sequence[int]) -> Tensor:
    """Points of an even grid with its ends, float64 (points, coordinates), the last runs fastest.

    Args:
        low: Lower corner.
        high: Upper corner.
        counts: Points along each coordinate.
    """
    sides = zip(low, high, counts, strict=True)
    axes = [torch.linspace(*side, dtype=torch.float64) for side in sides]
    return torch.cartesian_prod(*axes)
