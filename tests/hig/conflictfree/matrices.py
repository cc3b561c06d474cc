"""Gradients of several losses, sampled by structure and scale, and slow exact oracles."""

import torch
from torch import Tensor

from tests.textbook import relative_error

SHAPES = [(1, 7), (2, 5), (3, 40), (5, 5), (8, 300)]
SCALES = [1e-30, 1e-8, 1.0, 1e8, 1e30]


def random_matrix(shape, seed=0, dtype=torch.float64) -> Tensor:
    """Independent rows of about the same length."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def badly_scaled(shape, seed=0, dtype=torch.float64) -> Tensor:
    """Independent rows whose lengths differ by up to 1e6."""
    generator = torch.Generator().manual_seed(seed + 1)
    exponents = 6 * torch.rand(shape[0], 1, generator=generator, dtype=torch.float64) - 3
    return (random_matrix(shape, seed).double() * 10**exponents).to(dtype)


def conflicting(shape, seed=0, dtype=torch.float64, gap=0.1) -> Tensor:
    """Rows close to a common line, about half of them backwards."""
    axis = random_matrix((1, shape[1]), seed + 2)
    signs = torch.tensor([(-1.0) ** i for i in range(shape[0])], dtype=torch.float64)
    return (signs.unsqueeze(1) * axis + gap * random_matrix(shape, seed)).to(dtype)


STRUCTURES = {
    "random": random_matrix,
    "badly scaled": badly_scaled,
    "conflicting": conflicting,
}


def units(matrix: Tensor) -> Tensor:
    """Rows of length 1 in float64; zero rows stay zero."""
    rows = matrix.double()
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / lengths.clamp_min(1e-300)


def textbook_config(matrix: Tensor, weights: Tensor | None = None) -> Tensor:
    """ConFIG by a float64 pseudo-inverse, letter by letter."""
    rows = matrix.double()
    weights = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights
    direction = torch.linalg.pinv(units(rows)) @ weights
    direction = direction / direction.norm()
    return (rows @ direction).sum() * direction


def textbook_pcgrad(matrix: Tensor) -> Tensor:
    """PCGrad by its two loops, in float64."""
    rows = matrix.double()
    total = torch.zeros_like(rows[0])
    for i, row in enumerate(rows):
        projected = row.clone()
        for j, other in enumerate(rows):
            if i != j and other.any():
                projected -= (projected @ other).clamp_max(0) / (other @ other) * other
        total += projected
    return total


def textbook_imtl_g(matrix: Tensor) -> Tensor:
    """IMTL-G: equal projections and weights that sum to one, as one linear system in float64."""
    rows = matrix.double()
    m = len(rows)
    system = rows.new_zeros((m + 1, m + 1))  # unknown: m weights and the common projection
    system[:m, :m] = units(rows) @ rows.T
    system[:m, m] = -1
    system[m, :m] = 1
    right = rows.new_zeros(m + 1)
    right[m] = 1
    return torch.linalg.solve(system, right)[:m] @ rows


def cosines(direction: Tensor, matrix: Tensor) -> Tensor:
    """Between a direction and every row, in float64."""
    return units(matrix) @ units(direction.unsqueeze(0))[0]


def assert_follows(make, algorithm, losses: int, betas) -> None:
    """Give an operator with a memory one loss at a time, and compare with an algorithm.

    Args:
        make: class of the operator.
        algorithm: from the history of (loss, gradient) to all directions.
        losses: how many.
        betas: both.
    """
    order = [*range(losses - 1), 0, losses - 1, *range(losses)] * 3
    gradients = list(zip(order, random_matrix((len(order), 20)) + 0.3, strict=True))
    operator = make(losses, *betas)
    expected = list(algorithm(gradients, losses, *betas))
    for (index, gradient), direction in zip(gradients, expected, strict=True):
        found = operator.calculate_gradient(index, gradient)
        assert found.dtype == torch.float64
        assert relative_error(found, direction) < 1e-9
    assert operator.all_initialized
    assert operator.report.smallest_cosine > 0
