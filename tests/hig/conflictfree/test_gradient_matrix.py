"""The few numbers behind a matrix of gradients, and linear algebra on them."""

import pytest
import torch

from hig.conflictfree import _gradient_matrix
from hig.conflictfree._gradient_matrix import GradientMatrix
from tests.hig.conflictfree.matrices import SCALES, SHAPES, STRUCTURES, random_matrix, units
from tests.textbook import relative_error

ONE = torch.float64


@pytest.fixture(params=[2**22, 1, 20], ids=["one chunk", "columns", "few columns"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(_gradient_matrix, "CHUNK_ENTRIES", request.param)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.usefixtures("chunks")
def test_norms_and_cosines(structure, scale):
    rows = STRUCTURES[structure]((3, 11)) * scale
    matrix = GradientMatrix(rows)
    assert relative_error(matrix.norms / scale, (rows / scale).norm(dim=1)) < 1e-14
    expected = units(rows / scale) @ units(rows / scale).T
    assert relative_error(matrix.cosines, expected) < 1e-14


@pytest.mark.parametrize("scale", [1e-290, 1e-170, 1e170, 1e290])
@pytest.mark.usefixtures("chunks")
def test_squares_that_do_not_exist(scale):
    rows = random_matrix((3, 11))
    rows[1] = 0
    matrix, expected = GradientMatrix(scale * rows), GradientMatrix(rows)
    assert relative_error(matrix.norms / scale, expected.norms) < 1e-13
    assert relative_error(matrix.cosines, expected.cosines) < 1e-13
    for exact in (False, True):
        found = matrix.pseudo_inverse(torch.ones(3), exact)
        other = expected.pseudo_inverse(torch.ones(3), exact)
        assert relative_error(matrix.lift(found), expected.lift(other)) < 1e-12
    coefficients = torch.tensor([1.0, 5.0, -2.0], dtype=ONE)
    found = matrix.lift(matrix.combination(coefficients), 2.0)
    assert relative_error(found, 2 * coefficients @ units(rows)) < 1e-13


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (5, 3), (4, 1)])
@pytest.mark.usefixtures("chunks")
def test_pseudo_inverse(shape, exact):
    rows = random_matrix(shape)
    weights = 1 + random_matrix((1, shape[0]), 9)[0].abs()
    matrix = GradientMatrix(rows)
    found = matrix.pseudo_inverse(weights, exact)
    expected = torch.linalg.pinv(units(rows)) @ weights
    direction = matrix.lift(found)
    assert relative_error(direction, expected) < 1e-11
    assert abs(found.norm / expected.norm() - 1) < 1e-11
    assert relative_error(found.projections, units(rows) @ expected) < 1e-11
    assert relative_error(found.cosines, units(rows) @ expected / expected.norm()) < 1e-11


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, 1)])
def test_nearly_dependent_rows_reach_their_weights(gap, signs):
    """A Gram matrix alone would lose them."""
    noise = random_matrix((3, 50))
    rows = torch.tensor(signs, dtype=ONE).unsqueeze(1) * random_matrix((1, 50), 1) + gap * noise
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=ONE)
    matrix = GradientMatrix(rows)
    found = matrix.pseudo_inverse(weights)
    assert relative_error(found.projections, weights) < 1e-12
    reached = units(rows) @ matrix.lift(found)
    assert relative_error(reached, weights) < max(1e-14 / gap, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 3.0, 1e-5])
def test_dependent_rows_follow_the_pseudo_inverse(dtype, scale):
    """Three gradients in a plane: rounding errors of the third are no direction of their own."""
    basis = random_matrix((2, 60), dtype=dtype)
    rows = torch.stack([basis[0], basis[1], scale * (basis[0] - 0.3 * basis[1])])
    matrix = GradientMatrix(rows)
    found = matrix.lift(matrix.pseudo_inverse(torch.ones(3)))
    expected = torch.linalg.pinv(units(rows), rtol=1e-5) @ torch.ones(3, dtype=ONE)
    assert relative_error(found.double(), expected) < (1e-5 if dtype == torch.float32 else 1e-12)


def test_zero_rows_are_left_out():
    rows = random_matrix((4, 9))
    rows[2] = 0
    for exact in (False, True):
        found = GradientMatrix(rows).pseudo_inverse(torch.tensor([1.0, 2.0, 7.0, 3.0]), exact)
        without = GradientMatrix(rows[[0, 1, 3]])
        expected = without.pseudo_inverse(torch.tensor([1.0, 2.0, 3.0]), exact)
        assert torch.tensor(found.factors)[2] == found.projections[2] == 0
        assert (
            relative_error(torch.tensor(found.factors)[[0, 1, 3]], torch.tensor(expected.factors))
            < 1e-14
        )
        assert found.norm == pytest.approx(expected.norm, rel=1e-14)


@pytest.mark.parametrize("rows", [torch.zeros(3, 4), torch.zeros(2, 0), torch.zeros(1, 1)])
def test_nothing_but_zeros(rows):
    matrix = GradientMatrix(rows)
    found = matrix.pseudo_inverse(torch.ones(len(rows)))
    assert found.norm == 0
    assert not found.cosines.any()
    assert torch.equal(matrix.lift(found), torch.zeros(rows.shape[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_combination_that_nearly_cancels_is_measured(dtype):
    rows = random_matrix((2, 40), dtype=dtype)
    rows[1] = -rows[0] + 1e-4 * rows[1]
    matrix = GradientMatrix(rows)
    found = matrix.combination(matrix.norms)
    total = rows.double().sum(0)
    assert found.norm == pytest.approx(float(total.norm()), rel=1e-9)
    assert relative_error(found.projections, units(rows) @ total) < 1e-9
    opposite = GradientMatrix(torch.stack([rows[0], -3 * rows[0]]))
    cancelled = opposite.combination(torch.ones(2, dtype=ONE))
    assert cancelled.norm == 0
    assert not opposite.lift(cancelled).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_of_the_result(dtype):
    matrix = GradientMatrix(random_matrix((2, 5), dtype=dtype))
    for combination in (
        matrix.combination(matrix.norms),
        matrix.pseudo_inverse(matrix.norms, True),
    ):
        assert matrix.lift(combination).dtype == dtype
    assert matrix.norms.dtype == matrix.cosines.dtype == ONE


def test_one_weight_per_gradient():
    with pytest.raises(ValueError, match=r"got weights of shape \(3,\) for 2 gradients"):
        GradientMatrix(torch.ones(2, 4)).pseudo_inverse(torch.ones(3))
