"""IMTL-G against its defining equations."""

import pytest
import torch

from hig.conflictfree import ConFIG_update, IMTLGOperator
from tests.hig.conflictfree.matrices import (
    STRUCTURES,
    cosines,
    random_matrix,
    textbook_imtl_g,
    units,
)
from tests.textbook import relative_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 7), (2, 5), (3, 40), (5, 20)])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_equal_projections_and_weights_that_sum_to_one(structure, shape, dtype):
    rows = STRUCTURES[structure](shape, dtype=dtype)
    operator = IMTLGOperator()
    found = operator(rows)
    assert found.dtype == dtype
    expected = textbook_imtl_g(rows)
    assert relative_error(found.double(), expected) < (1e-5 if dtype == torch.float32 else 1e-9)
    projections = units(rows) @ found.double()
    spread = projections.max() - projections.min()
    assert float(spread / found.double().norm()) < 1e-6
    assert operator.report.cosines == pytest.approx(cosines(found, rows).tolist(), abs=1e-6)


def mixed_signs():
    """Unit gradients whose combination with equal cosines has coefficients of both signs."""
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.9, 0.3, 0.3]], dtype=torch.float64)
    basis = units(rows)
    coefficients = torch.linalg.solve(basis @ basis.T, torch.ones(3, dtype=torch.float64))
    assert float(coefficients.min()) < 0 < float(coefficients.max())
    return basis, coefficients


@pytest.mark.parametrize("backwards", [False, True])
def test_it_lies_along_config_and_may_point_backwards(backwards):
    basis, coefficients = mixed_signs()
    chosen = coefficients < 0 if backwards else coefficients > 0
    rows = torch.where(chosen, 0.01, 1.0).unsqueeze(1) * basis
    operator = IMTLGOperator()
    cosine = float(cosines(operator(rows), ConFIG_update(rows).unsqueeze(0)))
    assert cosine == pytest.approx(-1 if backwards else 1)
    assert (operator.report.smallest_cosine < 0) == backwards


def test_zero_where_no_weights_sum_to_one():
    basis, coefficients = mixed_signs()
    positive, negative = coefficients.clamp_min(0).sum(), -coefficients.clamp_max(0).sum()
    norms = torch.where(coefficients > 0, positive, negative)
    assert not IMTLGOperator()(norms.unsqueeze(1) * basis).any()


def test_parallel_gradients_get_their_harmonic_mean_in_any_order():
    row = random_matrix((1, 9))[0]
    for rows in ([row, 3 * row], [3 * row, row]):
        assert relative_error(IMTLGOperator()(rows), 1.5 * row) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 0.3, 7.0])
def test_anti_parallel_gradients_have_no_direction(dtype, factor):
    row = random_matrix((1, 100), dtype=dtype)[0]
    operator = IMTLGOperator()
    assert not operator([row, -factor * row]).any()
    assert operator.report.norm == 0
