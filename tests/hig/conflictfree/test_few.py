"""Arithmetic on the numbers of two or three gradients, and memory that is used again."""

import math

import pytest
import torch

from hig.conflictfree import ConFIGOperator, PCGradOperator, apply_gradient_vector
from hig.conflictfree import _few as few
from hig.conflictfree._gradient_matrix import SMALL_SIZE, GradientMatrix


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


@pytest.mark.parametrize("losses", [2, 3])
@pytest.mark.parametrize("operator", [PCGradOperator, ConFIGOperator])
def test_memory_that_is_used_again_is_no_ones_else(losses, operator):
    size = SMALL_SIZE + 1
    torch.manual_seed(losses)
    first, second = (torch.randn(losses, size).unbind() for _ in range(2))
    expected = operator()(torch.stack(first).double()).float()
    kept = GradientMatrix(first)  # holds its memory while others work
    found = operator()(first)
    with torch.inference_mode():
        operator()(second)
    operator()(second)
    assert torch.equal(found, operator()(first))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    factors = [1.0] * losses
    again = GradientMatrix(first)
    again = again.lift(again.combination(factors))
    assert torch.equal(kept.lift(kept.combination(factors)), again)


def test_gradients_of_all_kinds_are_written():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2)).to(
        memory_format=torch.channels_last
    )
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    network[1].double()
    held = [parameter.grad for parameter in network.parameters()]
    vector = torch.arange(float(sum(gradient.numel() for gradient in held)))
    apply_gradient_vector(network, vector)
    assert all(p.grad is one for p, one in zip(network.parameters(), held, strict=True))
    assert torch.equal(torch.cat([one.reshape(-1).float() for one in held]), vector)
