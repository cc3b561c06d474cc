import pytest
import torch

from problems._incompressible import (
    Projection,
    advect_density,
    advect_velocity,
    at_faces,
    curl,
    divergence,
)

SIZES = [2, 5, 8]


def random_values(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_velocity(samples, size):
    return random_values(samples, size - 1, size), random_values(samples, size, size - 1, seed=1)


def swirl(samples, size):
    """Any velocity without divergence: of a potential that is zero on the walls."""
    potential = torch.nn.functional.pad(random_values(samples, size - 1, size - 1), (1, 1, 1, 1))
    return curl(potential)


def interpolated(values, x, y, outside):
    """Linear between the four places around (x, y); `outside` is "constant" or "zero"."""
    total, left, below = 0.0, int(x // 1), int(y // 1)
    for i in (left, left + 1):
        for j in (below, below + 1):
            weight = (1 - abs(x - i)) * (1 - abs(y - j))
            inside = 0 <= i < len(values) and 0 <= j < len(values[0])
            if inside or outside == "constant":
                i_in = min(max(i, 0), len(values) - 1)
                j_in = min(max(j, 0), len(values[0]) - 1)
                total += weight * values[i_in][j_in]
    return total


def test_a_potential_gives_no_divergence():
    x, y = curl(random_values(3, 6, 6))
    assert (x.shape, y.shape) == ((3, 4, 5), (3, 5, 4))
    assert divergence(swirl(3, 5)).abs().max() < 1e-14


def test_divergence_is_what_flows_out_of_each_cell():
    # Through one face alone: out of the cell before it, into the one after.
    x, y = torch.zeros(1, 2, 3), torch.zeros(1, 3, 2)
    x[0, 1, 2], y[0, 0, 1] = 5.0, 7.0
    expected = torch.tensor([[0.0, 7, -7], [0, 0, 5], [0, 0, -5]])
    assert torch.equal(divergence((x, y))[0], expected)


@pytest.mark.parametrize("size", SIZES)
def test_projection(size):
    velocity, project = (
        random_velocity(3, size),
        Projection(size, torch.zeros((), dtype=torch.float64)),
    )
    free = project(velocity)
    assert divergence(free).abs().max() < 1e-13
    again = project(free)
    for once, twice in zip(free, again, strict=True):
        torch.testing.assert_close(once, twice, rtol=0, atol=1e-13)
    # The nearest one: what was taken away is orthogonal to whatever has no divergence.
    removed = [before - after for before, after in zip(velocity, free, strict=True)]
    product = sum((a * b).sum() for a, b in zip(removed, swirl(3, size), strict=True))
    assert product.abs() < 1e-12
    assert divergence(tuple(removed)).abs().max() > 0.1


def test_projection_keeps_dtype_and_precision():
    velocity = tuple(part.float() for part in random_velocity(2, 32))
    free = Projection(32, velocity[0])(velocity)
    assert free[0].dtype == torch.float32
    assert divergence(free).abs().max() < 1e-5


@pytest.mark.parametrize("time", [0.3, 2.0])
def test_advected_density(time):
    density, velocity = random_values(2, 4, 4), random_velocity(2, 4)
    found = advect_density(density, velocity, time)
    for sample in range(2):
        x, y = (part[sample] for part in velocity)
        for i in range(4):
            for j in range(4):
                before, after = (x[k, j] if 0 <= k < 3 else 0.0 for k in (i - 1, i))
                below, above = (y[i, k] if 0 <= k < 3 else 0.0 for k in (j - 1, j))
                place = i - time * (before + after) / 2, j - time * (below + above) / 2
                expected = interpolated(density[sample], *place, "constant")
                assert found[sample, i, j] == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("time", [0.3, 2.0])
def test_advected_velocity_along_x(time):
    (x, y) = velocity = random_velocity(1, 4)
    found, _ = advect_velocity(velocity, time)
    for i in range(3):
        for j in range(4):
            around = [y[0, a, b] for a in (i, i + 1) for b in (j - 1, j) if 0 <= b < 3]
            place = i - time * x[0, i, j], j - time * sum(around) / 4
            expected = interpolated(x[0], *place, "zero")
            assert found[0, i, j] == pytest.approx(float(expected), abs=1e-12)


def test_both_directions_are_treated_alike():
    x, y = velocity = random_velocity(2, 5)
    density = random_values(2, 5, 5)
    turned = y.mT, x.mT
    for found, expected in zip(
        advect_velocity(turned, 0.7), advect_velocity(velocity, 0.7)[::-1], strict=True
    ):
        torch.testing.assert_close(found, expected.mT)
    torch.testing.assert_close(
        advect_density(density.mT, turned, 0.7), advect_density(density, velocity, 0.7).mT
    )


def test_the_mean_at_faces():
    x, y = at_faces(torch.tensor([[[1.0, 3.0], [5.0, 11.0]]]))
    assert torch.equal(x, torch.tensor([[[3.0, 7.0]]]))
    assert torch.equal(y, torch.tensor([[[2.0], [8.0]]]))
