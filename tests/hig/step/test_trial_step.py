"""A step that is tried and measured can be taken back, and its quadratic model is the true one."""

import math

import pytest
import torch
from torch import nn

import hig
from hig._step.objective import curvature_along
from hig._step.trial_step import Trial
from tests.hig.networks import build, least_squares
from tests.textbook import flat


def test_going_back_is_exact():
    torch.manual_seed(0)
    parameter = torch.randn(100)
    before = parameter.clone()
    trial = Trial([parameter], [torch.randn(100).double()], 1.0, 1.0, 1.0, 1.0, lambda: 0.0)
    trial.move(0.3)
    trial.move(1e6)
    trial.move(0)
    assert torch.equal(parameter, before)


def test_a_random_closure_is_evaluated_with_the_same_numbers():
    """With dropout the same masks are drawn again: on a linear network the model is exact."""
    torch.manual_seed(0)
    network = nn.Linear(4, 3).double()
    inputs = torch.randn(6, 4).double()

    def closure():
        prediction = nn.functional.dropout(network(inputs), 0.5)
        return (prediction - 1).square().mean(), prediction

    optimizer = hig.HIG(network.parameters(), step_rule="trust", rcond=1e-3)
    ratios = []
    for _ in range(4):
        optimizer.step(closure)
        ratios.append(optimizer.report.gain_ratio)
    assert ratios == pytest.approx([1] * 4, abs=1e-6)


def test_a_step_is_measured_once():
    calls = []
    parameter = torch.zeros(1)
    trial = Trial([parameter], [torch.ones(1)], 1.0, 5.0, 2.0, 2.0, lambda: calls.append(1) or 4.25)
    assert trial.measure(0.5) == 4.25
    assert float(parameter) == -0.5
    # Predicted: 0.5 * 2 - 0.5 * 0.25 * 2.
    assert trial.gain_ratio() == pytest.approx(0.75 / 0.75)
    assert len(calls) == 1


def test_a_model_that_predicts_no_decrease_trusts_nothing():
    trial = Trial([torch.zeros(1)], [torch.ones(1)], 1.0, 5.0, 1.0, 2.0, lambda: 0.0)
    trial.move(1.5)
    assert trial.gain_ratio() == -float("inf")


@pytest.mark.parametrize(
    ("after", "expected"),
    [(5.0, math.nan), (5 - 1e-6, math.nan), (5 + 1e-6, math.nan), (4.9, 1e7), (5.1, -1e7)],
)
def test_what_is_lost_in_the_rounding_of_the_loss_says_nothing(after, expected):
    """Predicted is a gain of 1e-8, which a loss of 5 in float32 cannot show."""
    eps = torch.finfo(torch.float32).eps
    trial = Trial([torch.zeros(1)], [torch.ones(1)], 1.0, 5.0, 1e-8, 0.0, lambda: after, eps)
    trial.move(1.0)
    assert trial.gain_ratio() == pytest.approx(expected, nan_ok=True)


def quadratic(loss=5.0, slope=2.0, curvature=2.0, **options):
    """A trial along a line, and the losses that it will find."""
    after = []
    parameter, direction = torch.zeros(1).double(), torch.ones(1).double()
    trial = Trial(
        [parameter], [direction], 1.0, loss, slope, curvature, lambda: after.pop(), **options
    )
    return trial, after


@pytest.mark.parametrize(("loss", "after"), [(0.0, 0.0), (1e-30, 1e-30), (2.0, 2.0)])
def test_where_the_slope_is_zero_there_is_nothing_to_see(loss, after):
    trial, losses = quadratic(loss, 0.0, 0.0)
    losses.append(after)
    trial.move(1.0)
    assert math.isnan(trial.gain_ratio())
    assert not trial.can_gain()


def test_a_step_without_slope_that_raises_the_loss_is_seen():
    trial, losses = quadratic(0.0, 0.0, 2.0)  # along momentum, at an exact fit
    losses.append(1.0)
    trial.move(1.0)
    assert trial.gain_ratio() == -math.inf


@pytest.mark.parametrize(
    ("after", "expected"),
    [(5 - 1e-4, math.nan), (5 + 1e-4, math.nan), (4.0, 2e5), (6.0, -2e5)],
)
def test_the_rounding_of_the_outputs_hides_a_gain(after, expected):
    """Predicted is a gain of 5e-6, and a rounding of the outputs changes the loss by 1e-4."""
    trial, losses = quadratic(5.0, 5e-6, 0.0, rounding=1e-4)
    losses.append(after)
    trial.move(1.0)
    assert trial.gain_ratio() == pytest.approx(expected, nan_ok=True)
    assert not trial.can_gain()
    assert trial.same_initial_loss(5.0) is True
    assert trial.same_initial_loss(5 + 1.9e-4) is None
    assert trial.same_initial_loss(5 + 2.1e-4) is False


@pytest.mark.parametrize("after", [5.0, 5.3])
def test_a_gain_that_should_be_seen_and_is_not_is_none(after):
    trial, losses = quadratic(rounding=1e-4)
    losses.append(after)
    trial.move(1.0)
    assert trial.can_gain()
    assert trial.gain_ratio() <= 0


@pytest.mark.parametrize("step_size", [1e-3, 0.1, 0.5, 1.0, 1.7, 2.0, 3.0])
@pytest.mark.parametrize("curvature", [0.5, 2.0, 6.0, 40.0])
def test_the_ratio_of_the_whole_step_follows_from_any_step(step_size, curvature):
    """The true curvature is not 2; the step to the lowest point of the model is 1."""
    trial, losses = quadratic()
    losses.append(5 - 2 * step_size + 0.5 * curvature * step_size**2)
    trial.move(step_size)
    achieved = 2 - 0.5 * curvature
    assert trial.whole_ratio() == pytest.approx(achieved / (2 - 0.5 * 2), rel=1e-6)


@pytest.mark.parametrize("other", [0.2, 0.5, 1.5])
@pytest.mark.parametrize("curvature", [0.5, 2.0, 6.0])
def test_the_ratio_of_another_step_follows_from_this_one(other, curvature):
    trial, losses = quadratic()
    losses.append(5 - 2 * 0.5 + 0.5 * curvature * 0.5**2)
    trial.move(0.5)
    achieved, predicted = 2 * other - 0.5 * curvature * other**2, 2 * other - other**2
    assert trial.gain_ratio_at(other) == pytest.approx(achieved / predicted)
    assert math.isnan(trial.gain_ratio_at(2.5))  # no gain is predicted there


def test_the_ratio_of_the_whole_step_may_be_lost_in_rounding():
    trial, losses = quadratic(rounding=1e-4)
    losses.append(5 - 2e-3)
    trial.move(1e-3)  # the curvature changes the loss by 1e-6
    assert trial.gain_ratio() == pytest.approx(1, abs=1e-3)
    assert math.isnan(trial.whole_ratio())


def test_a_linear_loss_has_no_whole_step():
    trial, losses = quadratic(curvature=0.0)
    losses.append(4.0)
    trial.move(1.0)
    assert trial.whole_ratio() == trial.gain_ratio() == 0.5
    assert trial.can_gain()


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", [hig.HIG, hig.LevenbergMarquardt])
def test_an_error_while_measuring_changes_nothing(error, kind):
    network, inputs = build("mlp")
    closure = least_squares(network, inputs)
    calls = []

    def breaks_when_called_again():
        calls.append(1)
        if len(calls) > 1:
            raise error("simulator")
        return closure()

    before = flat(network.parameters()).clone()
    with pytest.raises(error, match="simulator"):
        kind(network.parameters(), step_rule="trust").step(breaks_when_called_again)
    assert torch.equal(flat(network.parameters()), before)


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: y.square().sum(),
        lambda y: (y.exp() * y.roll(1)).sum(),
        lambda y: 1 - (y.sum() / 3) ** 4,
        lambda y: y.sum(),
    ],
)
def test_curvature_along_a_change(loss):
    torch.manual_seed(0)
    prediction = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    change = torch.randn(6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(prediction), prediction, create_graph=True)
    hessian = torch.autograd.functional.hessian(loss, prediction.detach()).reshape(6, 6)
    found = curvature_along(gradient, prediction, change)
    assert float(found) == pytest.approx(float(change @ hessian @ change), abs=1e-12)


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e10, 1e25])
def test_curvature_of_a_loss_of_any_scale(scale):
    """In float32 the product of the Hessian with a change of that scale is out of range."""
    prediction = torch.randn(3, 2, requires_grad=True)
    loss = scale * prediction.square().sum()
    (gradient,) = torch.autograd.grad(loss, prediction, create_graph=True)
    change = gradient.detach().double().flatten()
    found = float(curvature_along(gradient, prediction, change))
    assert found == pytest.approx(2 * scale * float(change @ change), rel=1e-5)
    assert float(curvature_along(gradient, prediction, torch.zeros_like(change))) == 0


class Squares(torch.autograd.Function):
    """Can be differentiated once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda y: nn.functional.multi_margin_loss(y, torch.tensor([1, 0, 1])), "multi_margin"),
        (lambda y: Squares.apply(y).square(), "once_differentiable"),
    ],
)
def test_a_loss_without_second_derivative_is_refused(loss, match):
    torch.manual_seed(0)
    network, inputs = nn.Linear(2, 2).double(), torch.randn(3, 2, dtype=torch.float64)
    before = flat(network.parameters()).clone()

    def closure():
        prediction = network(inputs)
        return loss(prediction), prediction

    for optimizer in (
        hig.HIG(network.parameters(), step_rule="trust", rcond=1e-6),
        hig.LevenbergMarquardt(network.parameters()),
    ):
        with pytest.raises(ValueError, match=rf"does not have \(.*{match}.*step_rule='fixed'"):
            optimizer.step(closure)
        assert torch.equal(flat(network.parameters()), before)
    hig.HIG(network.parameters(), step_rule="fixed", rcond=1e-6).step(closure)
    assert not torch.equal(flat(network.parameters()), before)
