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
