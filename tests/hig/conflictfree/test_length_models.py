"""Length models: on m numbers, on vectors, and against their formulas."""

import pytest
import torch

from hig.conflictfree import (
    ConFIG_update,
    ConFIGOperator,
    LengthModel,
    ProjectionLength,
    TrackArithmeticAverage,
    TrackGeometricAverage,
    TrackHarmonicAverage,
    TrackMaximum,
    TrackMinimum,
    TrackSpecific,
)
from tests.hig.conflictfree.matrices import badly_scaled, cosines, random_matrix
from tests.textbook import relative_error

TRACKED = {
    TrackMinimum(): min,
    TrackMaximum(): max,
    TrackHarmonicAverage(): lambda norms: len(norms) / sum(1 / n for n in norms),
    TrackArithmeticAverage(): lambda norms: sum(norms) / len(norms),
    TrackGeometricAverage(): lambda norms: torch.tensor(norms).double().log().mean().exp().item(),
    TrackSpecific(1): lambda norms: norms[1],
}
MODELS = [ProjectionLength(), *TRACKED]
BY_NAME = {"ids": lambda model: type(model).__name__}


@pytest.mark.parametrize("model", TRACKED, **BY_NAME)
def test_tracked_lengths(model):
    rows, target = badly_scaled((4, 20)), random_matrix((1, 20), 7)[0]
    tracked = TRACKED[model](rows.norm(dim=1).tolist())
    expected = float(cosines(target, rows).sum()) * tracked
    assert float(model.get_length(target_vector=target, gradients=rows)) == pytest.approx(expected)


def test_projection():
    rows, target = badly_scaled((4, 20)), random_matrix((1, 20), 7)[0]
    expected = float((rows @ target).sum() / target.norm())
    found = ProjectionLength().get_length(target_vector=target, gradients=rows)
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", MODELS, **BY_NAME)
def test_numbers_and_vectors_give_the_same_direction(model, dtype):
    """The operator's route through m numbers, and the public one through vectors."""
    rows = badly_scaled((3, 30), dtype=dtype)
    direction = ConFIG_update(rows)
    found = model.rescale_length(target_vector=direction, gradients=rows)
    assert found.dtype == dtype
    expected = ConFIG_update(rows, length_model=model)
    assert relative_error(found.double(), expected.double()) < 1e-5
    unit = direction / direction.norm()
    length = model.get_length(unit_target_vector=unit, gradients=rows)
    assert float(length) == pytest.approx(float(expected.norm()), rel=1e-5)


@pytest.mark.parametrize("model", MODELS, **BY_NAME)
def test_a_zero_gradient_is_left_out(model):
    rows = random_matrix((3, 30))
    rows[2] = 0
    found = ConFIG_update(rows, length_model=model)
    assert relative_error(found, ConFIG_update(rows[:2], length_model=model)) < 1e-12
    assert not model.rescale_length(torch.zeros(30), gradients=torch.zeros(3, 30)).any()


def test_tracking_a_zero_gradient_gives_zero():
    rows = random_matrix((3, 30))
    rows[2] = 0
    assert not ConFIG_update(rows, length_model=TrackSpecific(2)).any()


def test_the_geometric_mean_of_many_losses():
    """The product of their lengths is far outside floating point."""
    rows = 1e-30 * torch.eye(40)
    found = ConFIG_update(rows, length_model=TrackGeometricAverage())
    assert relative_error(1e30 * found.double(), torch.ones(40).double()) < 1e-5


def test_what_is_refused():
    for model in MODELS:
        with pytest.raises(ValueError, match="needs the gradients"):
            model.get_length(target_vector=torch.ones(3))
        with pytest.raises(ValueError, match="got neither"):
            model.get_length(gradients=torch.ones(2, 3))
    with pytest.raises(NotImplementedError, match="must define get_length"):
        LengthModel().rescale_length(torch.ones(3))


def test_a_loss_that_is_not_there():
    operator = ConFIGOperator(length_model=TrackSpecific(7))
    with pytest.raises(ValueError, match=r"count from 0 to 1, got TrackSpecific\(7\)"):
        operator(torch.eye(2))
