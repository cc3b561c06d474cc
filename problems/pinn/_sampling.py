"""Random points in boxes, on their faces, and where they are needed most."""

from collections.abc import Sequence

import torch
from torch import Tensor


def latin_hypercube(
    count: int, low: Sequence[float], high: Sequence[float], generator: torch.Generator
) -> Tensor:
    """Points (count, coordinates) float64 in random order, one in each stratum of a coordinate.

    McKay, Beckman, Conover, Technometrics 21 (1979).
    """
    low, high = torch.tensor([low, high], dtype=torch.float64)
    within = torch.rand(len(low), count, generator=generator, dtype=torch.float64)
    strata = torch.stack([torch.randperm(count, generator=generator) for _ in low])
    return low + (high - low) * ((strata + within) / count).T


def on_faces(
    points: Tensor, low: Sequence[float], high: Sequence[float], axes: Sequence[int]
) -> Tensor:
    """Points (count, coordinates), each moved onto a face of a box across one of the axes in turn.

    The points are in random order; every face gets the same share.
    """
    points = points.clone()
    faces = [(axis, end[axis]) for axis in axes for end in (low, high)]
    for index, (axis, end) in enumerate(faces):
        points[index :: len(faces), axis] = end
    return points


def weighted_choice(weights: Tensor, luck: Tensor, count: int) -> Tensor:
    """Choose ``count`` indices, each next one in proportion to its weight among those left.

    Weights (candidates,) are not negative, ``luck`` is from the exponential distribution of mean 1.

    Efraimidis, Spirakis, Information Processing Letters 97 (2006).
    """
    return (weights / luck).topk(count).indices


def grid(low: Sequence[float], high: Sequence[float], counts: Sequence[int]) -> Tensor:
    """Points of an even grid with its ends, float64 (points, axes), the last runs fastest."""
    sides = zip(low, high, counts, strict=True)
    axes = [torch.linspace(*side, dtype=torch.float64) for side in sides]
    return torch.cartesian_prod(*axes)
