"""Step matrices from recurrences, against dense solves."""

import pytest
import torch

from problems._crank_nicolson import crank_nicolson_matrices, crank_nicolson_states


def dense(diagonal, off_diagonal):
    entries = torch.full((diagonal.shape[-1] - 1,), off_diagonal, dtype=diagonal.dtype)
    z = torch.diag_embed(diagonal) + torch.diag(entries, 1) + torch.diag(entries, -1)
    one = torch.eye(diagonal.shape[-1], dtype=diagonal.dtype)
    return torch.linalg.solve(one + z, one - z)


def schroedinger(shape, size, dtype, dt=0.05):
    """Diagonals and off-diagonal entry of (i dt / 2) (-d²/dx² + potential) on [0, 2]."""
    torch.manual_seed(0)
    spacing = 2 / (size + 1)
    energy = 2 / spacing**2 + 5 * torch.randn(*shape, size, dtype=torch.float64)
    return (0.5j * dt * energy).to(dtype), -0.5j * dt / spacing**2


@pytest.mark.parametrize("size", [1, 2, 3, 14, 100])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4)])
def test_dense_solves(size, shape):
    diagonal, off_diagonal = schroedinger(shape, size, torch.complex128)
    found = crank_nicolson_matrices(diagonal, off_diagonal)
    assert found.shape == (*shape, size, size)
    torch.testing.assert_close(found, dense(diagonal, off_diagonal), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dt", [1e-6, 1.0, 1e4])
def test_any_time_step(dt):
    diagonal, off_diagonal = schroedinger((2,), 14, torch.complex128, dt)
    found = crank_nicolson_matrices(diagonal, off_diagonal)
    torch.testing.assert_close(found, dense(diagonal, off_diagonal), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("size", "times"), [(1, 3), (2, 3), (14, 1), (14, 130)])
def test_states_without_matrices(size, times):
    diagonal, off_diagonal = schroedinger((times, 5), size, torch.complex128)
    state = torch.randn(5, size, dtype=torch.complex128)
    found = list(crank_nicolson_states(state, diagonal, off_diagonal))
    assert len(found) == times
    for matrices, after in zip(dense(diagonal, off_diagonal), found, strict=True):
        state = (matrices @ state.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(after, state, rtol=0, atol=1e-12)


def test_heat_equation_in_real_numbers():
    diagonal = torch.full((3, 6), 2.0, dtype=torch.float64)
    found = crank_nicolson_matrices(diagonal, -1.0)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, dense(diagonal, -1.0), rtol=0, atol=1e-14)
    assert torch.linalg.eigvalsh(found).abs().max() < 1


def test_unitary_symmetric_and_in_the_precision_of_the_input():
    diagonal, off_diagonal = schroedinger((3,), 14, torch.complex64)
    found = crank_nicolson_matrices(diagonal, off_diagonal)
    assert found.dtype == torch.complex64
    assert torch.equal(found, found.mT)
    one = torch.eye(14, dtype=torch.complex64).expand(3, -1, -1)
    torch.testing.assert_close(found @ found.mH, one, rtol=0, atol=3e-6)


def test_derivatives():
    diagonal, off_diagonal = schroedinger((2,), 5, torch.complex128)
    diagonal.requires_grad_()

    def matrices(diagonal):
        return crank_nicolson_matrices(diagonal, off_diagonal)

    assert torch.autograd.gradcheck(matrices, diagonal, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(matrices, diagonal)


def test_transforms_of_torch_func():
    diagonal, off_diagonal = schroedinger((3, 2), 5, torch.complex128)
    tangent = torch.randn_like(diagonal)
    found = torch.func.vmap(lambda d: crank_nicolson_matrices(d, off_diagonal), 1, 1)(diagonal)
    torch.testing.assert_close(found, crank_nicolson_matrices(diagonal, off_diagonal))
    _, along = torch.func.jvp(
        lambda d: crank_nicolson_matrices(d, off_diagonal), (diagonal,), (tangent,)
    )
    _, expected = torch.func.jvp(lambda d: dense(d, off_diagonal), (diagonal,), (tangent,))
    torch.testing.assert_close(along, expected)


def test_a_potential_that_cancels_the_kinetic_energy():
    """Zeros on the diagonal: the multiples of the recurrence are far above 1."""
    diagonal = torch.zeros(14, dtype=torch.complex128)
    found = crank_nicolson_matrices(diagonal, 1e3j)
    torch.testing.assert_close(found, dense(diagonal, 1e3j), rtol=0, atol=1e-12)


def test_real_diagonals_with_a_complex_entry():
    with pytest.raises(TypeError, match="diagonal must be complex with"):
        crank_nicolson_matrices(torch.zeros(3), 1j)
