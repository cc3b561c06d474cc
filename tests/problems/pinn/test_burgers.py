import math

import pytest
import torch

from problems.pinn import Burgers
from tests.problems.pinn.nested import Nested

TINY = Burgers(points_interior=12, points_boundary=4, points_initial=3, width=6, depth=2)


def test_residuals_are_those_of_the_formulas():
    torch.manual_seed(0)
    network = TINY.network().double()
    batch = TINY.draw(12, torch.Generator().manual_seed(0))
    found = Nested(network, batch["interior"])
    equation = found.first(1) + found.value * found.first(0) - 0.01 / math.pi * found.second(0)
    residuals = {group: TINY.residuals(network, group, batch[group]) for group in batch}
    assert (residuals["interior"] - equation).abs().max() < 1e-12
    assert (residuals["boundary"] - network(batch["boundary"])).abs().max() < 1e-12
    start = -(math.pi * batch["initial"][:, :1]).sin()
    assert (residuals["initial"] - network(batch["initial"]) + start).abs().max() < 1e-12


def test_points_lie_where_they_should():
    batch = TINY.draw(12, torch.Generator().manual_seed(0))
    assert {group: tuple(points.shape) for group, points in batch.items()} == {
        "interior": (12, 2), "boundary": (4, 2), "initial": (3, 2),
    }  # fmt: skip
    assert sorted(batch["boundary"][:, 0].tolist()) == [-1, -1, 1, 1]
    assert (batch["initial"][:, 1] == 0).all()
    x, t = batch["interior"].unbind(1)
    assert x.min() < -0.8 < 0.8 < x.max()
    assert 0 <= t.min() < 0.1 < 0.9 < t.max() <= 1


def test_the_solution_satisfies_the_conditions():
    points, solution = TINY.solution()
    assert (points.shape, solution.shape) == ((256 * 101, 2), (256 * 101, 1))
    x, t = points.unbind(1)
    for group, where in (("boundary", x.abs() == 1), ("initial", t == 0)):
        assert where.any()
        missing = solution[where] - TINY.prescribed(group, points[where])
        assert missing.abs().max() < 1e-12


def test_viscosity_is_that_of_the_equation_and_the_solution():
    thick = Burgers(viscosity=1.0)
    late = thick.solution()[0][:, 1] == 1
    assert thick.solution()[1][late].abs().max() < 1e-4  # exp(-pi²)
    assert TINY.solution()[1][late].abs().max() > 0.5
    torch.manual_seed(0)
    network, at = TINY.network().double(), torch.rand(3, 2, dtype=torch.float64)
    change = thick.residuals(network, "interior", at) - TINY.residuals(network, "interior", at)
    expected = (0.01 / math.pi - 1) * Nested(network, at).second(0)
    torch.testing.assert_close(change, expected)


@pytest.mark.parametrize("viscosity", [0.0009, 1.1])
def test_viscosity_within_reach_of_the_solution(viscosity):
    with pytest.raises(
        ValueError, match=f"from 0.001 to 1, got {viscosity}; .*default is 0.003183"
    ):
        Burgers(viscosity=viscosity)
