"""Levenberg-Marquardt: the damped step, and a damping that follows the gain ratio."""

import pytest
import torch
from torch import nn

import hig
from tests.hig.networks import build, least_squares
from tests.textbook import relative_error, step_of, textbook_damped, textbook_jacobian


@pytest.mark.parametrize("engine", ["layerwise", "rows"])
@pytest.mark.parametrize("damping", [1e-4, 1e-1, 1e3])
@pytest.mark.parametrize("name", ["mlp", "narrow"])
def test_the_step_is_the_damped_one(engine, damping, name):
    network, inputs = build(name)
    closure = least_squares(network, inputs)
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    jacobian = textbook_jacobian(prediction, network.parameters())
    expected = -0.1 * textbook_damped(jacobian, gradient.flatten(), damping)
    optimizer = hig.LevenbergMarquardt(network.parameters(), lr=0.1, damping=damping, engine=engine)
    assert relative_error(step_of(optimizer, closure), expected) < 1e-9


def rosenbrock():
    """The classical test of the method, as two residuals of a bare parameter."""
    point = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))

    def closure():
        x, y = point
        prediction = torch.stack([10 * (y - x**2), 1 - x])[None]
        return 0.5 * prediction.square().sum(), prediction

    return point, closure


def test_rosenbrock_is_solved_and_the_loss_never_rises():
    point, closure = rosenbrock()
    optimizer = hig.LevenbergMarquardt([point], damping=1.0)
    losses = [float(optimizer.step(closure)) for _ in range(60)]
    assert losses == sorted(losses, reverse=True)
    assert torch.allclose(point, torch.ones(2).double(), atol=1e-7)


def test_damping_falls_where_the_model_is_right_and_rises_where_it_is_not():
    network = nn.Linear(3, 2).double()
    inputs = torch.randn(4, 3).double()

    def closure():
        prediction = network(inputs)
        return 0.5 * (prediction - 1).square().sum(), prediction

    optimizer = hig.LevenbergMarquardt(network.parameters(), damping=0.9)
    optimizer.step(closure)
    assert optimizer.report.gain_ratio == pytest.approx(1)
    assert optimizer.filter.damping == pytest.approx(0.3)
    assert optimizer.report.damping == optimizer.filter.damping

    point, closure = rosenbrock()
    optimizer = hig.LevenbergMarquardt([point], damping=1e-12)  # a full step, far too long
    before = optimizer.step(closure)
    assert optimizer.filter.damping > 1e-12 or closure()[0].item() < before


def test_a_rejected_step_is_tried_again_from_the_same_decomposition():
    point = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    calls = []

    def closure():
        calls.append(1)
        prediction = torch.atan(point * 8)[None]  # Gauss-Newton overshoots here
        return 0.5 * prediction.square().sum(), prediction

    optimizer = hig.LevenbergMarquardt([point], damping=1e-6)
    before = float(optimizer.step(closure))
    assert len(calls) > 2
    assert optimizer.filter.damping > 1e-6
    assert closure()[0].item() <= before


def test_the_report_notes_a_damping_below_the_rounding():
    network, inputs = build("mlp", torch.float32)
    optimizer = hig.LevenbergMarquardt(network.parameters(), lr=1e-3, damping=1e-25)
    optimizer.step(least_squares(network, inputs))
    assert any("below the rounding" in note for note in optimizer.report.notes)
    assert optimizer.report.rcond > 0
    optimizer = hig.LevenbergMarquardt(network.parameters(), lr=1e-3, damping=1e-2)
    optimizer.step(least_squares(network, inputs))
    assert not optimizer.report.notes
    assert optimizer.report.rcond == 0


@pytest.mark.parametrize(
    ("scale", "options", "remedy"),
    [
        (1.0, {}, "lr=0.5 suits"),
        (2.0, {}, "lr=0.25 suits"),
        (1.0, {"lr": 0.5}, None),
        (0.5, {}, None),
        (0.01, {}, None),
        (1.0, {"step_rule": "trust"}, None),
        (1.0, {"step_rule": "line_search"}, None),
    ],
)
def test_the_report_notes_a_step_too_long_for_the_scale_of_the_loss(scale, options, remedy):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    inputs = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)

    def closure():
        prediction = network(inputs)
        return scale * (prediction - (3 * inputs).sin()).square().sum(), prediction

    optimizer = hig.LevenbergMarquardt(network.parameters(), **options)
    notes = []
    for _ in range(40):
        loss = float(optimizer.step(closure)) / scale
        notes += [note for note in optimizer.report.notes if "too large for the scale" in note]
    assert bool(notes) == bool(remedy)
    assert not remedy or remedy in notes[0]
    if remedy:
        assert len(notes) > 20
        assert loss > 0.1  # it is stuck
    else:
        assert loss < 0.1 or scale == 0.01  # short steps are slow, but not stuck
