import math

import pytest
import torch

from problems.pinn._cole_hopf import burgers_solution

VISCOSITY = 0.01 / math.pi


def grid(places, times):
    points = torch.cartesian_prod(
        torch.linspace(-1, 1, places, dtype=torch.float64),
        torch.linspace(0, 1, times, dtype=torch.float64),
    )
    return points.unbind(1)


def test_more_nodes_change_nothing():
    x, t = grid(41, 11)
    found = burgers_solution(x, t, VISCOSITY)
    assert (found - burgers_solution(x, t, VISCOSITY, nodes=240)).abs().max() < 1e-13


def test_starts_as_a_sine_and_stays_odd_and_zero_at_the_ends():
    x, t = grid(41, 11)
    found = burgers_solution(x, t, VISCOSITY).view(41, 11)
    start = -(math.pi * x.view(41, 11)[:, 0]).sin()
    assert (found[:, 0] - start).abs().max() < 1e-13
    assert (found + found.flip(0)).abs().max() < 1e-12
    assert found[[0, 20, 40]].abs().max() < 1e-12


def test_published_steepest_slope():
    # Basdevant et al. (1986): |u_x| is largest at x = 0 and t = 1.6037 / pi, 152.00516.
    x, t = torch.tensor([1e-6], dtype=torch.float64), torch.tensor([1.6037 / math.pi])
    slope = burgers_solution(x, t, VISCOSITY) / 1e-6
    assert slope.item() == pytest.approx(-152.00516, abs=2e-5)


def test_the_shock_is_that_of_a_travelling_wave():
    # At rest by symmetry, between the values on its two sides: u = -U tanh(U x / 2 nu).
    x = torch.linspace(-0.01, 0.01, 21, dtype=torch.float64)
    t = torch.full_like(x, 0.6)
    found = burgers_solution(x, t, VISCOSITY)
    slope = -burgers_solution(torch.tensor([1e-7]), torch.tensor([0.6]), VISCOSITY).item() / 1e-7
    strength = math.sqrt(2 * VISCOSITY * slope)
    wave = -strength * (strength * x / (2 * VISCOSITY)).tanh()
    assert (found - wave).abs().max() < 0.02 * strength
    assert strength > 0.8


@pytest.mark.parametrize("viscosity", [0.05, 0.5])
def test_agrees_with_the_fourier_series_of_the_heat_equation(viscosity):
    points, t = 2048, 0.7
    x = torch.arange(points, dtype=torch.float64) * 2 / points - 1
    start = ((1 - torch.cos(math.pi * x)) / (2 * math.pi * viscosity)).exp()
    waves = math.pi * torch.arange(points // 2 + 1, dtype=torch.float64)
    spectrum = torch.fft.rfft(start) * (-viscosity * waves.square() * t).exp()
    theta = torch.fft.irfft(spectrum, points)
    expected = -2 * viscosity * torch.fft.irfft(1j * waves * spectrum, points) / theta
    found = burgers_solution(x, torch.full_like(x, t), viscosity)
    assert (found - expected).abs().max() < 1e-10


def test_a_thick_liquid_forgets_its_nonlinearity():
    x, t = grid(21, 3)
    for viscosity in (10.0, 100.0):
        found = burgers_solution(x, 0.1 * t / viscosity, viscosity)
        linear = -(math.pi * x).sin() * (-0.1 * math.pi**2 * t).exp()
        assert (found - linear).abs().max() < 0.06 / viscosity


def test_satisfies_the_equation():
    x, t = (points[:, None] for points in grid(40, 9))
    t = 0.1 + 0.8 * t
    h = 2e-3
    offsets = h * torch.arange(-2, 3, dtype=torch.float64)
    first = torch.tensor([1, -8, 0, 8, -1], dtype=torch.float64) / (12 * h)
    second = torch.tensor([-1, 16, -30, 16, -1], dtype=torch.float64) / (12 * h * h)
    viscosity = 0.05  # thick enough for finite differences everywhere
    along_x = burgers_solution(x + offsets, t.expand(-1, 5), viscosity)
    along_t = burgers_solution(x.expand(-1, 5), t + offsets, viscosity)
    u = along_x[:, 2]
    residual = along_t @ first + u * (along_x @ first) - viscosity * (along_x @ second)
    assert residual.abs().max() < 1e-5
