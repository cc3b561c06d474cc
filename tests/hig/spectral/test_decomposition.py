"""Routes, fallbacks and the step of a decomposition, apart from where its Jacobian came from."""

import pytest
import torch

from hig._jacobian.blocks import DenseBlock, JointJacobian
from hig._spectral.decomposition import SVD_BYTES, choose_route, decompose, gram_floor
from hig._spectral.filters import Damped, HalfInverse
from hig._spectral.lanczos import Lanczos
from tests.textbook import relative_error, textbook_damped, textbook_power

ROUTES = ["row_gram", "column_gram", "svd"]
F32, F64 = torch.float32, torch.float64


def sample(n=6, columns=9, rank=None, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    rank = min(n, columns) if rank is None else rank
    left = torch.randn(n, rank, generator=generator, dtype=F64)
    right = torch.randn(rank, columns, generator=generator, dtype=F64)
    return scale * left @ right, torch.randn(n, generator=generator, dtype=F64)


def decomposed(jacobian, route, filter=None):
    joint = JointJacobian([DenseBlock(jacobian)], len(jacobian), 1, like=jacobian)
    forms = {"row_gram": joint.gram, "column_gram": joint.normal, "svd": joint.dense}
    return decompose(joint, forms[route](), route, filter or HalfInverse())


class FailsFirst:
    """Stands in for a torch.linalg function that does not converge the first few times."""

    def __init__(self, function, failures):
        self.function, self.failures, self.seen = function, failures, []

    def __call__(self, matrix, **options):
        self.seen.append(matrix)
        if len(self.seen) <= self.failures:
            raise torch.linalg.LinAlgError("linalg: failed to converge\nsecond line")
        return self.function(matrix, **options)


def fail(monkeypatch, route, failures):
    name = "svd" if route == "svd" else "eigh"
    stand_in = FailsFirst(getattr(torch.linalg, name), failures)
    monkeypatch.setattr(torch.linalg, name, stand_in)
    return stand_in


# -- choosing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "filter", "method", "expected"),
    [
        # float32: the Jacobian's own rounding hides what a float64 Gram matrix loses
        ((5, 9), F32, HalfInverse(rcond=1e-6), "auto", "row_gram"),
        ((9, 5), F32, HalfInverse(rcond=1e-6), "auto", "column_gram"),
        ((5, 5), F32, HalfInverse(rcond=0.0), "auto", "row_gram"),
        # float64 and a small cut-off: J itself
        ((5, 9), F64, HalfInverse(rcond=1e-6), "auto", "svd"),
        ((9, 5), F64, HalfInverse(rcond=9e-4), "auto", "svd"),
        ((5, 9), F64, HalfInverse(rcond=1e-3), "auto", "row_gram"),
        ((9, 5), F64, HalfInverse(rcond=1e-3), "auto", "column_gram"),
        # nothing small is amplified
        ((5, 9), F64, HalfInverse(kappa=1.0, rcond=1e-6), "auto", "row_gram"),
        ((5, 9), F64, Damped(1e-3), "auto", "row_gram"),
        ((9, 5), F64, Damped(1e-3), "auto", "column_gram"),
        # too large to hold in float64
        ((2**12, 2**14 + 1), F64, HalfInverse(rcond=1e-6), "auto", "row_gram"),
        ((2**14 + 1, 2**12), F64, HalfInverse(rcond=1e-6), "auto", "column_gram"),
        # what was asked for is done
        ((5, 9), F64, HalfInverse(rcond=1e-6), "gram", "row_gram"),
        ((9, 5), F64, HalfInverse(rcond=1e-6), "gram", "column_gram"),
        ((5, 9), F32, HalfInverse(rcond=1e-1), "svd", "svd"),
        ((2**12, 2**14 + 1), F32, Damped(1.0), "svd", "svd"),
        ((5, 9), F32, HalfInverse(), "lanczos", "lanczos"),
        ((5, 9), F64, Damped(1.0), Lanczos(steps=3), "lanczos"),
    ],
)
def test_route(shape, dtype, filter, method, expected):
    assert choose_route(shape, dtype, filter, method) == expected


def test_the_largest_jacobian_that_is_decomposed_itself():
    assert SVD_BYTES == 8 * 2**12 * 2**14  # what the sizes in the table above are made for
    assert choose_route((2**12, 2**14), F64, HalfInverse(), "auto") == "svd"


# -- the step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6), (1, 4), (4, 1)])
def test_one_decomposition_serves_any_filter(route, shape):
    jacobian, gradient = sample(*shape)
    found = decomposed(jacobian, route)
    assert found.route == route
    assert found.notes == []
    for filter, expected in [
        (HalfInverse(-0.5, 1e-3), textbook_power(jacobian, gradient, -0.5, 1e-3)),
        (HalfInverse(-1.0, 1e-3), textbook_power(jacobian, gradient, -1.0, 1e-3)),
        (HalfInverse(-1.0, 0.5), textbook_power(jacobian, gradient, -1.0, 0.5)),
        (HalfInverse(1.0, 0.0), jacobian.T @ gradient),
        (Damped(0.1), textbook_damped(jacobian, gradient, 0.1)),
    ]:
        direction, output_change = found.step(filter, gradient)
        assert relative_error(direction, expected) < 1e-9, filter
        assert relative_error(output_change, jacobian @ expected) < 1e-9, filter


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e15])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_singular_values_are_those_of_the_jacobian_descending(route, scale, rank):
    jacobian, _ = sample(rank=rank, scale=scale)
    found = decomposed(jacobian, route)
    values = found.singular_values
    # A (P, P) Gram matrix has P eigenvalues; those beyond n are rounding.
    expected = torch.linalg.svdvals(jacobian)[:rank]
    assert values.dtype == F64
    assert (values[1:] <= values[:-1]).all() and (values >= 0).all()
    torch.testing.assert_close(values[:rank], expected, rtol=1e-9, atol=0)
    assert (values[rank:] <= found.floor * values[0]).all()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("filter", [HalfInverse(), Damped(1e-3), Damped(1e-3, rcond=1e-3)])
def test_squared_sizes_of_the_jacobian(route, filter):
    jacobian, gradient = sample()
    values = torch.linalg.svdvals(jacobian).square()
    found = decomposed(jacobian, route, filter)
    assert float(found.pulled_norm(gradient)) == pytest.approx(
        float((jacobian.T @ gradient).norm())
    )
    assert float(found.squared_norm) == pytest.approx(float(values.sum()), rel=1e-12)
    # The damped routes have a bound by the sums of the rows of the Gram matrix.
    most = 1.0 if found.floor else min(jacobian.shape) ** 0.5
    assert values[0] * (1 - 1e-12) <= found.largest <= values[0] * most * (1 + 1e-12)
    assert 0 < found.resolution < 1e-6
    assert found.floor in (0, found.resolution)


def test_the_smaller_side_has_as_many_values_as_the_rank_can_be():
    for shape in [(6, 9), (9, 6)]:
        jacobian, _ = sample(*shape)
        for method in ["gram", "svd"]:
            route = choose_route(shape, F64, HalfInverse(), method)
            assert decomposed(jacobian, route).singular_values.shape == (6,)


def test_floor_of_a_gram_matrix_covers_its_rounding():
    """A rank-one Gram matrix: every other eigenvalue is rounding and must fall below."""
    assert gram_floor(4) < gram_floor(400) < 1e-6
    for size in [2, 10, 100, 300]:
        generator = torch.Generator().manual_seed(size)
        column = torch.randn(size, 1, generator=generator, dtype=F64)
        values = decomposed(column, "row_gram").singular_values
        assert float(values[1] / values[0]) < gram_floor(size)


# -- fallbacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e15])
def test_a_decomposition_that_fails_once_is_repeated_and_noted(monkeypatch, route, scale):
    jacobian, gradient = sample(scale=scale)
    stand_in = fail(monkeypatch, route, failures=1)
    found = decomposed(jacobian, route)
    monkeypatch.undo()
    assert len(stand_in.seen) == 2
    assert float(stand_in.seen[1].abs().max()) == 1.0
    assert stand_in.seen[1].device.type == "cpu"
    (note,) = found.notes
    assert note == "decomposition repeated on the CPU: linalg: failed to converge"
    expected = textbook_power(jacobian, gradient, -0.5, 1e-3)
    direction, output_change = found.step(HalfInverse(-0.5, 1e-3), gradient)
    assert relative_error(direction, expected) < 1e-9
    assert relative_error(output_change, jacobian @ expected) < 1e-9


@pytest.mark.parametrize("route", ROUTES)
def test_other_errors_are_not_swallowed(monkeypatch, route):
    def out_of_memory(matrix, **options):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(torch.linalg, "svd" if route == "svd" else "eigh", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        decomposed(sample()[0], route)


# -- damped filters without truncation: solved, not decomposed ------------------------------------


@pytest.mark.parametrize("route", ["row_gram", "column_gram"])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (1, 4)])
@pytest.mark.parametrize("damping", [1e-5, 1e-2, 1e4])
def test_damped_steps_are_solved(route, shape, damping):
    jacobian, gradient = sample(*shape, rank=min(shape) - (min(shape) > 1))
    found = decomposed(jacobian, route, Damped(1.0))
    for other in (damping, 3 * damping):
        direction, change = found.step(Damped(other), gradient)
        assert relative_error(direction, textbook_damped(jacobian, gradient, other)) < 1e-7
        assert relative_error(change, jacobian @ direction) < 1e-7
    assert not found.notes


def test_damping_below_the_rounding_takes_eigenvectors():
    jacobian, gradient = sample(6, 9, rank=4)
    found = decomposed(jacobian, "row_gram", Damped(1e-25))
    direction, _ = found.step(Damped(1e-25), gradient)
    expected = textbook_power(jacobian, gradient, -1.0, 1e-6)
    assert relative_error(direction, expected) < 1e-6
    assert "below the rounding" in found.notes[0]
    assert found.floor == gram_floor(6)


def test_a_zero_jacobian_gives_a_zero_step():
    found = decomposed(torch.zeros(3, 5, dtype=F64), "row_gram", Damped(1e-3))
    direction, change = found.step(Damped(1e-3), torch.ones(3, dtype=F64))
    assert not direction.any()
    assert not change.any()


def test_truncation_needs_singular_values():
    jacobian, gradient = sample(6, 9)
    values = torch.linalg.svdvals(jacobian)
    rcond = float((values[2] + values[3]) / 2 / values[0])
    direction, _ = decomposed(jacobian, "row_gram", Damped(1e-2, rcond)).step(
        Damped(1e-2, rcond), gradient
    )
    left, s, right = torch.linalg.svd(jacobian, full_matrices=False)
    gains = (s / (s.square() + 1e-2))[:3]
    assert relative_error(direction, right[:3].T @ (gains * (left[:, :3].T @ gradient))) < 1e-8


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("filter", [HalfInverse(), Damped(1e-3)])
def test_the_spectrum_is_that_of_the_jacobian(route, filter):
    jacobian, _ = sample(6, 9)
    found = decomposed(jacobian, route, filter)
    expected = torch.linalg.svdvals(jacobian)
    assert relative_error(found.spectrum()()[:6], expected) < 1e-9
    assert relative_error(found.singular_values[:6], expected) < 1e-9
