import pytest
import torch

from problems.pinn._jets import Jet
from problems.pinn._navier_stokes import navier_stokes


def written_out(value, gradient, second, time, viscosity):
    """Component by component; gradient[i][j] is the derivative of unknown j along i."""
    n = len(value) - 1
    momentum = [
        (time[j] if time is not None else 0)
        + sum(value[i] * gradient[i][j] for i in range(n))
        + gradient[j][n]
        - viscosity * sum(second[i][j] for i in range(n))
        for j in range(n)
    ]
    return [*momentum, sum(gradient[i][i] for i in range(n))]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("steady", [True, False])
def test_agrees_with_the_equations_written_out(n, steady):
    torch.manual_seed(0)
    value = torch.randn(4, n + 1, dtype=torch.float64)
    derivatives = torch.randn(4, 2 * n + (not steady), n + 1, dtype=torch.float64)
    found = navier_stokes(Jet(value, derivatives), 0.3)
    for row, v, d in zip(found, value.tolist(), derivatives.tolist(), strict=True):
        expected = written_out(v, d[:n], d[-n:], None if steady else d[n], 0.3)
        assert row.tolist() == pytest.approx(expected, rel=1e-12)
