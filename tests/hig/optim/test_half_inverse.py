"""``half_inverse`` against the textbook formula, on matrices sampled by structure and scale."""

import pytest
import torch

import hig
from hig import half_inverse
from hig._spectral.decomposition import gram_floor
from tests.textbook import relative_error, textbook_power

SHAPES = {"wide": (6, 15), "tall": (15, 6), "square": (8, 8), "row": (1, 9), "column": (9, 1)}
KAPPAS = [-1.0, -0.75, -0.5, 0.0, 0.5, 1.0]
METHODS = ["auto", "gram", "svd"]


def orthonormal(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(matrix)[0]


def spectrum(kind, size, smallest):
    if kind == "geometric":
        return torch.logspace(0, torch.tensor(smallest).log10(), size, dtype=torch.float64)
    if kind == "clustered":  # exact multiplicities: singular vectors are not unique, steps are
        return torch.tensor(([1.0, 1.0, 1.0] + [smallest] * size)[:size], dtype=torch.float64)
    generator = torch.Generator().manual_seed(size)
    return smallest + torch.rand(size, generator=generator, dtype=torch.float64)


def sample(shape, kind="random", smallest=1e-2, scale=1.0, seed=0):
    """A Jacobian with known singular values, and a gradient."""
    n, columns = shape
    size = min(shape)
    left, right = orthonormal(n, size, seed), orthonormal(columns, size, seed + 1)
    jacobian = scale * (left * spectrum(kind, size, smallest)) @ right.T
    generator = torch.Generator().manual_seed(seed + 2)
    return jacobian, torch.randn(n, generator=generator, dtype=torch.float64)


def low_rank(shape, rank, seed=0):
    """A product of small integers: its rank is exact in floating point too."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randint(-3, 4, (shape[0], rank), generator=generator).double()
    right = torch.randint(-3, 4, (rank, shape[1]), generator=generator).double()
    return left @ right, torch.randn(shape[0], generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("kind", ["random", "geometric", "clustered"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_textbook_formula(shape, kind, kappa):
    jacobian, gradient = sample(shape, kind, smallest=1e-2)
    expected = textbook_power(jacobian, gradient, kappa, 1e-3)
    for method in METHODS:
        found = half_inverse(jacobian, gradient, kappa, 1e-3, method)
        assert relative_error(found, expected) < 1e-9, method


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("kind", ["geometric", "clustered"])
@pytest.mark.parametrize("shape", ["wide", "tall", "square"])
def test_small_singular_values_are_resolved_where_asked_for(shape, kind, kappa):
    jacobian, gradient = sample(SHAPES[shape], kind, smallest=1e-5)
    expected = textbook_power(jacobian, gradient, kappa, 1e-6)
    for method in ["auto", "svd"]:
        found = half_inverse(jacobian, gradient, kappa, 1e-6, method)
        assert relative_error(found, expected) < 1e-9, method


@pytest.mark.parametrize("shape", ["wide", "tall", "square"])
@pytest.mark.parametrize("method", METHODS)
def test_values_below_the_cut_contribute_nothing(shape, method):
    jacobian, gradient = sample(SHAPES[shape], "geometric", smallest=1e-4)
    expected = textbook_power(jacobian, gradient, -1.0, 3e-3)
    uncut = textbook_power(jacobian, gradient, -1.0, 0.0)
    assert relative_error(uncut, expected) > 1
    assert relative_error(half_inverse(jacobian, gradient, -1.0, 3e-3, method), expected) < 1e-9


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rcond", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("shape", ["wide", "tall", "square"])
def test_deficient_rank(shape, rcond, method, rank):
    jacobian, gradient = low_rank(SHAPES[shape], rank)
    assert int(torch.linalg.matrix_rank(jacobian)) == rank
    for kappa in KAPPAS:
        # Rounding leaves about 1e-16 where the textbook needs a cut; ours finds its own.
        expected = textbook_power(jacobian, gradient, kappa, 1e-10)
        found = half_inverse(jacobian, gradient, kappa, rcond, method)
        assert relative_error(found, expected) < 1e-9, kappa


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_jacobian_gives_a_zero_direction(shape, method, dtype):
    for kappa in KAPPAS:
        for rcond in [0.0, 1e-6]:
            jacobian = torch.zeros(shape, dtype=dtype)
            found = half_inverse(jacobian, torch.ones(shape[0], dtype=dtype), kappa, rcond, method)
            assert torch.equal(found, torch.zeros(shape[1], dtype=dtype))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("method", METHODS)
def test_an_empty_jacobian_gives_a_zero_direction(shape, method):
    found = half_inverse(torch.zeros(shape), torch.ones(shape[0]), method=method)
    assert torch.equal(found, torch.zeros(shape[1]))


# -- properties --------------------------------------------------------------------------------

# -- precision, dtype, device ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 200), (200, 60)])
def test_a_float32_jacobian_loses_far_less_than_in_a_float32_svd(shape):
    jacobian, gradient = sample(shape, "geometric", smallest=1e-7)
    jacobian, gradient = jacobian.float(), gradient.float()
    expected = textbook_power(jacobian.double(), gradient.double(), -0.5, 1e-6)
    of_float32_svd = textbook_power(jacobian, gradient, -0.5, 1e-6)
    assert relative_error(of_float32_svd.double(), expected) > 0.1  # else this tests nothing
    for method, bound in [("auto", 2e-4), ("gram", 2e-4), ("svd", 1e-6)]:
        found = half_inverse(jacobian, gradient, -0.5, 1e-6, method)
        assert found.dtype == torch.float32
        assert relative_error(found.double(), expected) < bound, method


@pytest.mark.parametrize("method", METHODS)
def test_gram_cuts_what_it_cannot_resolve(method):
    """A singular value of 1e-9: the decomposition of J keeps it, a Gram matrix must not."""
    jacobian, gradient = sample((6, 9), "clustered", smallest=1e-9)
    floor = gram_floor(6)
    assert 1e-9 < floor < 1e-6
    cut = floor if method == "gram" else 0.0
    expected = textbook_power(jacobian, gradient, -0.5, cut)
    assert relative_error(half_inverse(jacobian, gradient, -0.5, 0.0, method), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_dtype_of_the_jacobian_is_dtype_of_the_direction(dtype, method):
    jacobian, gradient = sample((4, 7), smallest=0.1)
    jacobian = jacobian.to(dtype)
    found = half_inverse(jacobian, gradient, -0.5, 1e-3, method)
    expected = textbook_power(jacobian.double(), gradient, -0.5, 1e-3)
    assert found.dtype == dtype
    assert relative_error(found.double(), expected) < max(4 * torch.finfo(dtype).eps, 1e-12)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", ["wide", "tall"])
@pytest.mark.parametrize("method", METHODS)
def test_device_of_the_jacobian_is_device_of_the_direction(shape, method):
    jacobian, gradient = sample(SHAPES[shape])
    found = half_inverse(jacobian.cuda(), gradient.cuda(), -0.5, 1e-3, method)
    assert found.device.type == "cuda"
    expected = textbook_power(jacobian, gradient, -0.5, 1e-3)
    assert relative_error(found.cpu(), expected) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_as_they_were(method):
    jacobian, gradient = sample((4, 7))
    strided = torch.empty(7, 8, dtype=torch.float64)[:, ::2].T.copy_(jacobian)
    assert not strided.is_contiguous()
    strided.requires_grad_()
    found = half_inverse(strided, gradient.requires_grad_(), -0.5, 1e-3, method)
    assert not found.requires_grad
    assert torch.equal(strided.detach(), jacobian)
    assert relative_error(found, textbook_power(jacobian, gradient.detach(), -0.5, 1e-3)) < 1e-9


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_non_finite_entries_are_named_by_row(value, method):
    jacobian, gradient = sample((5, 7))
    bad = jacobian.clone()
    bad[1, 2] = bad[1, 3] = bad[3, 0] = value
    with pytest.raises(hig.NonFiniteError, match=r"jacobian has 3 NaN .* in rows \[1, 3\]; check"):
        half_inverse(bad, gradient, method=method)
    bad = gradient.clone()
    bad[4] = value
    with pytest.raises(hig.NonFiniteError, match=r"loss_gradient has 1 NaN .* in rows \[4\]"):
        half_inverse(jacobian, bad, method=method)


def test_a_long_list_of_bad_rows_is_cut():
    with pytest.raises(hig.NonFiniteError, match=r"rows \[0, 1, 2, 3, 4, 5, 6, 7\]\.\.\.;"):
        half_inverse(torch.full((20, 2), float("nan")), torch.ones(20))


@pytest.mark.parametrize(
    ("jacobian", "gradient"), [((3, 4), (4,)), ((3, 4), (3, 1)), ((3,), (3,)), ((2, 3, 4), (2,))]
)
def test_shapes_that_do_not_match_are_named(jacobian, gradient):
    with pytest.raises(ValueError, match="flatten the outputs") as caught:
        half_inverse(torch.ones(jacobian), torch.ones(gradient))
    assert str(jacobian) in str(caught.value) and str(gradient) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64, torch.bool])
def test_jacobians_that_are_not_real_floating_point(dtype):
    with pytest.raises(TypeError, match=f"got {dtype}; .*view_as_real"):
        half_inverse(torch.ones(3, 4, dtype=dtype), torch.ones(3))


def test_a_complex_gradient_is_not_cut_to_its_real_part():
    with pytest.raises(TypeError, match=r"loss_gradient must be real, got torch.complex64"):
        half_inverse(torch.ones(3, 4), torch.ones(3, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_automatic_cut_off_is_a_number_that_fits_the_spectrum(shape, dtype):
    jacobian, gradient = sample(shape, "geometric", smallest=1e-5)
    jacobian, gradient = jacobian.to(dtype), gradient.to(dtype)
    values = torch.linalg.svdvals(jacobian.double())
    rcond = 256 * torch.finfo(dtype).eps * values.square().mean().sqrt() / values.max()
    found = half_inverse(jacobian, gradient, rcond="auto", method="svd")
    expected = half_inverse(jacobian, gradient, rcond=float(rcond), method="svd")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_automatic_cut_off_by_products_is_that_of_float32(dtype):
    jacobian, gradient = sample((30, 40), "geometric", smallest=1e-8)
    jacobian, gradient = jacobian.to(dtype), gradient.to(dtype)
    found = half_inverse(jacobian, gradient, rcond="auto", method="lanczos")
    exact = hig.Lanczos(steps=30, tolerance=1e-12)
    expected = half_inverse(jacobian, gradient, rcond=256 * 2.0**-23, method=exact)
    assert (found - expected).norm() < 1e-2 * expected.norm()
