"""Invariants of every operator, on sampled gradients of sampled scales.

Cosines come out of an (m, m) Gram matrix of unit gradients: relative to the length of the direction
they are exact to some m ε c², c the condition of these; samples of more than c = 100 are left out.
"""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from hig.conflictfree import ConFIGOperator, IMTLGOperator, PCGradOperator
from tests.hig.conflictfree.matrices import units

OPERATORS = [ConFIGOperator, PCGradOperator, IMTLGOperator]
every_operator = pytest.mark.parametrize("kind", OPERATORS)
CONDITION, EPS = 1e2, torch.finfo(torch.float64).eps
TOLERANCE = 10 * 5 * EPS * CONDITION**2


@st.composite
def gradients(draw, least=1, spread=8.0):
    """(m, P) with independent rows whose lengths differ."""
    losses = draw(st.integers(least, 5))
    width = draw(st.integers(losses, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    rows = torch.randn(losses, width, generator=generator, dtype=torch.float64)
    assume(float(torch.linalg.cond(units(rows))) < CONDITION)
    exponents = draw(st.lists(st.floats(-spread, spread), min_size=losses, max_size=losses))
    return rows * 10 ** torch.tensor(exponents, dtype=torch.float64).unsqueeze(1)


@given(gradients(), st.randoms(use_true_random=False))
def test_config_and_imtlg_know_no_order(matrix, random):
    order = random.sample(range(len(matrix)), len(matrix))
    for kind in (ConFIGOperator, IMTLGOperator):
        expected = kind()(matrix)
        found = kind()(matrix[order])
        # IMTL-G divides by a sum of weights; where these nearly cancel it is long, and rounding.
        assume(kind is ConFIGOperator or float(expected.norm()) < float(matrix.norm()))
        assert float((found - expected).norm()) < 1e3 * TOLERANCE * float(expected.norm())


@every_operator
@given(matrix=gradients(), exponent=st.integers(-200, 200))
def test_a_common_scale_is_that_of_the_direction(kind, matrix, exponent):
    expected = 2.0**exponent * kind()(matrix)
    found = kind()(2.0**exponent * matrix)
    assert float((found - expected).norm()) <= 1e-9 * float(expected.norm())


@every_operator
@given(matrix=gradients(), factor=st.floats(1e-6, 1e6))
def test_parallel_gradients(kind, matrix, factor):
    pair = torch.stack([matrix[0], factor * matrix[0]])
    found = units(kind()(pair).unsqueeze(0))[0]
    assert float((found - units(pair)[0]).norm()) < 1e-7


@every_operator
@given(matrix=gradients(), place=st.integers(0, 5))
def test_a_zero_gradient_is_left_out(kind, matrix, place):
    place = min(place, len(matrix))
    zero = torch.zeros_like(matrix[:1])
    found = kind()(torch.cat([matrix[:place], zero, matrix[place:]]))
    expected = kind()(matrix)
    assert float((found - expected).norm()) <= 1e-9 * float(expected.norm())


@every_operator
@given(st.integers(1, 4), st.integers(1, 5))
def test_nothing_but_zeros(kind, losses, width):
    assert not kind()(torch.zeros(losses, width)).any()
