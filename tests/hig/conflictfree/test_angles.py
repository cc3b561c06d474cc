"""Lengths and angles of plain vectors, also where float32 has no squares."""

import pytest
import torch

from hig.conflictfree import (
    estimate_conflict,
    get_cos_similarity,
    transfer_coef_double,
    unit_vector,
)
from tests.hig.conflictfree.matrices import SCALES, cosines, random_matrix, units
from tests.textbook import relative_error

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@DTYPES
@pytest.mark.parametrize("scale", SCALES)
def test_unit_vector(dtype, scale):
    vector = random_matrix((1, 9))[0]
    found = unit_vector((scale * vector).to(dtype))
    assert found.dtype == dtype
    assert relative_error(found.double(), vector / vector.norm()) < 1e-6


def test_a_zero_vector_stays_zero_and_may_warn():
    assert torch.equal(unit_vector(torch.zeros(3)), torch.zeros(3))
    with pytest.warns(UserWarning, match="zero vector has no direction"):
        unit_vector(torch.zeros(3), warn_zero=True)
    unit_vector(torch.ones(3), warn_zero=True)


@DTYPES
@pytest.mark.parametrize("scale", SCALES)
def test_cosine(dtype, scale):
    first, second = random_matrix((2, 9))
    found = get_cos_similarity((scale * first).to(dtype), second.to(dtype))
    assert found.dtype == dtype
    assert found.shape == ()
    expected = float(first @ second / first.norm() / second.norm())
    assert float(found) == pytest.approx(expected, abs=1e-6)
    assert get_cos_similarity(first, torch.zeros_like(first)) == 0


@DTYPES
def test_conflict_with_the_sum(dtype):
    rows = random_matrix((4, 9), dtype=dtype)
    rows[2] = 0
    found = estimate_conflict(rows)
    assert found.dtype == dtype
    assert found[2] == 0
    assert relative_error(found.double(), cosines(rows.double().sum(0), rows)) < 1e-6


def test_coefficients_of_two_orthogonal_components():
    first, second = units(random_matrix((2, 9)))
    without_first = second - (second @ first) * first
    without_second = first - (first @ second) * second
    weights = torch.tensor([2.0, 5.0], dtype=torch.float64)
    one, two = transfer_coef_double(weights, first, second, without_first, without_second)
    direction = one * without_first + two * without_second
    assert float(direction @ first / (direction @ second)) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: unit_vector([3.0]), TypeError, "vector must be a tensor, got a list of 1"),
        (lambda: unit_vector(torch.tensor([3, 4])), TypeError, "floating point, got torch.int64"),
        (lambda: get_cos_similarity(torch.ones(2), torch.ones(3)), ValueError, "got 2 and 3"),
        (lambda: get_cos_similarity(torch.ones(2), None), TypeError, "vector2 must be a tensor"),
        (lambda: estimate_conflict(torch.ones(2)), ValueError, "gradients must have 2 axes"),
    ],
)
def test_what_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()
