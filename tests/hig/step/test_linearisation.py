"""Linearisations: directions, output changes and quadratic models against the dense Jacobian."""

import pytest
import torch

import hig
from hig._jacobian.capture import Capture
from hig._spectral.decomposition import gram_floor
from hig._spectral.filters import Damped, HalfInverse
from hig._step.linearisation import Lineariser
from hig._step.objective import StepContext, objective_of
from hig._torch.host import PhaseClock
from tests.hig.networks import LAYERED, build, least_squares
from tests.hig.transfers import Transfers
from tests.textbook import (
    flat,
    relative_error,
    textbook_damped,
    textbook_jacobian,
    textbook_power,
)


def linearised(name, filter, engine="auto", method="auto", wrap=lambda prediction: prediction):
    """A linearisation, its dense Jacobian, and the closure."""
    network, inputs = build(name)
    closure = least_squares(lambda x: wrap(network(x)), inputs)
    parameters = list(network.parameters())
    with Capture(parameters) as capture:
        loss, prediction = closure()
    names = [name for name, _ in network.named_parameters()]
    step = StepContext(parameters, [1.0] * len(parameters), names, None, PhaseClock())
    objective = objective_of(loss, prediction, capture.captured, step, curvature=True)
    lineariser = Lineariser(engine, method, None)
    found = lineariser.linearise(objective, filter, step.clock)
    return found, textbook_jacobian(prediction, parameters), closure


ROUTES = [
    ("mlp", "gram", "row_gram"), ("narrow", "gram", "row_gram"), ("tokens", "gram", "column_gram"),
    ("mlp", "svd", "svd"), ("batch norm", "gram", "row_gram"), ("mlp", "lanczos", "lanczos"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method", "route"), ROUTES)
@pytest.mark.parametrize(
    "filter", [HalfInverse(rcond=1e-3), HalfInverse(-1.0, 1e-3), Damped(1e-2)], ids=str
)
def test_directions_and_their_output_changes(name, method, route, filter):
    settings = hig.Lanczos(tolerance=1e-9) if method == "lanczos" else method
    found, jacobian, _ = linearised(name, filter, method=settings)
    gradient = found.objective.flat_gradient
    directions, change = found.step(filter)
    if isinstance(filter, Damped):
        expected = textbook_damped(jacobian, gradient, filter.damping)
    else:
        expected = textbook_power(jacobian, gradient, filter.kappa, filter.rcond)
    assert found.decomposition.route == route
    assert relative_error(flat(directions), expected) < 1e-7
    assert relative_error(change, jacobian @ expected) < 1e-7
    assert relative_error(found.output_change(directions), jacobian @ flat(directions)) < 1e-9
    assert [d.shape for d in directions] == [p.shape for p in found.objective.forward.parameters]


def test_any_gradient_may_be_filtered():
    filter = HalfInverse(rcond=1e-3)
    found, jacobian, _ = linearised("mlp", filter)
    other = torch.randn(len(jacobian), dtype=torch.float64)
    expected = textbook_power(jacobian, other, filter.kappa, filter.rcond)
    assert relative_error(flat(found.step(filter, other)[0]), expected) < 1e-9


def test_the_quadratic_model_is_that_of_the_loss_in_the_outputs():
    found, jacobian, closure = linearised("mlp", HalfInverse(rcond=1e-3))
    change = torch.randn(len(jacobian), dtype=torch.float64)
    prediction = closure()[1].detach()
    shape = prediction.shape

    def loss_at(outputs):
        residual = outputs.view(shape) - 0.3
        return (residual.square() + 0.1 * residual.pow(4)).sum() / len(prediction)

    outputs = prediction.flatten()
    gradient = torch.func.grad(loss_at)(outputs)
    hessian = torch.func.hessian(loss_at)(outputs)
    expected = [float(loss_at(outputs)), float(gradient @ change), float(change @ hessian @ change)]
    model = found.model(change)
    assert [model.loss, model.slope, model.curvature] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("name", "method", "route"), ROUTES)
@pytest.mark.parametrize("filter", [HalfInverse(rcond=1e-3), Damped(1e-2)], ids=str)
def test_the_model_knows_the_largest_singular_value_and_the_rounding(name, method, route, filter):
    settings = hig.Lanczos(tolerance=1e-9) if method == "lanczos" else method
    found, jacobian, _ = linearised(name, filter, method=settings)
    _, change = found.step(filter)
    model = found.model(change)
    values = torch.linalg.svdvals(jacobian)
    most = 1 if not isinstance(filter, Damped) else len(jacobian) ** 0.5
    assert values[0] ** 2 * (1 - 1e-6) <= model.largest <= values[0] ** 2 * most * (1 + 1e-6)
    # An independent sum over samples; the Lanczos values need not be all.
    forward = found.objective.forward
    parameters = torch.cat([p.detach().flatten() for p in forward.parameters])
    rms = parameters.square().mean().sqrt()
    size = rms * jacobian.norm() / len(jacobian) ** 0.5
    squares = 0.0
    for gradient, outputs in zip(found.objective.gradient, forward.prediction, strict=True):
        squares += float((gradient.abs() * (outputs.abs() + size)).detach().sum()) ** 2
    by_parameters = float(rms * (jacobian.T @ found.objective.flat_gradient).norm())
    expected = torch.finfo(torch.float64).eps * (squares**0.5 + by_parameters)
    assert found.rounding() == pytest.approx(expected, rel=0.3 if method == "lanczos" else 1e-8)


@pytest.mark.parametrize("residuals", [True, False])
def test_the_rounding_covers_that_of_a_float32_loss_near_an_exact_fit(residuals):
    """Also where the outputs are residuals, which are small differences."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(2, 40), torch.nn.Tanh(), torch.nn.Linear(40, 40), torch.nn.Tanh(),
        torch.nn.Linear(40, 3),
    )  # fmt: skip
    inputs = torch.randn(30, 2)
    target = network(inputs).detach() + 1e-4 * torch.randn(30, 3)

    def closure():
        outputs = network(inputs)
        prediction = outputs - target if residuals else outputs
        return (prediction if residuals else prediction - target).square().sum(), prediction

    parameters = list(network.parameters())
    with Capture(parameters) as capture:
        loss, prediction = closure()
    step = StepContext(parameters, [1.0] * 6, [None] * 6, None, PhaseClock())
    objective = objective_of(loss, prediction, capture.captured, step, curvature=True)
    found = Lineariser("auto", "auto", None).linearise(objective, Damped(1.0), step.clock)
    found.step(Damped(1.0))
    rounding = found.rounding()
    with torch.no_grad():
        starts = [p.clone() for p in parameters]
        losses = []
        for _ in range(40):
            for parameter, start in zip(parameters, starts, strict=True):
                parameter.copy_(start * (1 + 1e-7 * torch.randn_like(start)))
            losses.append(float(closure()[0]))
    scatter = float(torch.tensor(losses, dtype=torch.float64).std())
    assert scatter > 10 * torch.finfo(torch.float32).eps * float(loss.detach())
    assert 0.05 * rounding < scatter < 2 * rounding


@pytest.mark.parametrize("name", LAYERED)
def test_a_step_makes_the_host_wait_once(name):
    network, inputs = build(name, dtype=torch.float32)
    closure = least_squares(network, inputs)
    optimizer = hig.HIG(network.parameters(), rcond=1e-3, step_rule="fixed")
    optimizer.step(closure)
    with Transfers() as transfers:
        optimizer.step(closure)
    # Whether the rows of controls replace those of the outputs decides what is computed next.
    assert transfers.count == 1 + (optimizer.report.fewer_rows is not None)


def test_a_cut_off_below_what_the_route_resolves_is_raised_and_said():
    network, inputs = build("mlp", torch.float32)
    closure = least_squares(network, inputs)
    optimizer = hig.HIG(network.parameters(), rcond=1e-12, step_rule="fixed")
    optimizer.step(closure)
    assert optimizer.report.rcond == pytest.approx(gram_floor(15))
    assert any("raised to" in note for note in optimizer.report.notes)
    optimizer = hig.HIG(network.parameters(), rcond=1e-12, method="svd", step_rule="fixed")
    optimizer.step(closure)
    assert optimizer.report.rcond == 1e-12
    assert not optimizer.report.notes
