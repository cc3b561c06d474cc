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
    optimizer = hig.LevenbergMarquardt(
        network.parameters(), lr=0.1, damping=damping, engine=engine, step_rule="fixed"
    )
    assert relative_error(step_of(optimizer, closure), expected) < 1e-9


def rosenbrock():
    """The classical test of the method, as two residuals of a bare parameter."""
    point = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))

    def closure():
        x, y = point
        prediction = torch.stack([10 * (y - x**2), 1 - x])[None]
        return 0.5 * prediction.square().sum(), prediction

    return point, closure


@pytest.mark.parametrize("options", [{"damping": 1.0, "step_rule": "fixed"}, {}])
def test_rosenbrock_is_solved_and_the_loss_never_rises(options):
    point, closure = rosenbrock()
    optimizer = hig.LevenbergMarquardt([point], **options)
    losses = [float(optimizer.step(closure)) for _ in range(60)]
    assert losses == sorted(losses, reverse=True)
    assert torch.allclose(point, torch.ones(2).double(), atol=1e-7)


def test_damping_falls_where_the_model_is_right_and_rises_where_it_is_not():
    network = nn.Linear(3, 2).double()
    inputs = torch.randn(4, 3).double()

    def closure():
        prediction = network(inputs)
        return 0.5 * (prediction - 1).square().sum(), prediction

    optimizer = hig.LevenbergMarquardt(network.parameters(), damping=0.9, step_rule="fixed")
    optimizer.step(closure)
    assert optimizer.report.gain_ratio == pytest.approx(1)
    assert optimizer.filter.damping == pytest.approx(0.3)
    assert optimizer.report.damping == optimizer.filter.damping

    point, closure = rosenbrock()
    # A full step, far too long.
    optimizer = hig.LevenbergMarquardt([point], damping=1e-12, step_rule="fixed")
    before = optimizer.step(closure)
    assert optimizer.filter.damping > 1e-12 or closure()[0].item() < before


def test_a_rejected_step_is_tried_again_from_the_same_decomposition():
    point = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    calls = []

    def closure():
        calls.append(1)
        prediction = torch.atan(point * 8)[None]  # Gauss-Newton overshoots here
        return 0.5 * prediction.square().sum(), prediction

    optimizer = hig.LevenbergMarquardt([point], damping=1e-6, step_rule="fixed")
    before = float(optimizer.step(closure))
    assert len(calls) > 2
    assert optimizer.filter.damping > 1e-6
    assert closure()[0].item() <= before


def test_the_report_notes_a_damping_below_the_rounding():
    network, inputs = build("mlp", torch.float32)
    optimizer = hig.LevenbergMarquardt(
        network.parameters(), lr=1e-3, damping=1e-25, step_rule="fixed"
    )
    optimizer.step(least_squares(network, inputs))
    assert any("below the rounding" in note for note in optimizer.report.notes)
    assert optimizer.report.rcond > 0
    optimizer = hig.LevenbergMarquardt(
        network.parameters(), lr=1e-3, damping=1e-2, step_rule="fixed"
    )
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

    optimizer = hig.LevenbergMarquardt(network.parameters(), **{"step_rule": "fixed"} | options)
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


class Short:
    """Takes a fiftieth of the Cauchy step, which is always nearly as good as predicted."""

    measures = True

    def __init__(self):
        self.state = {}

    def take(self, trial):
        trial.move(0.02 * trial.slope / trial.curvature)
        return trial.gain_ratio()


@pytest.mark.parametrize(("saturates", "rises"), [(True, True), (False, False)])
def test_the_damping_rises_where_a_rule_has_to_shorten_the_step(saturates, rises):
    """The target is out of reach of tanh, so that the whole step is far too long."""
    parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def closure():
        control = torch.tanh(parameter) if saturates else parameter
        prediction = (control - 2)[None]
        return 0.5 * prediction.square().sum(), prediction

    optimizer = hig.LevenbergMarquardt([parameter], step_rule=Short())
    for _ in range(3):
        optimizer.step(closure)
        assert optimizer.report.gain_ratio > 0.75
    assert (optimizer.report.damping > 1e-3) == rises


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", ["fixed", "trust", "line_search"])
def test_bounded_controls_of_a_target_that_is_partly_out_of_reach(dtype, rule):
    """A double integrator; a damping that falls while steps are shortened stays above 0.4."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 20)).to(dtype)
    start = (4 * torch.rand(32, 2, dtype=torch.float64) - 2).to(dtype)

    def closure():
        position, speed = start.unbind(1)
        for force in torch.tanh(network(start)).unbind(1):
            position = position + 0.2 * speed + 0.02 * force
            speed = speed + 0.2 * force
        prediction = torch.stack([position, speed], 1)
        return 0.5 * prediction.square().sum(1).mean(), prediction

    lr = 32.0 if rule == "fixed" else 1.0
    optimizer = hig.LevenbergMarquardt(network.parameters(), lr=lr, step_rule=rule)
    for _ in range(60):
        loss = float(optimizer.step(closure))
    assert loss < 0.25


def test_the_scale_of_the_loss_does_not_matter_if_the_step_is_measured():
    def run(scale):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        inputs = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
        target = torch.cat([(3 * inputs).sin(), inputs.cos()], 1)
        optimizer = hig.LevenbergMarquardt(network.parameters(), step_rule="trust")
        found = []
        for _ in range(12):

            def closure():
                residual = network(inputs) - target
                return scale(residual), residual

            optimizer.step(closure)
            found.append((float(closure()[1].detach().square().sum()), optimizer.report.damping))
        return torch.tensor(found)

    expected = run(lambda r: 0.5 * r.square().sum())
    for scale in (
        lambda r: r.square().mean(),
        lambda r: r.square().sum(1).mean(),
        lambda r: r.square().sum(),
        lambda r: 1e-20 * r.square().sum(),
        lambda r: 1e20 * r.square().sum(),
    ):
        torch.testing.assert_close(run(scale), expected, rtol=1e-6, atol=0)
