"""Several losses as one linearisation: the metric of one prediction, the sum of several."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hig
from hig._optim.multi_loss import SeparatePredictions, SharedPrediction, _weights_and_cosines
from hig._step.linearisation import QuadraticModel
from hig._step.reports import MultiStepReport
from hig._torch.host import PhaseClock
from hig.conflictfree import ConFIG_update, PCGradOperator
from tests.textbook import relative_error, step_of, textbook_jacobian


def added(matrix):
    return matrix.sum(0)


def unit_sum(matrix):
    return (matrix / matrix.norm(dim=1, keepdim=True)).sum(0)


OPERATORS = [added, unit_sum, ConFIG_update, PCGradOperator()]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("rank", [2, 4])
def test_weights_by_inner_products_are_those_of_the_directions(operator, rank):
    """The operator on the directions themselves, of which `_weights_and_cosines` sees no entry."""
    torch.manual_seed(0)
    directions = torch.randn(4, rank, dtype=torch.float64) @ torch.randn(
        rank, 50, dtype=torch.float64
    )
    weights, cosines = _weights_and_cosines(directions @ directions.T, operator)
    combined = operator(directions)
    assert relative_error(weights @ directions, combined) < 1e-9
    expected = directions @ combined / directions.norm(dim=1) / combined.norm()
    torch.testing.assert_close(cosines, expected, rtol=1e-9, atol=1e-9)


def test_weights_of_zero_directions_are_zero():
    weights, cosines = _weights_and_cosines(torch.zeros(3, 3, dtype=torch.float64), added)
    assert not weights.any() and not cosines.any()


class Linear:
    """A linearisation with explicit matrices, whose step is a number times Jᵀ g."""

    def __init__(self, jacobian, gradient, clock, loss):
        self.jacobian, self.clock = jacobian, clock
        self.objective = SimpleNamespace(flat_gradient=gradient, split=None)
        self.loss = torch.tensor(loss, dtype=torch.float64)

    def step(self, filter, gradient=None):
        gradient = self.objective.flat_gradient if gradient is None else gradient
        direction = filter * (self.jacobian.T @ gradient)
        return [direction[:3].view(1, 3), direction[3:]], self.jacobian @ direction

    def output_change(self, directions):
        return self.jacobian @ torch.cat([d.flatten() for d in directions])

    def rounding(self):
        return 0.1 * float(self.loss)

    def model(self, change):
        slope = float(self.objective.flat_gradient @ change)
        loss = float(self.loss)
        squared = float(change @ change)
        return QuadraticModel(loss, slope, squared, 10 * loss, squared)

    def spectra(self):
        return [f"spectrum of loss {float(self.loss)}"]

    def report(self, filter):
        return f"report of loss {float(self.loss)}"


def linear_parts(rows=(4, 2, 6)):
    torch.manual_seed(1)
    clock, sizes = PhaseClock(), enumerate(rows)
    return [
        Linear(torch.randn(n, 8).double(), torch.randn(n).double(), clock, float(i + 1))
        for i, n in sizes
    ], clock


@pytest.mark.parametrize("operator", OPERATORS)
def test_directions_of_separate_predictions_are_combined_and_models_added(operator):
    parts, clock = linear_parts()
    several = SeparatePredictions(parts, operator, clock)
    directions, changes = several.step(0.5)
    matrix = torch.stack([0.5 * p.jacobian.T @ p.objective.flat_gradient for p in parts])
    combined = operator(matrix)
    assert [d.shape for d in directions] == [(1, 3), (5,)]
    found = torch.cat([d.flatten() for d in directions])
    assert relative_error(found, combined) < 1e-12
    for part, change in zip(parts, changes, strict=True):
        assert relative_error(change, part.jacobian @ combined) < 1e-12
    slopes = [p.objective.flat_gradient @ (p.jacobian @ combined) for p in parts]
    torch.testing.assert_close(several.slopes, torch.stack(slopes))
    curvature = sum(float((p.jacobian @ combined).square().sum()) for p in parts)
    # Losses, slopes, curvatures and roundings add up; of the largest values the largest stays.
    expected = (6.0, float(sum(slopes)), curvature, 30.0, curvature)
    assert several.model(changes) == pytest.approx(expected)
    assert several.rounding() == pytest.approx(0.6)
    assert float(several.loss) == 6.0
    assert len(several.spectra()) == 3
    report = several.report(0.5)
    assert isinstance(report, MultiStepReport)
    assert report.losses.tolist() == [1.0, 2.0, 3.0]
    assert "operator" in clock.seconds


@pytest.mark.parametrize("operator", OPERATORS)
def test_directions_of_a_shared_prediction_are_combined_in_its_metric(operator):
    (part,), _ = linear_parts((6,))
    gradients = torch.randn(3, 6).double()
    shared = SharedPrediction(part, torch.ones(3), gradients, operator)
    directions, change = shared.step(0.5)
    # M = 0.5: the coordinates of the directions are those of the gradients, by its square root.
    combined = 0.5**0.5 * operator(0.5**0.5 * gradients @ part.jacobian)
    found = torch.cat([d.flatten() for d in directions])
    assert relative_error(found, combined) < 1e-9
    assert relative_error(change, part.jacobian @ combined) < 1e-9
    torch.testing.assert_close(shared.slopes, gradients @ (part.jacobian @ combined))
    assert shared.model(change) == part.model(change)
    assert shared.rounding() == part.rounding()
    assert shared.spectra() == part.spectra()
    assert shared.report(0.5).parts == [part.report(0.5)]


# -- several losses of one prediction, by steps ----------------------------------------------------


def one_prediction(dtype=torch.float64, scale=1e-3):
    """Losses that conflict, on different outputs of one prediction and at different points."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    inputs = torch.randn(9, 2, dtype=dtype)

    def closure():
        prediction = network(inputs) * torch.tensor([1.0, scale], dtype=dtype)
        first, second = prediction[:5], prediction[4:]
        losses = [(first - 1).square().sum(), (second + 1).square().sum(), first[:, 1].sum() ** 2]
        return [(loss, prediction) for loss in losses]

    return network, closure


def root_of_the_metric(network, closure, kappa=-0.5, rcond=1e-6):
    """The square root of M = V S^(kappa - 1) Vᵀ, and the gradients of the losses as rows (m, P).

    By the singular vectors of J: an eigendecomposition of M would square the condition.
    """
    prediction = closure()[0][1]
    jacobian = textbook_jacobian(prediction, network.parameters())
    _, values, right = torch.linalg.svd(jacobian, full_matrices=False)
    keep = values > rcond * values.max()
    root = right[keep].T @ torch.diag(values[keep] ** ((kappa - 1) / 2)) @ right[keep]
    rows = []
    for loss, _ in closure():
        gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return root, torch.stack(rows)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kappa", [-0.5, -1.0])
@pytest.mark.parametrize("engine", ["auto", "rows"])
def test_the_operator_works_in_the_metric(operator, kappa, engine):
    """Written out: coordinates by the square root of the whole metric, (m, P)."""
    network, closure = one_prediction()
    root, gradients = root_of_the_metric(network, closure, kappa)
    expected = -0.3 * root @ operator(gradients @ root)
    optimizer = hig.MultiHIG(
        network.parameters(), lr=0.3, kappa=kappa, operator=operator, engine=engine
    )
    # The singular values differ by 6e5, and with it rounding of 2e-16 is 1e-10.
    assert relative_error(step_of(optimizer, closure), expected) < 1e-8


def test_without_conflict_no_loss_is_raised():
    network, closure = one_prediction()
    before = [float(loss.detach()) for loss, _ in closure()]
    optimizer = hig.MultiHIG(network.parameters(), lr=1e-8)
    optimizer.step(closure)
    after = [float(loss.detach()) for loss, _ in closure()]
    report = optimizer.report
    assert report.smallest_cosine > 0.1
    torch.testing.assert_close(report.cosines, report.cosines[:1].expand(3))
    assert (report.slopes > 0).all()
    lowered = torch.tensor(before, dtype=torch.float64) - torch.tensor(after, dtype=torch.float64)
    torch.testing.assert_close(lowered / 1e-8, report.slopes, rtol=1e-3, atol=0)


def test_the_sum_of_directions_is_the_half_inverse_step():
    network, closure = one_prediction()
    twin = copy.deepcopy(network)
    found = step_of(hig.MultiHIG(network.parameters(), operator=added), closure)
    network.load_state_dict(twin.state_dict())

    def total():
        pairs = closure()
        return sum(loss for loss, _ in pairs), pairs[0][1]

    assert (
        relative_error(found, step_of(hig.HIG(network.parameters(), step_rule="fixed"), total))
        < 1e-9
    )


def test_a_loss_that_is_reached_twice_counts_once():
    """Parallel gradients: the pseudo-inverse, and no division by what rounding has left."""
    network, closure = one_prediction()

    def doubled():
        pairs = closure()
        return [pairs[0], (2 * pairs[0][0], pairs[0][1]), pairs[1]]

    optimizer = hig.MultiHIG(network.parameters(), lr=1e-6)
    optimizer.step(doubled)
    assert torch.isfinite(torch.cat([p.detach().flatten() for p in network.parameters()])).all()
    assert (optimizer.report.slopes > 0).all()


def test_a_loss_without_a_gradient_is_left_out():
    network, closure = one_prediction()

    def with_constant():
        pairs = closure()
        return [*pairs[:2], (0 * pairs[0][1].sum(), pairs[0][1])]

    optimizer = hig.MultiHIG(network.parameters(), lr=1e-6)
    optimizer.step(with_constant)
    assert (optimizer.report.slopes[:2] > 0).all()
    assert float(optimizer.report.slopes[2]) == 0


@pytest.mark.parametrize("step_rule", ["trust", "line_search"])
def test_rules_with_one_prediction(step_rule):
    network, closure = one_prediction(torch.float32, scale=1e-2)
    optimizer = hig.MultiHIG(network.parameters(), rcond=1e-4, step_rule=step_rule)
    losses = [float(optimizer.step(closure)) for _ in range(30)]
    assert losses[-1] < 0.75 * losses[0]


def test_groups_with_one_prediction():
    network, closure = one_prediction()
    groups = [
        {"params": network[0].parameters(), "lr": 1e-6},
        {"params": network[2].parameters(), "lr": 0.0},
    ]
    before = copy.deepcopy(network[2].state_dict())
    optimizer = hig.MultiHIG(groups)
    losses = torch.stack([loss.detach() for loss, _ in closure()])
    optimizer.step(closure)
    after = torch.stack([loss.detach() for loss, _ in closure()])
    assert all(torch.equal(value, before[name]) for name, value in network[2].state_dict().items())
    assert not torch.equal(losses, after)


def test_the_report_names_a_loss_that_a_step_raises():
    network, closure = one_prediction()
    optimizer = hig.MultiHIG(network.parameters(), lr=1e-8, operator=lambda rows: rows[0])
    optimizer.step(closure)
    assert [slope < 0 for slope in optimizer.report.slopes.tolist()] == [False, True, True]
    assert "a short step raises loss 1, 2" in str(optimizer.report)
