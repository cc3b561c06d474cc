"""PCGrad against its two loops."""

import pytest
import torch

from hig.conflictfree import PCGradOperator
from tests.hig.conflictfree.matrices import (
    SHAPES,
    STRUCTURES,
    cosines,
    random_matrix,
    textbook_pcgrad,
)
from tests.textbook import relative_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (6, 3)])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_two_loops(structure, shape, dtype):
    rows = STRUCTURES[structure](shape, dtype=dtype)
    operator = PCGradOperator()
    found, expected = operator(rows), textbook_pcgrad(rows)
    assert found.dtype == dtype
    assert relative_error(found.double(), expected) < (1e-6 if dtype == torch.float32 else 1e-9)
    assert operator.report.norm == pytest.approx(float(expected.norm()), rel=1e-6)
    assert operator.report.cosines == pytest.approx(cosines(found, rows).tolist(), abs=1e-5)


def test_two_losses_do_not_conflict_afterwards():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
    operator = PCGradOperator()
    operator(rows)
    assert operator.report.smallest_cosine > 0


@pytest.mark.parametrize("shape", [(2, 2**18), (3, 9)])
def test_a_sum_without_conflict_is_right_to_rounding(shape):
    """No partial sum is longer than the whole."""
    rows = random_matrix(shape, dtype=torch.float32).abs()
    found = PCGradOperator().calculate_gradient(list(rows))
    assert relative_error(found.double(), rows.double().sum(0)) < torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 0.3, 7.0])
def test_anti_parallel_gradients_cancel(dtype, factor):
    row = random_matrix((1, 100), dtype=dtype)[0]
    operator = PCGradOperator()
    assert not operator([row, -factor * row]).any()
    assert operator.report.norm == 0
