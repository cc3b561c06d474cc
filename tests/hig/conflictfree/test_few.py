"""Arithmetic on the numbers of two or three gradients, and memory that is used again."""

import math

import pytest
import torch

from hig.conflictfree import _few as few


def _cosines(rows: torch.Tensor) -> list[list[float]]:
    units = rows / rows.norm(dim=1, keepdim=True)
    return (units @ units.T).tolist()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("apart", [1.0, 1e-2])
def test_solved_has_the_products(count, apart):
    torch.manual_seed(count)
    rows = torch.randn(5, dtype=torch.float64) + apart * torch.randn(count, 5, dtype=torch.float64)
    weights = [1.0, -0.5, 2.0][:count]
    factors, norm = few.solved(_cosines(rows), weights)
    direction = torch.tensor(factors, dtype=torch.float64) @ (rows / rows.norm(dim=1, keepdim=True))
    expected = torch.linalg.pinv(rows / rows.norm(dim=1, keepdim=True)) @ torch.tensor(
        weights, dtype=torch.float64
    )
    # The condition of the cosines is about 1 / apart².
    assert torch.allclose(direction, expected, rtol=1e-13 / apart**4, atol=0)
    assert math.isclose(norm, float(expected.norm()), rel_tol=1e-13 / apart**4)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_dependent_gradients_are_left_to_the_pseudo_inverse(number):
    torch.manual_seed(0)
    rows = torch.randn(3, 5, dtype=torch.float64)
    rows[number] = rows[number - 1] - 2 * rows[number - 2]
    assert few.solved(_cosines(rows), [1.0, 1.0, 1.0]) is None
