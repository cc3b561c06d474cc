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


@given(gradients())
def test_config_has_one_positive_cosine_with_all(matrix):
    direction = units(ConFIGOperator()(matrix).unsqueeze(0))[0]
    cosines = units(matrix) @ direction
    assert float(cosines.min()) > 0
    assert float(cosines.max() - cosines.min()) < TOLERANCE


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


@given(gradients(), st.data())
def test_the_lengths_of_gradients_do_not_turn_config(matrix, data):
    factors = data.draw(st.lists(st.floats(-6, 6), min_size=len(matrix), max_size=len(matrix)))
    scaled = matrix * 10 ** torch.tensor(factors, dtype=torch.float64).unsqueeze(1)
    found, expected = (units(ConFIGOperator()(given).unsqueeze(0))[0] for given in (scaled, matrix))
    assert float((found - expected).norm()) < CONDITION * TOLERANCE


@given(gradients(least=2))
def test_imtlg_has_one_projection_on_all(matrix):
    direction = IMTLGOperator()(matrix)
    projections = units(matrix) @ direction
    assert float(projections.max() - projections.min()) <= TOLERANCE * float(direction.norm())


@given(gradients(least=2))
def test_pcgrad_of_two_conflicts_with_neither(matrix):
    direction = PCGradOperator()(matrix[:2])
    products = units(matrix[:2]) @ direction
    assert float(products.min()) >= -TOLERANCE * float(direction.norm())


@every_operator
@given(matrix=gradients())
def test_vectors_are_as_good_as_a_matrix(kind, matrix):
    assert torch.equal(kind()(list(matrix)), kind()(matrix))


@every_operator
@given(matrix=gradients(), factor=st.floats(1e-6, 1e6))
def test_parallel_gradients(kind, matrix, factor):
    pair = torch.stack([matrix[0], factor * matrix[0]])
    found = units(kind()(pair).unsqueeze(0))[0]
    assert float((found - units(pair)[0]).norm()) < 1e-7


@given(gradients(), st.floats(1e-6, 1e6))
def test_no_direction_suits_opposite_gradients(matrix, factor):
    pair = torch.stack([matrix[0], -factor * matrix[0]])
    for kind in (ConFIGOperator, PCGradOperator):
        assert float(kind()(pair).norm()) <= 1e-7 * float(pair.norm())


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
