import math

import numpy as np
import pytest

from problems.pinn._split_step import split_step


def solve(modes, steps, length=10.0, frames=3, duration=math.pi / 2):
    x = np.linspace(-length / 2, length / 2, modes, endpoint=False)
    return x, split_step(2 / np.cosh(x), length, duration, frames, steps)


def breather(x, t):
    """Two solitons bound to each other, on the whole line (Satsuma, Yajima 1974)."""
    above = np.cosh(3 * x) + 3 * np.exp(4j * t) * np.cosh(x)
    return 4 * np.exp(0.5j * t) * above / (np.cosh(4 * x) + 4 * np.cosh(2 * x) + 3 * np.cos(4 * t))


def test_on_a_wide_interval_it_is_the_breather():
    x, found = solve(512, 800, length=30.0)
    for frame, t in zip(found, (0, math.pi / 4, math.pi / 2), strict=True):
        assert np.abs(frame - breather(x, t)).max() < 3e-6
    assert np.abs(found[1]).max() == pytest.approx(4, abs=1e-5)


def test_a_plane_wave_turns_as_it_should():
    x = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    found = split_step(0.5 * np.exp(2j * x), 2 * math.pi, 1.0, 2, 3)
    # |h|² - k²/2 = 0.25 - 2: both parts only turn the phase, so no splitting error.
    np.testing.assert_allclose(found[1], 0.5 * np.exp(2j * x - 1.75j), atol=1e-13)


def test_fourth_order():
    _, fine = solve(128, 1600, frames=2)
    errors = [np.abs(solve(128, steps, frames=2)[1][1] - fine[1]).max() for steps in (200, 400)]
    assert 10 < errors[0] / errors[1] < 22


def test_mass_is_conserved_and_the_start_kept():
    x, found = solve(128, 50)
    mass = (np.abs(found) ** 2).sum(1)
    assert np.ptp(mass) < 1e-10 * mass[0]
    assert (found[0] == 2 / np.cosh(x)).all()
    assert (found.shape, found.dtype) == ((3, 128), np.complex128)
