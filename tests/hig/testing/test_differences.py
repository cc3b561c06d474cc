"""Finite differences: exact for polynomials, with an uncertainty that covers noise; jumps."""

import math
from itertools import pairwise

import pytest
import torch

from hig.testing._differences import OFFSETS, JumpSearch, gauss_legendre, noise, slope, spaced

TIMES = torch.tensor(OFFSETS, dtype=torch.float64)


@pytest.mark.parametrize("step", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("degree", range(8))
def test_slopes_are_exact_for_polynomials_of_degree_six(degree, step):
    powers = (step * TIMES) ** degree
    found, uncertainty = slope(torch.stack([powers, 2 * powers], 1), step)
    size = float(powers.abs().max()) / step
    expected = torch.tensor([1.0, 2.0], dtype=torch.float64) * (degree == 1)
    assert bool(((found - expected).abs() < 1e-13 * size).all()) is (degree < 7)
    # The five inner points are exact up to degree 4.
    assert bool((uncertainty < 1e-12 * size).all()) is (degree < 5)


@pytest.mark.parametrize("level", [1e-12, 1e-8, 1e-4])
def test_the_uncertainty_covers_noise(level):
    generator, step = torch.Generator().manual_seed(0), 1e-2
    disturbed = level * torch.randn(7, 500, generator=generator, dtype=torch.float64)
    found, uncertainty = slope((step * TIMES).sin().unsqueeze(1) + disturbed, step)
    assert float(((found - 1).abs() < uncertainty).double().mean()) > 0.8
    assert float(uncertainty.median()) < 30 * level / step


def test_noise_is_that_of_the_values():
    generator, times = torch.Generator().manual_seed(0), spaced(31)
    smooth = torch.tensor(times, dtype=torch.float64).sin()
    assert float(noise(smooth, times)) < 1e-6
    disturbed = smooth + 1e-3 * torch.randn(31, generator=generator, dtype=torch.float64)
    assert 5e-4 < float(noise(disturbed, times)) < 2e-3


@pytest.mark.parametrize("count", [5, 25, 49])
def test_points_are_spaced_unevenly(count):
    times = spaced(count)
    assert len(times) == count and (times[0], times[-1]) == (-1, 1)
    distances = [b - a for a, b in pairwise(times)]
    mean = 2 / (count - 1)
    assert 0.4 * mean < min(distances) < max(distances) < 1.6 * mean
    assert max(distances) > 1.01 * min(distances)


def test_quadrature():
    nodes, weights = gauss_legendre(24)
    for degree in (0, 6, 47):
        found = sum(w * t**degree for w, t in zip(weights, nodes, strict=True))
        assert found == pytest.approx(0 if degree % 2 else 2 / (degree + 1), abs=1e-14)


class TestJumpSearch:
    KINK, AT = 0.1234, 0.2468

    def height(self, function, floor=1e-9):
        search = JumpSearch(lambda t: torch.tensor(function(t), dtype=torch.float64), 1.0, 49)
        return search.height(floor)

    def test_smooth_functions_and_kinks_have_none(self):
        assert self.height(math.sin) == 0
        assert self.height(lambda t: math.sin(15 * t)) == 0
        assert self.height(lambda t: abs(t - self.KINK), 1e-6) == 0

    @pytest.mark.parametrize("size", [1e-8, 1e-5, 1e-2])
    @pytest.mark.parametrize("at", [-0.93, -0.2, 0.2468, 0.97])
    def test_one_jump(self, at, size):
        found = self.height(lambda t: math.sin(t) + size * (t > at), 1e-11)
        assert size / 2 < found < 2 * size

    def test_a_jump_next_to_a_kink(self):
        def function(t):
            return math.sin(t) + 1e-3 * abs(t - self.KINK) + 1e-5 * (t > self.AT)

        assert 5e-6 < self.height(function) < 2e-5
