"""Vectors, lengths and records of sampled sizes and scales."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hig.conflictfree import (
    EqualWeight,
    MomentumLossRecorder,
    OrderedSliceSelector,
    RandomSliceSelector,
    TrackArithmeticAverage,
    TrackGeometricAverage,
    TrackHarmonicAverage,
    TrackMaximum,
    TrackMinimum,
    apply_gradient_vector_para_based,
    apply_para_vector,
    estimate_conflict,
    get_cos_similarity,
    get_gradient_vector,
    get_para_vector,
    unit_vector,
)

SHAPES = st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32 - 1)
# Rounding of a mean or a product of a few numbers.
EXACT = 1e-13


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@given(SHAPES, SEEDS)
def test_parameters_and_gradients_come_back(shapes, seed):
    parameters = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    size = sum(map(math.prod, shapes))
    vector = random(size, seed=seed)
    apply_para_vector(parameters, vector)
    apply_gradient_vector_para_based(parameters, -vector)
    assert torch.equal(get_para_vector(parameters), vector)
    assert torch.equal(get_gradient_vector(parameters), -vector)
    with pytest.raises(ValueError, match=rf"have {size} entries"):
        apply_para_vector(parameters, random(size + 1, seed=seed))
    assert torch.equal(get_para_vector(parameters), vector)


@given(st.integers(1, 20), SEEDS, st.integers(-300, 300))
def test_lengths_and_angles_at_any_scale(size, seed, exponent):
    vector, other = 10.0**exponent * random(size, seed=seed), random(size, seed=seed + 1)
    unit = unit_vector(vector)
    assert float(unit.norm()) == pytest.approx(1, abs=EXACT)
    cosine = float(get_cos_similarity(vector, other))
    assert abs(cosine) <= 1 + EXACT
    assert float(get_cos_similarity(other, -vector)) == pytest.approx(-cosine, abs=EXACT)
    # Of two, each has the same angle with their sum where they are equally long.
    pair = torch.stack([unit, unit_vector(other)])
    first, second = estimate_conflict(pair).tolist()
    assert abs(first - second) < 1e-6  # the sum of two that are nearly opposite is rounding


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: unit_vector([3.0]), TypeError, "vector must be a tensor, got a list of 1"),
        (lambda: unit_vector(torch.tensor([3, 4])), TypeError, "floating point, got torch.int64"),
        (
            lambda: get_cos_similarity(torch.ones(2), torch.ones(3)),
            ValueError,
            "one length, got 2 and 3",
        ),
        (lambda: get_cos_similarity(torch.ones(2), None), TypeError, "vector2 must be a tensor"),
        (lambda: estimate_conflict(torch.ones(2)), ValueError, "gradients must have 2 axes"),
        (lambda: apply_para_vector([torch.ones(2)], [1.0, 2.0]), TypeError, "para_vec must be"),
        (lambda: EqualWeight().get_weights([1.0]), TypeError, "gradients must be a tensor"),
        (lambda: RandomSliceSelector(3), TypeError, "generator must be a numpy Generator, got 3"),
        (lambda: OrderedSliceSelector().load_state_dict({}), ValueError, "lacks start_index"),
    ],
)
def test_what_is_no_vector(call, error, match):
    with pytest.raises(error, match=match):
        call()


@given(st.lists(st.floats(-6, 6), min_size=1, max_size=6), st.integers(-100, 100))
def test_means_are_ordered_and_scale(exponents, scale):
    norms = 10 ** torch.tensor(exponents, dtype=torch.float64)
    kinds = (TrackMinimum, TrackHarmonicAverage, TrackGeometricAverage, TrackArithmeticAverage)
    means = [float(kind()._tracked_value(norms)) for kind in (*kinds, TrackMaximum)]
    assert all(a <= b * (1 + EXACT) for a, b in pairwise(means))
    for kind, mean in zip((*kinds, TrackMaximum), means, strict=True):
        scaled = float(kind()._tracked_value(2.0**scale * norms))
        assert scaled == pytest.approx(2.0**scale * mean, rel=EXACT)
        with_zero = float(kind()._tracked_value(torch.cat([norms, norms.new_zeros(1)])))
        assert with_zero == pytest.approx(mean, rel=EXACT)


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0, 0.99), st.floats(-1e6, 1e6))
def test_the_average_of_equal_losses_is_that_loss(losses, times, beta, value):
    recorder = MomentumLossRecorder(losses, beta)
    for _ in range(times):
        found = recorder.record_all_losses([value] * losses)
    assert found == pytest.approx([value] * losses, rel=1e-12, abs=1e-300)


@given(st.integers(1, 6), st.lists(st.integers(1, 6), max_size=8))
def test_all_have_their_turn(length, counts):
    selector, taken = OrderedSliceSelector(), []
    for count in counts:
        indexes, _ = selector.select(min(count, length), list(range(length)))
        taken += indexes
    assert taken == [index % length for index in range(len(taken))]
