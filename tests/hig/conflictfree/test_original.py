"""Names, and values of single calls, of ``conflictfree`` and of this package."""

import pytest
import torch

from tests.hig.conflictfree.matrices import STRUCTURES, random_matrix
from tests.hig.conflictfree.original import (
    LENGTHS,
    OPERATORS,
    OURS,
    THEIRS,
    get,
    of,
    ones,
    weights_model,
)
from tests.textbook import relative_error

pytestmark = pytest.mark.usefixtures("least_squares")


MODULES = [
    "grad_operator", "length_model", "loss_recorder", "momentum_operator", "utils", "weight_model",
]  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 6), (3, 30), (5, 100)])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_on_matrices(name, structure, shape):
    rows = STRUCTURES[structure](shape)
    results = []
    for package in (THEIRS, OURS):
        operator = OPERATORS[name](of(package))
        if name.startswith("config"):
            operator.weight_model = ones(package, torch.float64)
        results.append(operator.calculate_gradient(rows))
    assert relative_error(results[1], results[0]) < 1e-6


@pytest.mark.parametrize("shape", [(2, 6), (3, 30)])
@pytest.mark.parametrize("name", LENGTHS)
def test_length_models_on_matrices(name, shape):
    rows = STRUCTURES["badly scaled"](shape)
    results = []
    for package in (THEIRS, OURS):
        update = get(package, "grad_operator", "ConFIG_update")
        model = LENGTHS[name](of(package))
        results.append(update(rows, ones(package, torch.float64), model))
        length = model.get_length(target_vector=rows.sum(0), gradients=rows)
        results.append(torch.atleast_1d(length * 1.0))
    assert relative_error(results[2], results[0]) < 1e-9
    assert relative_error(results[3], results[1]) < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_the_double_update(seed):
    rows = random_matrix((2, 10), seed)
    results = []
    for package in (THEIRS, OURS):
        update = get(package, "grad_operator", "ConFIG_update_double")
        weights = weights_model(package, torch.float64)
        results.append(update(rows[0], rows[1], weight_model=weights, losses=[0.3, 2.0]))
    assert relative_error(results[1], results[0]) < 1e-9
