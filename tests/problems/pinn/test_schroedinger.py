import math

import numpy as np
import pytest
import torch
from torch import nn

from problems.pinn import Schroedinger
from problems.pinn._jets import Jet
from problems.pinn.schroedinger import reference_waves
from tests.problems.pinn.nested import Nested

TINY = Schroedinger(points_interior=12, points_boundary=4, points_initial=3, width=6, depth=2)


def case():
    torch.manual_seed(0)
    return TINY.network().double(), TINY.draw(12, torch.Generator().manual_seed(0))


def test_residuals_are_those_of_the_formulas():
    network, batch = case()
    found = Nested(network, batch["interior"])
    h, h_t, h_xx = (
        torch.complex(*f.unbind(1)) for f in (found.value, found.first(1), found.second(0))
    )
    equation = torch.view_as_real(1j * h_t + 0.5 * h_xx + h.abs() ** 2 * h)
    interior = TINY.residuals(network, "interior", batch["interior"])
    assert (interior - equation).abs().max() < 1e-12
    start = TINY.residuals(network, "initial", batch["initial"])
    expected = network(batch["initial"])
    expected = expected - torch.tensor([2.0, 0.0]) / batch["initial"][:, :1].cosh()
    assert (start - expected).abs().max() < 1e-12


def test_the_boundary_compares_values_and_slopes_of_both_ends():
    network, batch = case()
    left, right = (Nested(network, end) for end in batch["boundary"].unbind(1))
    expected = torch.cat([right.value - left.value, right.first(0) - left.first(0)], 1)
    found = TINY.residuals(network, "boundary", batch["boundary"])
    assert found.shape == (4, 4)
    assert (found - expected).abs().max() < 1e-12


class Periodic(nn.Module):
    def forward(self, points):
        x, t = points.unbind(-1)
        return torch.stack([(0.2 * math.pi * x + t).sin(), (0.4 * math.pi * x).cos()], -1)


def test_a_periodic_function_has_no_residual_on_the_boundary():
    found = TINY.residuals(Periodic(), "boundary", case()[1]["boundary"])
    assert found.abs().max() < 1e-12


def test_differences_propagated_are_differences_of_what_is_propagated():
    network, batch = case()
    found = TINY._jointly(network, batch)
    for group, rows in zip(batch, found, strict=True):
        expected = TINY.residuals(network, group, batch[group]).reshape(-1, 2)
        assert (rows - expected).abs().max() < 1e-12


def test_points_lie_where_they_should():
    _, batch = case()
    assert {group: tuple(points.shape) for group, points in batch.items()} == {
        "interior": (12, 2), "boundary": (4, 2, 2), "initial": (3, 2),
    }  # fmt: skip
    assert torch.equal(batch["boundary"][:, :, 0], torch.tensor([[-5.0, 5.0]] * 4).double())
    times = batch["boundary"][:, :, 1]
    assert torch.equal(times[:, 0], times[:, 1])
    quarters = (times[:, 0] / (math.pi / 8)).floor().sort().values
    assert quarters.tolist() == [0, 1, 2, 3]
    assert (batch["initial"][:, 1] == 0).all()


def test_a_soliton_has_no_residual_in_the_interior():
    # h = sech(x) exp(i t / 2) solves the equation on the whole line.
    points = TINY.draw(12, torch.Generator().manual_seed(0))["interior"]

    def soliton(points):
        x, t = points.unbind(1)
        return torch.stack([(t / 2).cos(), (t / 2).sin()], 1) / x.cosh().unsqueeze(1)

    found = Nested(soliton, points)
    at = Jet(found.value, torch.stack([found.first(0), found.first(1), found.second(0)], 1))
    assert TINY.equation(at).abs().max() < 1e-10


def test_the_reference_does_not_change_with_its_resolution():
    coarse, fine = reference_waves(512, 11, 80), reference_waves(1024, 11, 160)
    assert np.abs(coarse - fine[:, ::2]).max() < 5e-5
    mass = (np.abs(fine) ** 2).sum(1)
    assert np.ptp(mass) < 1e-10 * mass[0]


def test_the_solution_belongs_to_its_points():
    points, solution = TINY.solution()
    assert (points.shape, solution.shape) == ((256 * 101, 2), (256 * 101, 2))
    assert solution.dtype == torch.float64
    x, t = points.unbind(1)
    assert (x.min(), t.max()) == (-5, math.pi / 2)
    assert x.max() < 5
    first = solution[t == 0]
    assert (first - TINY.prescribed("initial", points[t == 0])).abs().max() < 1e-15
    frame = solution.view(256, 101, 2)[:, 50]  # the two solitons meet halfway
    assert frame.norm(dim=1).argmax() == 128
    assert frame.norm(dim=1).max() == pytest.approx(4, abs=0.05)
    # Symmetric about x = 0, point by point.
    assert (frame[1:] - frame[1:].flip(0)).abs().max() < 1e-9
