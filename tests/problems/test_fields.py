import random

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from problems._fields import (
    CenteredGrid,
    field,
    math,
    noise,
    on_grid,
    phiflow_like,
)

DTYPES = [torch.float32, torch.float64]


def random_values(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def five_points(x):
    """Neighbour by neighbour, with zeros outside."""
    p = pad(x, (1, 1, 1, 1))
    neighbours = p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2]
    return neighbours - 4 * x


@pytest.mark.parametrize("shape", [(3, 5, 8), (1, 7, 4), (2, 1, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-14)])
def test_laplacian_is_the_five_point_stencil(shape, dtype, tolerance):
    values = random_values(*shape, dtype=dtype)
    found = on_grid(field.laplace, values)
    assert found.dtype == dtype
    assert found.device == values.device
    torch.testing.assert_close(found, five_points(values), rtol=0, atol=tolerance)


def test_the_first_axis_after_the_batch_is_x():
    values = random_values(2, 5, 8)
    found = on_grid(lambda grid: field.spatial_gradient(grid).vector["x"], values)
    p = pad(values, (0, 0, 1, 1))
    torch.testing.assert_close(found, (p[:, 2:] - p[:, :-2]) / 2)


def test_cells_have_length_one_on_any_grid():
    sizes = {}

    def look(grid):
        sizes.update(x=float(grid.dx["x"]), y=float(grid.dx["y"]), shape=grid.resolution.sizes)
        return grid

    values = random_values(2, 5, 8)
    assert torch.equal(on_grid(look, values), values)
    assert sizes == {"x": 1.0, "y": 1.0, "shape": (5, 8)}


def test_the_result_may_have_another_size():
    values = random_values(2, 4, 6)
    found = on_grid(field.downsample2x, values)
    torch.testing.assert_close(found, torch.nn.functional.avg_pool2d(values, 2))


def nonlinear(values):
    return on_grid(lambda grid: grid * field.laplace(grid), values)


def test_first_and_second_derivatives():
    values = random_values(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(nonlinear, values)
    assert torch.autograd.gradgradcheck(nonlinear, values)


def test_batched_cotangents():
    values = random_values(2, 3, 4).requires_grad_()
    result = nonlinear(values)
    cotangents = random_values(5, 2, 3, 4)
    (batched,) = torch.autograd.grad(
        result, values, cotangents, is_grads_batched=True, retain_graph=True
    )
    for cotangent, found in zip(cotangents, batched, strict=True):
        (expected,) = torch.autograd.grad(result, values, cotangent, retain_graph=True)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [32, 64])
def test_neither_takes_nor_leaves_global_settings(dtype, bits):
    math.set_global_precision(bits)
    try:
        backend = math.random_normal(math.spatial(x=1)).default_backend.name
        assert on_grid(field.laplace, random_values(1, 3, 3, dtype=dtype)).dtype == dtype
        assert math.get_precision() == bits
        assert math.random_normal(math.spatial(x=1)).default_backend.name == backend == "numpy"
    finally:
        math.set_global_precision(32)


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (torch.zeros(3, 4), ValueError, r"must be \(batch, x, y\), got shape \(3, 4\)"),
        (torch.zeros(1, 3, 4, dtype=torch.long), TypeError, "float32 or float64, got torch.int64"),
        (torch.zeros(1, 3, 4).half(), TypeError, "float32 or float64, got torch.float16"),
        (torch.zeros(1, 3, 4, device="meta"), ValueError, "are on meta, PhiFlow knows"),
    ],
)
def test_values_that_cannot_be_taken(values, error, text):
    with pytest.raises(error, match=text):
        on_grid(field.laplace, values)


@pytest.mark.parametrize(
    ("operator", "names"),
    [
        (lambda grid: field.spatial_gradient(grid), "vector"),
        (lambda grid: CenteredGrid(math.sum(grid.values, "samples"), grid.boundary), "'x', 'y'"),
    ],
)
def test_operators_that_are_not_scalar_or_mix_samples(operator, names):
    with pytest.raises(ValueError, match=f"one number per sample and cell.*{names}"):
        on_grid(operator, torch.zeros(2, 3, 4))


def test_an_operator_that_changes_the_dtype():
    def whole(grid):
        return grid.with_values(math.to_int32(grid.values))

    with pytest.raises(TypeError, match=r"turned torch\.float64 on cpu into torch\.int32"):
        on_grid(whole, random_values(2, 3, 4))


def test_a_solver_that_does_not_converge_says_for_how_many_samples():
    def hasty(grid):
        solve = math.Solve("CG", 1e-9, 0, x0=0 * grid, max_iterations=2)
        return math.solve_linear(field.laplace, grid, solve)

    values = random_values(3, 4, 4)
    values[1] = 0
    with pytest.raises(RuntimeError, match=r"CG .*did not converge for 2 of 3 samples in torch\.f"):
        on_grid(hasty, values)
    assert math.get_precision() == 32


@pytest.mark.cuda
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_devices(place):
    values = random_values(2, 5, 8).to(place)
    found = on_grid(field.laplace, values)
    assert found.device == values.device
    torch.testing.assert_close(found, five_points(values), rtol=0, atol=1e-13)


# -- noise -------------------------------------------------------------------------------------


def test_every_sample_of_the_noise_is_normalised():
    fields = noise(50, 8, torch.Generator().manual_seed(0))
    assert fields.shape == (50, 8, 8)
    assert fields.dtype == torch.float64
    torch.testing.assert_close(fields.mean((1, 2)), fields.new_zeros(50), rtol=0, atol=1e-14)
    torch.testing.assert_close(fields.std((1, 2), correction=0), fields.new_ones(50))


def test_amplitudes_of_the_noise_fall_with_the_square_of_the_wave_number():
    power = torch.fft.fft2(noise(4000, 16, torch.Generator().manual_seed(1))).abs().square().mean(0)
    # Not from wave number 1: it makes most of the standard deviation that is then divided out.
    for near, far, ratio in [((2, 0), (4, 0), 16), ((0, 2), (0, 6), 81), ((3, 0), (3, 3), 4)]:
        assert power[near] / power[far] == pytest.approx(ratio, rel=0.1)


def test_noise_depends_on_the_generator_alone():
    generator = torch.Generator().manual_seed(3)
    first, second = noise(2, 4, generator), noise(2, 4, generator)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    math.set_global_precision(64)
    try:
        with phiflow_like(first):
            again = noise(2, 4, torch.Generator().manual_seed(3))
    finally:
        math.set_global_precision(32)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_noise_leaves_the_random_states_of_the_user_alone():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    noise(2, 4, torch.Generator().manual_seed(3))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1][1])  # noqa: NPY002
    assert np.random.get_state()[2] == states[1][2]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
