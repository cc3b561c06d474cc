"""ConFIG: equal positive cosines, whatever the gradients; and what there is where none exist."""

import pytest
import torch

from hig.conflictfree import (
    ConFIG_update,
    ConFIG_update_double,
    ConFIGOperator,
    EqualWeight,
    IMTLGOperator,
    LengthModel,
    PCGradOperator,
    ProjectionLength,
    TrackMinimum,
    WeightModel,
)
from tests.hig.conflictfree.matrices import (
    SCALES,
    SHAPES,
    STRUCTURES,
    conflicting,
    cosines,
    random_matrix,
    textbook_config,
    units,
)
from tests.textbook import relative_error


class Given(WeightModel):
    def __init__(self, weights):
        self.weights = weights

    def get_weights(self, gradients=None, losses=None, device=None):
        return self.weights


@pytest.mark.parametrize("rows", [[[-4, 1, 1], [6, 1, 1]], [[6, 1, 1], [-4, 1, 1]]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_value(rows, dtype):
    expected = torch.tensor([0.1588, 2.0706, 2.0706], dtype=dtype)
    rows = torch.tensor(rows, dtype=dtype)
    for found in (ConFIG_update(rows), ConFIG_update_double(*rows), ConFIGOperator()(list(rows))):
        assert found.dtype == dtype
        assert torch.allclose(found, expected, atol=5e-5)


@pytest.mark.parametrize("use_least_square", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_textbook_formula(structure, shape, use_least_square):
    rows = STRUCTURES[structure](shape)
    found = ConFIG_update(rows, use_least_square=use_least_square)
    assert relative_error(found, textbook_config(rows)) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_cosines_are_equal_and_positive(structure, shape, scale, dtype):
    rows = (scale * STRUCTURES[structure](shape)).to(dtype)
    operator = ConFIGOperator()
    direction = operator(rows)
    found = cosines(direction / scale, rows / scale)
    assert float(found.min()) > 0
    assert float(found.max() - found.min()) < (1e-6 if dtype == torch.float32 else 1e-12)
    report = operator.report
    assert report.cosines == pytest.approx(found.tolist(), abs=1e-6)
    assert report.smallest_cosine == min(report.cosines)
    assert report.norm == pytest.approx(
        float((direction / scale).double().norm()) * scale, rel=1e-6
    )


@pytest.mark.parametrize("gap", [1e-3, 1e-5])
@pytest.mark.parametrize("losses", [2, 3])
def test_cosines_of_float32_gradients_that_nearly_cancel(gap, losses):
    rows = conflicting((losses, 1000), dtype=torch.float32, gap=gap)
    found = cosines(ConFIG_update(rows), rows)
    assert float(found.min()) > 0.1 * gap
    assert float(found.max() - found.min()) < 1e-6


@pytest.mark.parametrize("scale", SCALES)
def test_the_direction_scales_with_all_gradients_and_turns_with_none(scale):
    rows = random_matrix((4, 30))
    direction = ConFIG_update(rows)
    assert relative_error(ConFIG_update(scale * rows) / scale, direction) < 1e-12
    factors = torch.tensor([scale, 1.0, 2.0, 3.0], dtype=torch.float64)
    scaled = units(ConFIG_update(factors.unsqueeze(1) * rows).unsqueeze(0))
    assert relative_error(scaled, units(direction.unsqueeze(0))) < 1e-12


@pytest.mark.parametrize("weights", [[1, 2], [1, 2, 3], [0, 1, 1], [1, -2], [0, 0, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosines_follow_the_weights(weights, dtype):
    weights = torch.tensor(weights, dtype=dtype)
    rows = random_matrix((len(weights), 20), dtype=dtype)
    found = cosines(ConFIG_update(rows, Given(weights), TrackMinimum()), rows)
    found = found * found[-1].sign() * weights[-1].sign()
    expected = weights.double() / weights.double().norm()
    assert relative_error(found / found.norm(), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("losses", [1, 2, 3])
def test_all_zero(losses, dtype):
    operator = ConFIGOperator()
    found = operator(torch.zeros(losses, 4, dtype=dtype))
    assert torch.equal(found, torch.zeros(4, dtype=dtype))
    assert operator.report.cosines == (0.0,) * losses
    assert operator.report.smallest_cosine == operator.report.norm == 0


@pytest.mark.parametrize("factor", [1.0, 3.0, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("losses", [2, 3])
def test_parallel_gradients_point_where_all_do(losses, dtype, factor):
    row = random_matrix((1, 500), dtype=dtype)[0]
    rows = torch.stack([row, factor * row, row][:losses])
    expected = rows.double().sum(0)
    assert relative_error(ConFIG_update(rows).double(), expected) < 1e-6


@pytest.mark.parametrize("factor", [1.0, 3.0, 1e-4, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("use_least_square", [True, False])
def test_anti_parallel_gradients_have_no_direction(dtype, factor, use_least_square):
    row = random_matrix((1, 500), dtype=dtype)[0]
    operator = ConFIGOperator(use_least_square=use_least_square)
    assert not operator([row, -factor * row]).any()
    assert operator.report.norm == 0


def test_zero_is_the_limit_of_anti_parallel_gradients():
    rows = random_matrix((2, 50))
    norms = []
    for gap in (1e-1, 1e-3, 1e-5, 1e-7):
        found = ConFIG_update(torch.stack([rows[0], -2 * rows[0] + gap * rows[1]]))
        norms.append(float(found.norm()) / gap)
    assert max(norms) < 5 * min(norms)


def test_three_gradients_in_a_plane_that_sum_to_zero_have_no_direction():
    angles = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64) * torch.pi / 3
    plane = torch.stack([angles.cos(), angles.sin()], 1)
    rows = plane @ torch.linalg.qr(random_matrix((30, 2)))[0].T
    assert not ConFIG_update(rows).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 2), (7, 3), (40, 4), (2, 1)])
def test_more_losses_than_parameters(shape, dtype):
    rows = (random_matrix(shape) + 0.5).to(dtype)
    operator = ConFIGOperator()
    found = operator(rows)
    assert relative_error(found.double(), textbook_config(rows)) < 1e-5
    assert operator.report.cosines == pytest.approx(cosines(found, rows).tolist(), abs=1e-5)


def test_a_report_shows_the_conflict_that_could_not_be_avoided():
    rows = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.4, -0.8]])  # zero is between them
    operator = ConFIGOperator()
    operator(rows)
    assert operator.report.smallest_cosine < 0


def test_operators_share_nothing():
    first, second = ConFIGOperator(), ConFIGOperator()
    assert first.weight_model is not second.weight_model
    assert first.length_model is not second.length_model
    first(torch.eye(3))
    assert second.report is None


def test_gradients_stay_as_they_are_and_no_graph_is_made():
    rows = random_matrix((2, 5)).requires_grad_()
    before = rows.detach().clone()
    found = ConFIG_update(rows)
    found += 1
    assert torch.equal(rows, before)
    assert not found.requires_grad


def test_losses_reach_the_models():
    seen = []

    class Weights(EqualWeight):
        def get_weights(self, gradients, losses=None, device=None):
            seen.append((tuple(gradients.shape), losses, device))
            return super().get_weights(gradients, losses, device)

    class Length(LengthModel):
        def get_length(self, target_vector, unit_target_vector, gradients, losses):
            seen.append((float(unit_target_vector.norm()), tuple(gradients.shape), losses))
            return -2.0

    rows = random_matrix((3, 8))
    operator = ConFIGOperator(Weights(), Length())
    found = operator.calculate_gradient(rows, [1, 2, 3])
    assert float(found.norm()) == pytest.approx(2)
    assert seen == [((3, 8), [1, 2, 3], rows.device), (pytest.approx(1), (3, 8), [1, 2, 3])]
    assert operator.report.norm == pytest.approx(2)
    assert operator.report.cosines == pytest.approx(cosines(found, rows).tolist())
    assert operator.report.smallest_cosine < 0


@pytest.mark.parametrize("method", ["get_length", "rescale_length", "length"])
def test_what_is_written_over_a_length_model_counts(method):
    def get_length(self, target_vector, unit_target_vector, gradients, losses):
        return 5.0

    def rescale_length(self, target_vector, gradients, losses):
        return 5.0 * target_vector / target_vector.norm()

    def length(self, norms, cosines):
        return torch.tensor(5.0)

    own = type("Own", (ProjectionLength,), {method: locals()[method]})
    assert float(ConFIG_update(random_matrix((3, 8)), length_model=own()).norm()) == pytest.approx(
        5
    )


def test_states_of_its_models():
    class Counting(EqualWeight):
        calls = 0

        def get_weights(self, *args, **kwargs):
            self.calls += 1
            return super().get_weights(*args, **kwargs)

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    operator = ConFIGOperator(Counting())
    operator(torch.eye(2))
    other = ConFIGOperator(Counting())
    other.load_state_dict(operator.state_dict())
    assert other.weight_model.calls == 1
    with pytest.raises(ValueError, match="weight_model"):
        ConFIGOperator().load_state_dict(operator.state_dict())
    assert ConFIGOperator().state_dict() == {}


@pytest.mark.cuda
@pytest.mark.parametrize("kind", [ConFIGOperator, PCGradOperator, IMTLGOperator])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.1, 1e-5])
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_operators_on_a_gpu(kind, dtype, gap, scale):
    """Every route: the Gram matrix, the decomposition of nearly dependent rows, a rescaling."""
    rows = scale * conflicting((4, 50), dtype=dtype, gap=gap)
    rows[2] = 0
    found, expected = kind()(rows.cuda()), kind()(rows)
    assert found.is_cuda
    assert found.dtype == dtype
    difference = (found.cpu().double() - expected.double()).norm() / scale
    assert float(difference) < (1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.cuda
def test_models_on_a_gpu():
    rows = random_matrix((3, 9), dtype=torch.float32)
    weights = Given(torch.tensor([1.0, 2.0, 3.0]))
    expected = ConFIG_update(rows, weights, TrackMinimum())
    for device in ("cpu", "cuda"):
        given = Given(weights.weights.to(device))
        found = ConFIG_update(rows.cuda(), given, TrackMinimum())
        assert relative_error(found.cpu(), expected) < 1e-5
