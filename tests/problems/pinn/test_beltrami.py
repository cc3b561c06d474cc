import pytest
import torch

from problems.pinn import Beltrami
from problems.pinn._jets import Jet
from tests.problems.pinn.nested import Nested

TINY = Beltrami(points_interior=12, points_boundary=6, points_initial=3, width=6, depth=2)


def equations(function, points, viscosity):
    """The equations as one would write them down."""
    found = Nested(function, points)
    gradient = [found.first(i) for i in range(4)]
    laplacian = sum(found.second(i) for i in range(3))
    u, v, w, _ = found.value.unbind(1)
    momentum = [
        gradient[3][:, j]
        + u * gradient[0][:, j] + v * gradient[1][:, j] + w * gradient[2][:, j]
        + gradient[j][:, 3]
        - viscosity * laplacian[:, j]
        for j in range(3)
    ]  # fmt: skip
    divergence = gradient[0][:, 0] + gradient[1][:, 1] + gradient[2][:, 2]
    return torch.stack([*momentum, divergence], 1)


@pytest.mark.parametrize("reynolds", [1.0, 7.0])
def test_the_solution_satisfies_the_equations(reynolds):
    problem = Beltrami(reynolds=reynolds)
    points = problem.draw(50, torch.Generator().manual_seed(0))["interior"]
    assert equations(problem.exact, points, 1 / reynolds).abs().max() < 1e-10
    found = Nested(problem.exact, points)
    slopes = [found.first(i) for i in range(4)] + [found.second(i) for i in range(3)]
    assert problem.equation(Jet(found.value, torch.stack(slopes, 1))).abs().max() < 1e-10


def test_agrees_with_the_published_formulas():
    points = TINY.draw(20, torch.Generator().manual_seed(0))["interior"]
    x, y, z, t = points.unbind(1)
    u = -(x.exp() * (y + z).sin() + z.exp() * (x + y).cos()) * (-t).exp()
    v = -(y.exp() * (z + x).sin() + x.exp() * (y + z).cos()) * (-t).exp()
    w = -(z.exp() * (x + y).sin() + y.exp() * (z + x).cos()) * (-t).exp()
    p = (2 * x).exp() + (2 * y).exp() + (2 * z).exp()
    p = p + 2 * (x + y).sin() * (z + x).cos() * (y + z).exp()
    p = p + 2 * (y + z).sin() * (x + y).cos() * (z + x).exp()
    p = p + 2 * (z + x).sin() * (y + z).cos() * (x + y).exp()
    expected = torch.stack([u, v, w, -0.5 * p * (-2 * t).exp()], 1)
    torch.testing.assert_close(TINY.exact(points), expected, rtol=1e-12, atol=1e-12)


def test_residuals_are_those_of_the_formulas():
    torch.manual_seed(0)
    network = TINY.network().double()
    batch = TINY.draw(12, torch.Generator().manual_seed(0))
    interior = TINY.residuals(network, "interior", batch["interior"])
    assert (interior - equations(network, batch["interior"], 1.0)).abs().max() < 1e-12
    for group in ("boundary", "initial"):
        found = TINY.residuals(network, group, batch[group])
        expected = network(batch[group]) - TINY.exact(batch[group])
        assert (found - expected).abs().max() < 1e-12


def test_points_lie_on_all_six_sides_at_any_time():
    batch = TINY.draw(12, torch.Generator().manual_seed(0))
    boundary = batch["boundary"]
    ends = (boundary[:, :3].abs() == 1).sum(1)
    assert ends.tolist() == [1] * 6
    assert torch.equal(boundary[:, :3].where(boundary[:, :3].abs() == 1, 0).sum(0), torch.zeros(3))
    assert ((boundary[:, 3] > 0) & (boundary[:, 3] < 1)).all()
    assert (batch["initial"][:, 3] == 0).all()


def test_the_grid_covers_the_domain():
    points, solution = TINY.solution()
    assert (points.shape, solution.shape) == ((11**4, 4), (11**4, 4))
    assert points.amin(0).tolist() == [-1, -1, -1, 0]
    assert points.amax(0).tolist() == [1, 1, 1, 1]
