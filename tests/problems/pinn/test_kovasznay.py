import math

import pytest
import torch

from problems.pinn import Kovasznay
from problems.pinn._jets import Jet
from tests.problems.pinn.nested import Nested

TINY = Kovasznay(points_interior=12, points_boundary=5, width=6, depth=2)


def equations(function, points, viscosity):
    """The equations as one would write them down."""
    found = Nested(function, points)
    u, v, _ = found.value.unbind(1)
    (u_x, v_x, p_x), (u_y, v_y, p_y) = (found.first(i).unbind(1) for i in (0, 1))
    laplacian = found.second(0) + found.second(1)
    return torch.stack([
        u * u_x + v * u_y + p_x - viscosity * laplacian[:, 0],
        u * v_x + v * v_y + p_y - viscosity * laplacian[:, 1],
        u_x + v_y,
    ], 1)  # fmt: skip


@pytest.mark.parametrize("reynolds", [40.0, 3.0])
def test_the_solution_satisfies_the_equations(reynolds):
    problem = Kovasznay(reynolds=reynolds)
    points = problem.draw(50, torch.Generator().manual_seed(0))["interior"]
    assert equations(problem.exact, points, 1 / reynolds).abs().max() < 1e-10
    found = Nested(problem.exact, points)
    slopes = [found.first(0), found.first(1), found.second(0), found.second(1)]
    assert problem.equation(Jet(found.value, torch.stack(slopes, 1))).abs().max() < 1e-10


def test_published_values():
    # At the origin exp is 1 and cos is 1; a quarter of a wave further cos is 0 and sin is 1.
    rate = 20 - math.sqrt(400 + 4 * math.pi**2)
    points = torch.tensor([[0.0, 0.0], [0.0, 0.25]], dtype=torch.float64)
    expected = torch.tensor([[0, 0, 0], [1, rate / (2 * math.pi), 0]], dtype=torch.float64)
    torch.testing.assert_close(Kovasznay().exact(points), expected, atol=1e-14, rtol=0)


def test_residuals_are_those_of_the_formulas():
    torch.manual_seed(0)
    network = TINY.network().double()
    batch = TINY.draw(12, torch.Generator().manual_seed(0))
    interior = TINY.residuals(network, "interior", batch["interior"])
    assert (interior - equations(network, batch["interior"], 1 / 40)).abs().max() < 1e-12
    boundary = TINY.residuals(network, "boundary", batch["boundary"])
    expected = network(batch["boundary"]) - TINY.exact(batch["boundary"])
    assert (boundary - expected).abs().max() < 1e-12


def test_points_lie_on_all_four_sides():
    batch = TINY.draw(24, torch.Generator().manual_seed(0))
    assert {group: len(points) for group, points in batch.items()} == {
        "interior": 24, "boundary": 10,
    }  # fmt: skip
    x, y = batch["boundary"].unbind(1)
    sides = [(x == -0.5), (x == 1.0), (y == -0.5), (y == 1.5)]
    assert [int(side.sum()) for side in sides] == [3, 3, 2, 2]


def test_the_grid_covers_the_domain():
    points, solution = TINY.solution()
    assert points.shape == (10201, 2)
    assert points.amin(0).tolist() == [-0.5, -0.5]
    assert points.amax(0).tolist() == [1.0, 1.5]
    assert torch.equal(solution, TINY.exact(points))
