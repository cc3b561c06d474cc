"""``half_inverse`` on sampled shapes, ranks, scales and exponents.

Tolerances follow from the condition c = s_max / s_min of the singular values that are kept: a Gram
matrix of n rows is exact to n ε s_max², and the derivative of s^κ gives c³ times that, relative to
|g| max(s^κ). With c = 100, n = 8 and a factor of 10 that is 2e-8 at worst, and mostly 1e-13.
"""

from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hig
from tests.textbook import textbook_power

CONDITION, RCOND = 1e2, 1e-4
EPS = torch.finfo(torch.float64).eps


@dataclass
class Sample:
    """J = U S Vᵀ of known singular values, some of them zero, and a gradient."""

    jacobian: Tensor
    gradient: Tensor
    kappa: float
    largest_power: float

    @property
    def tolerance(self) -> float:
        n = max(self.jacobian.shape)
        return 10 * n * EPS * CONDITION**3 * self.largest_power * float(self.gradient.norm())


SCALES = st.floats(-10, 15)


@st.composite
def samples(draw, scales=SCALES):
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    rank = draw(st.integers(1, min(rows, columns)))
    logs = draw(st.lists(st.floats(-2, 0), min_size=rank, max_size=rank))
    values = 10 ** (draw(scales) + torch.tensor(logs, dtype=torch.float64))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def orthonormal(size):
        matrix = torch.randn(size, rank, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(matrix)[0]

    jacobian = (orthonormal(rows) * values) @ orthonormal(columns).T
    gradient = torch.randn(rows, generator=generator, dtype=torch.float64)
    kappa = draw(st.floats(-1, 1))
    return Sample(jacobian, gradient, kappa, float((values**kappa).max()))


METHODS = st.sampled_from(["auto", "gram", "svd"])


@given(samples(), METHODS)
def test_singular_values_to_a_power(sample, method):
    found = hig.half_inverse(sample.jacobian, sample.gradient, sample.kappa, RCOND, method)
    expected = textbook_power(sample.jacobian, sample.gradient, sample.kappa, RCOND)
    assert float((found - expected).norm()) <= sample.tolerance


@given(samples(), METHODS)
def test_float32(sample, method):
    """As exact as the Jacobian is rounded; the step itself is rounded once more."""
    jacobian, gradient = sample.jacobian.float(), sample.gradient.float()
    found = hig.half_inverse(jacobian, gradient, sample.kappa, RCOND, method)
    expected = textbook_power(jacobian.double(), gradient.double(), sample.kappa, RCOND)
    rounding = torch.finfo(torch.float32).eps * float(expected.norm())
    assert found.dtype == torch.float32
    assert float((found.double() - expected).norm()) <= sample.tolerance + rounding


@given(samples(st.just(0.0)), METHODS, st.integers(-100, 100))
def test_scaling_the_jacobian(sample, method, exponent):
    """J → cJ gives c^κ times the step."""
    jacobian, gradient, kappa = sample.jacobian, sample.gradient, sample.kappa
    found = hig.half_inverse(2.0**exponent * jacobian, gradient, kappa, RCOND, method)
    factor = (2.0**exponent) ** kappa
    expected = factor * hig.half_inverse(jacobian, gradient, kappa, RCOND, method)
    assert float((found - expected).norm()) <= factor * sample.tolerance


@given(samples(), METHODS, st.integers(1, 3), st.integers(1, 3))
def test_zero_rows_and_columns_change_nothing(sample, method, rows, columns):
    jacobian = torch.nn.functional.pad(sample.jacobian, (0, columns, 0, rows))
    gradient = torch.nn.functional.pad(sample.gradient, (0, rows), value=1.0)
    found = hig.half_inverse(jacobian, gradient, sample.kappa, RCOND, method)
    expected = hig.half_inverse(sample.jacobian, sample.gradient, sample.kappa, RCOND, method)
    assert not found[-columns:].any()
    assert float((found[:-columns] - expected).norm()) <= 2 * sample.tolerance


@given(samples(), st.floats(0, 0.99), METHODS)
def test_any_cut_off_leaves_a_finite_step_within_the_row_space(sample, rcond, method):
    found = hig.half_inverse(sample.jacobian, sample.gradient, sample.kappa, rcond, method)
    assert found.isfinite().all()
    # Steps go along the gradient, -g being downhill: J d and g never point apart.
    assert float((sample.jacobian @ found) @ sample.gradient) >= 0
