"""Bidiagonalisation: bases, the matrix between them, and what happens when they are exhausted."""

import pytest
import torch

from hig._spectral.golub_kahan import Bidiagonalisation
from tests.textbook import relative_error


class Matrix:
    """The products of a matrix in float64, counted."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.products = matrix, tuple(matrix.shape), 0

    def vjp(self, weights):
        self.products += 1
        return self.matrix.T @ weights

    def jvp(self, direction):
        self.products += 1
        return self.matrix @ direction


def graded(n=30, columns=40, smallest=1e-8):
    """Singular values spread evenly over orders of magnitude."""
    generator = torch.Generator().manual_seed(0)

    def orthonormal(size, rank):
        return torch.linalg.qr(torch.randn(size, rank, generator=generator).double())[0]

    rank = min(n, columns)
    values = torch.logspace(0, torch.tensor(smallest).log10().item(), rank, dtype=torch.float64)
    matrix = orthonormal(n, rank) * values @ orthonormal(columns, rank).T
    return matrix, torch.randn(n, generator=generator).double()


@pytest.mark.parametrize("shape", [(30, 40), (40, 30), (1, 5), (5, 1)])
def test_the_bases_are_orthonormal_and_carry_the_matrix(shape):
    matrix, start = graded(*shape)
    bases = Bidiagonalisation(Matrix(matrix), start, torch.float64)
    steps = min(25, *shape)
    bases.extend(steps)
    left, right, between = bases.left, bases.right, bases.matrix()
    assert (left.shape, right.shape) == ((steps + 1, shape[0]), (steps, shape[1]))
    assert relative_error(left[0], start / start.norm()) < 1e-15
    # The last row of a basis that fills its space is rounding made long.
    whole = left[:-1] if steps == shape[0] else left
    for basis in (whole, right):
        assert relative_error(basis @ basis.T, torch.eye(len(basis)).double()) < 1e-13
    assert relative_error(left.T @ between, matrix @ right.T) < 1e-13
    assert torch.equal(between, between.tril().triu(-1))


def test_growing_step_by_step_is_growing_at_once():
    matrix, start = graded()
    jacobian = Matrix(matrix)
    slowly, at_once = (Bidiagonalisation(jacobian, start, torch.float64) for _ in range(2))
    for steps in (1, 2, 7, 12):
        slowly.extend(steps)
    assert jacobian.products == 24
    slowly.extend(5)  # has them already
    assert jacobian.products == 24 and slowly.steps == 12
    at_once.extend(12)
    assert torch.equal(slowly.matrix(), at_once.matrix())
    assert torch.equal(slowly.right, at_once.right)


def test_small_singular_values_are_found_that_squaring_loses():
    matrix, start = graded(smallest=1e-12)
    bases = Bidiagonalisation(Matrix(matrix), start, torch.float64)
    bases.extend(30)
    found, expected = (torch.linalg.svdvals(m) for m in (bases.matrix(), matrix))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    squared = torch.linalg.eigvalsh(matrix @ matrix.T).clamp_min(0).sqrt().flip(0)
    assert float((squared / expected - 1).abs().max()) > 1  # the test would notice


def test_float32_bases_are_orthogonal_to_float32_rounding():
    matrix, start = graded()
    bases = Bidiagonalisation(Matrix(matrix), start, torch.float32)
    bases.extend(25)
    assert bases.left.dtype == bases.right.dtype == torch.float32
    assert bases.matrix().dtype == torch.float64
    product = bases.right.double() @ bases.right.double().T
    assert relative_error(product, torch.eye(25).double()) < 1e-6


def test_an_invariant_subspace_adds_nothing_more():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 3, generator=generator).double() for n in (20, 30))
    matrix = left @ right.T
    bases = Bidiagonalisation(Matrix(matrix), matrix @ torch.ones(30).double(), torch.float64)
    bases.extend(10)
    values = torch.linalg.svdvals(bases.matrix())
    expected = torch.linalg.svdvals(matrix)[:3]
    torch.testing.assert_close(values[:3], expected, rtol=1e-10, atol=0)
    assert bool((values[3:] < 1e-12 * values[0]).all())
    assert bool(torch.isfinite(bases.right).all())


def test_a_zero_matrix():
    bases = Bidiagonalisation(Matrix(torch.zeros(4, 6).double()), torch.ones(4).double(), F64)
    bases.extend(3)
    assert not bases.matrix().any() and not bases.right.any()
    assert float(bases.adjoint_error) == 0


def test_products_that_do_not_belong_together_are_noticed():
    matrix, start = graded()
    jacobian = Matrix(matrix)
    bases = Bidiagonalisation(jacobian, start, F64)
    assert bases.adjoint_error is None
    bases.extend(1)
    assert float(bases.adjoint_error) < 1e-14
    jacobian.jvp = lambda direction: 1.01 * matrix @ direction
    bases = Bidiagonalisation(jacobian, start, F64)
    bases.extend(1)
    assert 1e-3 < float(bases.adjoint_error) < 1e-1


F64 = torch.float64
