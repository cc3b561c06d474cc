"""Report of a conflict-free direction."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from hig.conflictfree import ConflictReport
from hig.conflictfree._gradient_matrix import GradientMatrix


@pytest.mark.parametrize("factor", [2.0, -0.5, 0.0])
def test_cosines_and_norm_of_a_multiple(factor):
    rows = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    matrix = GradientMatrix(rows)
    combination = matrix.combination(torch.tensor([3.0, 4.0, 1.0], dtype=torch.float64))
    report = ConflictReport.of(combination, factor, matrix.lengths)
    sign = (factor > 0) - (factor < 0)
    assert report.cosines == pytest.approx((0.6 * sign, 0.8 * sign, 0))
    assert report.norm == pytest.approx(5 * abs(factor))
    assert report.gradient_norms == pytest.approx((3, 2, 0))
    assert report.smallest_cosine == pytest.approx(min(0.6 * sign, 0.8 * sign))


def test_it_is_frozen_and_readable():
    report = ConflictReport((0.5, -0.25), 3.0, (1.0, 2.0))
    assert str(report) == "cosines 0.500 -0.250; norm 3, of the gradients 1 2"
    with pytest.raises(FrozenInstanceError):
        report.norm = 1.0
