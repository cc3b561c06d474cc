import numpy as np
import pytest
import torch

import hig
from hig.testing import check_simulator
from problems import ReactionDiffusion
from tests.textbook import relative_error, step_of, textbook_jacobian, textbook_power


def slow_simulation(problem, state, controls):
    """Cell by cell, and diffusion by a dense solve in Fourier space, in float64: all states."""
    cells, reach = problem.cells, 1 / (2 * problem.actuators)
    waves = np.fft.fftfreq(cells, 1 / cells)
    damping = 1 + problem.dt * problem.diffusivity * (2 * np.pi * waves) ** 2
    states = []
    for control in controls:
        for _ in range(problem.window_steps):
            pushed = np.zeros(cells)
            for i in range(cells):
                force = 0.0
                for k, strength in enumerate(control):
                    away = abs((i + 0.5) / cells - (k + 0.5) / problem.actuators)
                    force += strength * np.exp(-0.5 * (min(away, 1 - away) / reach) ** 2)
                growth = problem.rate * (state[i] - state[i] ** 3)
                pushed[i] = state[i] + problem.dt * (growth + force)
            state = np.fft.ifft(np.fft.fft(pushed) / damping).real
            states.append(state)
    return states


def case(samples=3, dtype=torch.float64, **parameters):
    settings = {"cells": 8, "windows": 4, "window_steps": 3, "observations": 2, "actuators": 3}
    problem = ReactionDiffusion(**settings | {"train_size": samples, "test_size": 1} | parameters)
    generator = torch.Generator().manual_seed(1)
    train, _ = problem.data(generator)
    shape = samples, problem.windows, problem.actuators
    controls = torch.randn(shape, generator=generator, dtype=torch.float64)
    return problem, {key: value.to(dtype) for key, value in train.items()}, controls.to(dtype)


def simulate(problem, batch, controls):
    return problem.predict(lambda seen: controls.flatten(1), batch)


@pytest.mark.parametrize(
    "parameters", [{}, {"cells": 7, "dt": 0.02, "rate": 3.0, "diffusivity": 0.1, "windows": 6}]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_agrees_with_a_slow_simulation(parameters, dtype, tolerance):
    problem, batch, controls = case(dtype=dtype, **parameters)
    fields = simulate(problem, batch, controls)
    assert fields.dtype == dtype
    every = problem.windows // 2 * problem.window_steps
    for sample, start in enumerate(batch["start"]):
        states = slow_simulation(problem, start.double().numpy(), controls[sample].tolist())
        assert len(states) == 2 * every
        expected = [states[every - 1], states[-1]]
        np.testing.assert_allclose(fields[sample], expected, rtol=0, atol=tolerance)


def test_without_a_force_phases_form():
    problem, batch, controls = case(20, cells=64, window_steps=100)
    end = simulate(problem, batch, 0 * controls)[:, -1]
    pure = [(fields.abs() > 0.95).double().mean() for fields in (batch["start"], end)]
    assert pure[1] > 2 * pure[0]
    assert end.abs().max() < 1.001


def test_check_simulator():
    problem, batch, controls = case(2, torch.float32)
    report = check_simulator(lambda given: simulate(problem, batch, given), controls)
    assert report.passed, report
    assert (report.engine, report.batched) == ("layerwise", True)


def test_step_of_hig_by_the_rows_of_the_controls():
    torch.manual_seed(0)
    problem, batch, _ = case(2, windows=2, window_steps=2, hidden=(4,))
    network = problem.network().double()

    def closure():
        prediction = problem.predict(network, batch)
        return problem.loss(prediction, batch), prediction

    loss, prediction = closure()
    jacobian = textbook_jacobian(prediction, network.parameters())
    (gradient,) = torch.autograd.grad(loss, prediction)
    expected = -textbook_power(jacobian, gradient.flatten(), -0.5, 1e-6)
    optimizer = hig.HIG(network.parameters(), lr=1.0, rcond=1e-6, step_rule="fixed")
    assert relative_error(step_of(optimizer, closure), expected) < 1e-6
    assert "2 samples x 6 controls for 16 outputs" in str(optimizer.report)
    assert optimizer.report.notes == []


def test_patterns_and_the_line_between_them():
    problem = ReactionDiffusion(train_size=10, test_size=7)
    train, _ = problem.data(torch.Generator().manual_seed(4))
    start, target = train["start"], train["target"]
    assert start.shape == (10, 64) and target.shape == (10, 4, 64)
    for pattern in (start, target[:, -1]):
        waves = torch.fft.rfft(torch.atanh(pattern)).abs()
        assert waves[:, 3:].max() < 1e-6 * waves.max() and waves[:, 2].min() > 1e-3
        assert pattern.abs().max() < 1
    torch.testing.assert_close(target[:, 1], (start + target[:, -1]) / 2)


def test_loss_is_summed_over_cells():
    prediction = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    batch = {"target": torch.tensor([[[0.0, 0.0], [3.0, 0.0]]])}
    assert ReactionDiffusion().loss(prediction, batch).item() == 7.0


@pytest.mark.parametrize(("window_steps", "shown"), [(22, 2), (40, 10), (13, 1)])
def test_an_example_shows_some_times_of_each_window(window_steps, shown):
    problem, train, _ = case(2, window_steps=window_steps)
    example = problem.example(problem.network().double(), train)
    assert example["phase"].shape == (2, 4 * shown + 1, 8)
    assert example["force"].shape == (2, 4 * shown, 8)
    assert example["time"][-1] == pytest.approx(4 * window_steps * problem.dt)


def test_example():
    problem, train, _ = case(2)
    network = problem.network().double()
    example = problem.example(network, train)
    assert {key: value.shape for key, value in example.items()} == {
        "time": (13,),
        "position": (8,),
        "phase": (2, 13, 8),
        "uncontrolled_phase": (2, 8),
        "target_phase": (2, 8),
        "force": (2, 12, 8),
    }
    assert all(value.dtype == np.float64 for value in example.values())
    assert example["time"][-1] == pytest.approx(0.012)
    np.testing.assert_array_equal(example["phase"][:, 0], train["start"])
    found = problem.predict(network, train).detach()
    np.testing.assert_allclose(example["phase"][:, [6, 12]], found, rtol=1e-12)
    np.testing.assert_array_equal(example["force"][:, 0], example["force"][:, 2])
    free = simulate(problem, train, torch.zeros(2, 4, 3, dtype=torch.float64))[:, -1]
    np.testing.assert_allclose(example["uncontrolled_phase"], free, rtol=1e-12)


@pytest.mark.parametrize(
    ("field", "value", "error", "text"),
    [
        ("cells", 4, ValueError, "cells must be at least 5, got 4; fewer do not carry"),
        ("observations", 3, ValueError, "must divide the 8 windows, got 3; give 8, or another"),
        ("rate", -0.1, ValueError, "rate must be positive and finite, got -0.1"),
    ],
)
def test_parameters(field, value, error, text):
    with pytest.raises(error, match=text):
        ReactionDiffusion(**{field: value})


@pytest.mark.cuda
def test_on_a_gpu():
    problem, batch, controls = case()
    expected = simulate(problem, batch, controls)
    batch = {key: value.cuda() for key, value in batch.items()}
    assert relative_error(simulate(problem, batch, controls.cuda()).cpu(), expected) < 1e-11
