import numpy as np
import pytest
import scipy.linalg
import torch

import hig
from hig.testing import check_simulator
from problems import BurgersControl
from problems.burgers_control import _matrices
from tests.textbook import relative_error, step_of, textbook_jacobian, textbook_power

each_route = pytest.mark.parametrize("fast_steps", [True, False])


def slow_simulation(problem, state, controls):
    """Cell by cell, and diffusion by Fourier transforms, in float64: the final state."""
    cells, reach = problem.cells, 1 / (3 * problem.actuators)
    width, amount = 1 / cells, problem.viscosity * problem.dt * problem.cells**2
    column = np.zeros(cells)  # the first one of 1 - nu dt L
    column[[-1, 0, 1]] = -amount, 1 + 2 * amount, -amount
    for control in controls:
        pushed = np.zeros(cells)
        for i in range(cells):
            slope = (state[(i + 1) % cells] - state[i - 1]) / (2 * width)
            force = 0.0
            for k, strength in enumerate(control):
                away = abs((i + 0.5) * width - (k + 0.5) / problem.actuators)
                force += strength * np.exp(-0.5 * (min(away, 1 - away) / reach) ** 2)
            pushed[i] = state[i] + problem.dt * (force - state[i] * slope)
        state = scipy.linalg.solve_circulant(column, pushed)
    return state


def case(samples=3, steps=6, dtype=torch.float64, **parameters):
    problem = BurgersControl(time_steps=steps, train_size=samples, test_size=1, **parameters)
    generator = torch.Generator().manual_seed(1)
    train, _ = problem.data(generator)
    shape = (samples, steps, problem.actuators)
    controls = torch.randn(shape, generator=generator, dtype=torch.float64)
    start = train["start"] + 0.3 * train["target"]
    return problem, start.to(dtype), controls.to(dtype)


def simulate(problem, start, controls):
    batch = {"start": start, "target": start}
    return problem.predict(lambda target: controls.flatten(1), batch)


@each_route
@pytest.mark.parametrize("parameters", [{}, {"cells": 7, "actuators": 3, "viscosity": 0.1}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_agrees_with_a_slow_simulation(fast_steps, parameters, dtype, tolerance):
    problem, start, controls = case(dtype=dtype, fast_steps=fast_steps, **parameters)
    expected = [
        slow_simulation(problem, s, c)
        for s, c in zip(start.double().numpy(), controls.double().numpy(), strict=True)
    ]
    final = simulate(problem, start, controls)
    assert final.dtype == dtype
    np.testing.assert_allclose(final, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_matrices_and_calls_of_phiflow_have_one_jacobian(dtype, tolerance):
    problem, start, controls = case(2, 4, dtype, cells=8)
    found = []
    for route in (problem, problem.plain()):
        given = start.clone().requires_grad_(), controls.clone().requires_grad_()
        final = simulate(route, *given)
        every = torch.eye(final.numel(), dtype=dtype).view(-1, *final.shape)
        batched = torch.autograd.grad(final, given, every, is_grads_batched=True, retain_graph=True)
        one_by_one = textbook_jacobian(final, given)
        batched = torch.cat([rows.flatten(1) for rows in batched], 1)
        assert relative_error(batched, one_by_one) < tolerance
        found += [batched, final.detach()]
    assert found[0].dtype == dtype
    assert relative_error(found[0], found[2]) < tolerance
    assert relative_error(found[1], found[3]) < tolerance


def test_actuators_are_even_and_go_round_the_ring():
    bumps = BurgersControl(cells=32, actuators=4).bumps
    assert bumps.shape == (4, 32)
    for k, bump in enumerate(bumps):
        torch.testing.assert_close(bump, bumps[0].roll(8 * k))
        torch.testing.assert_close(bump, bump.flip(0).roll(2 * (8 * k + 4)))
    # Centres lie between two cells, half a cell from each.
    assert bumps.max() == pytest.approx(np.exp(-0.5 * (3 * 4 / 64) ** 2))


@each_route
def test_check_simulator(fast_steps):
    problem, start, controls = case(2, 2, torch.float32, cells=6, fast_steps=fast_steps)
    report = check_simulator(lambda *given: simulate(problem, *given), start, controls)
    assert report.passed, report
    assert (report.engine, report.batched) == ("layerwise", True)


@each_route
def test_step_of_hig(fast_steps):
    torch.manual_seed(0)
    problem, start, _ = case(2, 3, cells=6, hidden=(4,), fast_steps=fast_steps)
    batch, network = {"start": start, "target": start.flip(1)}, problem.network().double()

    def closure():
        prediction = problem.predict(network, batch)
        return problem.loss(prediction, batch), prediction

    loss, prediction = closure()
    jacobian = textbook_jacobian(prediction, network.parameters())
    (gradient,) = torch.autograd.grad(loss, prediction)
    expected = -textbook_power(jacobian, gradient.flatten(), -0.5, 1e-6)
    optimizer = hig.HIG(network.parameters(), lr=1.0, rcond=1e-6, step_rule="fixed")
    assert relative_error(step_of(optimizer, closure), expected) < 1e-6
    assert optimizer.report.notes == []


def test_matrices_are_made_once_and_leave_phiflow_as_it_was():
    slope, diffusion = _matrices(9, 0.5, 0.1)
    assert slope.dtype == diffusion.dtype == np.float64
    np.testing.assert_allclose(slope, -slope.T, atol=1e-12)
    np.testing.assert_allclose(diffusion, diffusion.T, atol=1e-11)
    np.testing.assert_allclose(diffusion.sum(0), 1, atol=1e-11)
    assert _matrices(9, 0.5, 0.1)[0] is slope


def test_targets_are_of_the_second_wave_alone():
    train, _ = BurgersControl(train_size=10, test_size=7).data(torch.Generator().manual_seed(4))
    assert train["start"].shape == train["target"].shape == (10, 32)
    size = torch.fft.rfft(train["target"]).abs()
    assert size[:, 2].min() > 1e-3
    assert size[:, [0, 1, *range(3, 17)]].max() < 1e-12


def test_loss_is_the_mean_of_sums_of_squares():
    prediction = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    batch = {"target": torch.tensor([[0.0, 0.0], [3.0, 0.0]])}
    assert BurgersControl().loss(prediction, batch).item() == 7.0


def test_example():
    problem = BurgersControl(time_steps=5, train_size=2, test_size=1)
    train, _ = problem.data(torch.Generator().manual_seed(0))
    network = problem.network().double()
    example = problem.example(network, train)
    assert {key: value.shape for key, value in example.items()} == {
        "time": (6,),
        "position": (32,),
        "velocity": (2, 6, 32),
        "uncontrolled_velocity": (2, 32),
        "target_velocity": (2, 32),
        "force": (2, 5, 32),
    }
    assert all(value.dtype == np.float64 for value in example.values())
    assert example["time"][-1] == pytest.approx(0.1)
    np.testing.assert_array_equal(example["velocity"][:, 0], train["start"])
    final = problem.predict(network, train).detach()
    np.testing.assert_allclose(example["velocity"][:, -1], final, rtol=1e-12)
    free = simulate(problem, train["start"], torch.zeros(2, 5, 4, dtype=torch.float64))
    np.testing.assert_allclose(example["uncontrolled_velocity"], free, rtol=1e-12)


@pytest.mark.parametrize(
    ("field", "value", "error", "text"),
    [
        ("cells", 4, ValueError, "cells must be at least 5, got 4; fewer do not carry"),
        ("viscosity", -0.1, ValueError, "viscosity must be positive and finite, got -0.1"),
        ("fast_steps", 1, TypeError, "fast_steps must be True or False, got 1"),
    ],
)
def test_parameters(field, value, error, text):
    with pytest.raises(error, match=text):
        BurgersControl(**{field: value})


@pytest.mark.cuda
@each_route
def test_on_a_gpu(fast_steps):
    problem, start, controls = case(fast_steps=fast_steps)
    expected = simulate(problem, start, controls)
    final = simulate(problem, start.cuda(), controls.cuda())
    assert relative_error(final.cpu(), expected) < 1e-11
