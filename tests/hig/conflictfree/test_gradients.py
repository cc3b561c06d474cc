"""Checked gradients: what is a matrix or a list of vectors, and which losses are not finite."""

import pytest
import torch

import hig
from hig.conflictfree._gradient_matrix import GradientMatrix
from hig.conflictfree._gradients import as_vectors, check_finite
from tests.hig.conflictfree.matrices import random_matrix


def test_vectors_are_neither_copied_nor_stacked():
    rows = [row.clone().requires_grad_() for row in random_matrix((3, 5))]
    vectors = as_vectors(iter(rows))
    assert [vector.data_ptr() for vector in vectors] == [row.data_ptr() for row in rows]
    assert not any(vector.requires_grad for vector in vectors)


def test_vectors_of_two_dtypes_become_a_matrix_of_the_wider_one():
    rows = random_matrix((2, 5))
    matrix = as_vectors([rows[0].float(), rows[1]])
    assert torch.equal(matrix, torch.stack([rows[0].float().double(), rows[1]]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_non_finite_gradients_are_named(value, dtype):
    rows = random_matrix((4, 6), dtype=dtype)
    rows[1, 2] = rows[3, 0] = rows[3, 1] = value
    with pytest.raises(hig.NonFiniteError, match=r"loss 1 \(1 entries\), 3 \(2 entries\) of 6"):
        GradientMatrix(rows)


def test_large_gradients_are_finite():
    rows = torch.full((2, 5), 3e38)
    check_finite(rows)  # their sum is not
    assert GradientMatrix(rows).norms[0] == pytest.approx(3e38 * 5**0.5, rel=1e-6)


def test_losses_are_named_by_their_numbers():
    rows = [torch.ones(3), torch.tensor([1.0, float("nan"), 2.0])]
    check_finite(rows[:1], [7])
    with pytest.raises(hig.NonFiniteError, match=r"gradient of loss 4 \(1 entries\) of 3"):
        check_finite(rows, [7, 4])


@pytest.mark.parametrize(
    ("gradients", "error", "match"),
    [
        (3, TypeError, "gradients must be a matrix .* or m vectors, got 3"),
        ([1.0, 2.0], TypeError, "the gradient of loss 0 must be a tensor, got 1.0"),
        ([torch.ones(2), None], TypeError, "the gradient of loss 1 must be a tensor, got None"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "floating point, got torch.int64"),
        (torch.ones(2, 3, dtype=torch.cfloat), TypeError, "got torch.complex64"),
        (torch.ones(2, 3, device="meta"), TypeError, "gradients must be .* in memory"),
        ([], ValueError, "got no gradients"),
        (torch.ones(3), ValueError, r"one row per loss, got \(3,\)"),
        (torch.ones(0, 3), ValueError, r"got \(0, 3\)"),
        ([torch.ones(2), torch.ones(3)], ValueError, "none_grad_mode='zero'"),
        ([torch.ones(2, device="meta"), torch.ones(2)], (TypeError, ValueError), "meta|memory"),
    ],
)
def test_what_is_no_matrix(gradients, error, match):
    with pytest.raises(error, match=match):
        as_vectors(gradients)
