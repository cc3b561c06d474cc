"""Factors that give directions the norms of Adam's steps."""

import math

import pytest

from hig._kronecker.grafting import graft_factors


def test_each_layer_has_the_norm_of_adams_step_there():
    assert graft_factors("layer", [4.0, 0.25], [9.0, 1.0]) == [1.5, 2.0]


def test_layers_that_are_not_far_apart_have_one_factor():
    found = graft_factors("eigenbasis", [4.0, 0.25], [9.0, 1.0])
    assert found == pytest.approx(graft_factors("global", [4.0, 0.25], [9.0, 1.0]), rel=1e-15)


@pytest.mark.parametrize("large", [1e2, 1e8])
def test_no_layer_takes_the_steps_of_all_others(large):
    """Of Adam's norm each layer keeps about what it has, however large one direction is."""
    squares, adam_squares = [large**2, 1.0, 1.0], [4.0, 4.0, 4.0]
    factors = graft_factors("eigenbasis", squares, adam_squares)
    norms = [factor * square**0.5 for factor, square in zip(factors, squares, strict=True)]
    assert sum(norm**2 for norm in norms) == pytest.approx(12, rel=1e-12)
    assert norms[1] == norms[2] == pytest.approx(norms[0] / 2, rel=1e-12)
    assert graft_factors("global", squares, adam_squares)[1] < 4 / large


def test_one_layer_has_the_norm_of_adams_step_with_any_graft():
    for graft in ("eigenbasis", "layer", "global"):
        assert graft_factors(graft, [4.0], [9.0]) == pytest.approx([1.5], rel=1e-15)


def test_all_layers_together_have_the_norm_of_adams_step():
    factors = graft_factors("global", [4.0, 0.25], [9.0, 1.0])
    assert factors[0] == factors[1] == pytest.approx(math.sqrt(10 / 4.25), rel=1e-15)


def test_no_graft_leaves_directions_as_they_are():
    assert graft_factors(None, [4.0, 0.25], [9.0, 1.0]) == [1.0, 1.0]


@pytest.mark.parametrize("graft", ["eigenbasis", "global", "layer"])
def test_a_direction_of_zero_stays_zero(graft):
    assert graft_factors(graft, [0.0, 0.0], [9.0, 0.0]) == [0.0, 0.0]


@pytest.mark.parametrize("graft", ["eigenbasis", "global", "layer", None])
def test_without_layers_there_are_no_factors(graft):
    assert graft_factors(graft, [], []) == []
