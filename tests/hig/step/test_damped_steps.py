"""Gauss-Newton with the trust rule: a damping that starts high and falls to the cut-off."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import hig
from tests.hig.networks import build, least_squares
from tests.textbook import flat, relative_error, step_of, textbook_jacobian

METHODS = {"gram": "gram", "svd": "svd", "lanczos": hig.Lanczos(1e-12)}
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def linear():
    """A fit that has an exact solution, with singular values of very different size."""
    torch.manual_seed(0)
    network = nn.Linear(6, 2).double()
    inputs = torch.randn(5, 6).double() * torch.tensor([1, 0.5, 0.1, 0.03, 0.01, 0.003]).double()

    def closure():
        prediction = network(inputs)
        return 0.5 * (prediction - 1).square().sum(), prediction

    return network, closure


def largest_square(network, closure):
    _, prediction = closure()
    return float(torch.linalg.svdvals(textbook_jacobian(prediction, network.parameters()))[0]) ** 2


class Given:
    """A rule of a known step size, without damping."""

    measures = False

    def __init__(self, step_size):
        self.state, self.step_size = {}, step_size

    def take(self, trial):
        trial.move(self.step_size)


def plain_step(network, closure, report, **options):
    """Change of the parameters by the undamped direction, from the present ones."""
    start = flat(network.parameters()).clone()
    plain = hig.GaussNewton(network.parameters(), step_rule=Given(report), **options)
    step = step_of(plain, closure)
    nn.utils.vector_to_parameters(start, network.parameters())
    return step


@EACH
@pytest.mark.parametrize("kind", [hig.GaussNewton, hig.LevenbergMarquardt])
def test_it_starts_at_a_hundredth_of_the_largest_squared_singular_value(kind, method):
    network, closure = linear()
    optimizer = kind(network.parameters(), lr=0.0, step_rule="trust", method=method)
    optimizer.step(closure)
    expected = 0.01 * largest_square(network, closure)
    assert optimizer.report.damping == pytest.approx(expected, rel=1e-6)
    assert optimizer.report.damping == optimizer.state["damping"]["value"]


@EACH
def test_the_first_direction_is_the_damped_one(method):
    network, closure = linear()
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    jacobian = textbook_jacobian(prediction, network.parameters())
    left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
    kept = values > 1e-3 * values[0]
    damping = 0.01 * float(values[0]) ** 2
    factors = torch.where(kept, values / (values**2 + damping), 0.0)
    expected = right.T @ (factors * (left.T @ gradient.flatten()))
    optimizer = hig.GaussNewton(network.parameters(), rcond=1e-3, step_rule="trust", method=method)
    step = step_of(optimizer, closure)
    assert relative_error(step, -optimizer.report.step_size * expected) < 1e-7


@EACH
def test_it_falls_to_the_cut_off_where_the_direction_is_the_plain_one(method):
    """To the last bit where all singular values are known."""
    network, closure = linear()
    options = {"rcond": 0.02, "method": method}
    optimizer = hig.GaussNewton(network.parameters(), step_rule="trust", **options)
    lowest = 0.02**2 * largest_square(network, closure)
    dampings = []
    for _ in range(30):
        optimizer.step(closure)
        dampings.append(optimizer.report.damping)
    assert all(after < before * (1 + 1e-9) for before, after in pairwise(dampings))
    assert dampings[-1] == pytest.approx(lowest, rel=1e-6)

    def other():  # data, so that there is a step to take
        prediction = closure()[1]
        return 0.5 * (prediction - 1.5).square().sum(), prediction

    start = flat(network.parameters()).clone()
    step = step_of(optimizer, other)
    assert step.any()
    nn.utils.vector_to_parameters(start, network.parameters())
    plain = plain_step(network, other, optimizer.report.step_size, **options)
    if isinstance(method, hig.Lanczos):  # which knows the largest value along each gradient alone
        assert relative_error(step, plain) < 0.02
    else:
        assert torch.equal(plain, step)


def test_it_rises_where_every_step_is_rejected():
    network, closure = linear()
    optimizer = hig.GaussNewton(network.parameters(), step_rule="trust")
    before = flat(network.parameters()).clone()
    largest = largest_square(network, closure)

    def wall():
        loss, prediction = closure()
        moved = not torch.equal(flat(network.parameters()), before)
        return loss + 100 * moved, prediction

    for _ in range(3):
        optimizer.step(wall)
        assert torch.equal(flat(network.parameters()), before)
        assert optimizer.report.step_size == 0
        assert optimizer.report.damping == pytest.approx(10 * largest)  # the highest
    for _ in range(120):  # and comes back
        loss = float(optimizer.step(closure))
    assert optimizer.report.damping < 1e-2 * largest
    assert loss < 1e-3


def test_a_rejected_step_is_tried_again_with_more_damping():
    network, closure = linear()
    optimizer = hig.GaussNewton(network.parameters(), step_rule="trust")
    before, calls = flat(network.parameters()).clone(), []

    def twice():
        loss, prediction = closure()
        moved = not torch.equal(flat(network.parameters()), before)
        if moved and len(calls) < 2:
            calls.append(1)
            loss = loss + 100
        return loss, prediction

    optimizer.step(twice)
    assert len(calls) == 2
    assert optimizer.report.step_size > 0
    # Fourfold twice, and once more doubled for a fraction that has been halved twice.
    assert optimizer.report.damping == pytest.approx(0.32 * largest_square(network, closure))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: hig.HIG(p, step_rule="trust"),
        lambda p: hig.HIG(p, kappa=0.5, step_rule="trust"),
        lambda p: hig.GaussNewton(p, lr=0.1, step_rule="fixed"),
        lambda p: hig.GaussNewton(p, step_rule="line_search"),
    ],
)
def test_others_are_not_damped(make):
    network, inputs = build("mlp")
    optimizer = make(network.parameters())
    for _ in range(3):
        optimizer.step(least_squares(network, inputs))
        assert optimizer.report.damping is None
    assert "damping" not in optimizer.state


@pytest.mark.parametrize("kappa", [-1.0, -0.75, -0.51])
def test_steeper_filters_than_the_half_inverse_are_damped(kappa):
    network, closure = linear()
    optimizer = hig.HIG(network.parameters(), kappa=kappa, rcond=1e-2, step_rule="trust")
    losses = [float(optimizer.step(closure)) for _ in range(30)]
    assert all(after < before * (1 + 1e-9) for before, after in pairwise(losses))
    lowest = 1e-4 * largest_square(network, closure)
    assert optimizer.report.damping == pytest.approx(lowest, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["gram", "svd"])
def test_an_automatic_cut_off(method, dtype):
    """It is chosen in every step, and the damping may fall to it."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2).to(dtype)
    inputs = torch.randn(8, 3).to(dtype)

    def closure():
        prediction = network(inputs)
        return 0.5 * (prediction - inputs[:, :2]).square().sum(), prediction

    optimizer = hig.GaussNewton(
        network.parameters(), rcond="auto", step_rule="trust", method=method
    )
    first = float(optimizer.step(closure))
    for _ in range(30):
        optimizer.step(closure)
    assert float(closure()[0].detach()) < 1e-6 * first
    assert optimizer.filter.auto
    # From 1e-2, until the fit is exact and nothing can be seen.
    assert 0 < optimizer.report.damping < 1e-3 * largest_square(network, closure)


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.5}])
def test_a_filter_of_another_kind_takes_over(momentum):
    """It may be replaced between steps; its own damping, if it has one, is that of its step."""
    network, inputs = build("mlp")
    closure = least_squares(network, inputs)
    optimizer = hig.GaussNewton(network.parameters(), step_rule="trust", **momentum)
    optimizer.step(closure)
    assert optimizer.report.damping is not None
    optimizer.filter = hig.Damped(1.0)
    optimizer.step(closure)
    assert optimizer.report.damping is None
    optimizer.filter = hig.HalfInverse(-1.0)
    optimizer.step(closure)
    assert optimizer.report.damping is not None


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("kind", [hig.GaussNewton, hig.LevenbergMarquardt])
def test_on_one_batch_the_damped_step_is_taken_as_it_is(kind, scale):
    """As Levenberg and Marquardt take it, whatever the scale of the loss."""
    network, inputs = build("mlp")
    targets = torch.randn(len(network(inputs)), network(inputs).shape[1]).double()

    def closure():
        prediction = network(inputs)
        return 0.5 * scale * (prediction - targets).square().sum(), prediction

    optimizer = kind(network.parameters())
    for _ in range(4):
        optimizer.step(closure)
    loss, prediction = closure()
    jacobian = textbook_jacobian(prediction, network.parameters())
    residuals = (prediction - targets).detach().flatten()
    damping = optimizer.report.damping
    gram = jacobian @ jacobian.T + damping * torch.eye(len(jacobian)).double()
    expected = -jacobian.T @ torch.linalg.solve(gram, residuals)
    assert relative_error(step_of(optimizer, closure), expected) < 1e-7
    assert optimizer.report.step_size == pytest.approx(1 / scale)
    assert optimizer.report.gain_ratio is not None and closure()[0] < loss


@pytest.mark.parametrize("changes", [True, False])
def test_where_batches_change_the_damping_has_a_lower_bound(changes):
    torch.manual_seed(0)
    network = nn.Linear(6, 2).double()
    scales = torch.tensor([1, 0.5, 0.1, 1e-2, 1e-3, 1e-4]).double()
    inputs = torch.randn(64, 6).double() * scales
    optimizer = hig.LevenbergMarquardt(network.parameters())
    for step in range(120):
        chosen = inputs[torch.arange(8) + 8 * (step % 8 if changes else 0)]

        def closure(chosen=chosen):
            prediction = network(chosen)
            return (prediction - 1).square().sum(1).mean(), prediction

        optimizer.step(closure)
    relative = optimizer.report.damping / largest_square(network, closure)
    assert (0.3e-8 < relative < 1e-6) if changes else relative < 1e-9
