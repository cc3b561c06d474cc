"""Factors that give directions the norms of Adam's steps."""

import math

import pytest

from hig._kronecker.grafting import graft_factors


def test_each_layer_has_the_norm_of_adams_step_there():
    assert graft_factors("layer", [4.0, 0.25], [9.0, 1.0]) == [1.5, 2.0]


def test_a_geometric_mean_of_both_has_the_norm_of_adams_step():
    one, other = graft_factors("eigenbasis", [4.0, 0.25], [9.0, 1.0])
    assert one / other == pytest.approx(math.sqrt(1.5 / 2.0), rel=1e-15)
    assert 4.0 * one**2 + 0.25 * other**2 == pytest.approx(10, rel=1e-15)


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
