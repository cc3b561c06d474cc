"""The damping of Levenberg-Marquardt after an attempt: it falls, rises or stays, within bounds."""

import math

import pytest

from hig._step.damping import Outcome, adapted_damping

NAN = math.nan


def adapted(outcome, damping=1.0, largest=10.0, lowest=4e-13, reach=None):
    return adapted_damping(damping, outcome, largest, lowest, reach)


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [(1.0, 1 / 3), (0.76, 1 / 3), (7.0, 1 / 3), (0.5, 1), (0.24, 2), (2e-3, 2), (1e-3, 4),
     (0.0, 4), (-3.0, 4), (-math.inf, 4)],
)  # fmt: skip
@pytest.mark.parametrize("kept", [False, True])
def test_the_gain_ratio_changes_the_damping(ratio, factor, kept):
    if kept and factor == 4:
        factor = 2  # the worst of the steps that are kept
    outcome = Outcome(ratio, can_gain=True, kept=kept)
    assert adapted(outcome) == pytest.approx(factor)
    assert outcome.rejected == (factor == 4)
    assert not outcome.unseen


@pytest.mark.parametrize("can_gain", [True, False])
@pytest.mark.parametrize("damping", [1e-25, 1e-3, 5.0])
def test_a_gain_that_is_lost_in_rounding_changes_nothing(can_gain, damping):
    outcome = Outcome(NAN, can_gain)
    assert outcome.unseen and not outcome.rejected
    assert adapted(outcome, damping) == pytest.approx(max(damping, 4e-13 if can_gain else 0))


def test_no_step_is_a_rejection_where_there_is_something_to_gain():
    assert Outcome(None, can_gain=True).rejected
    assert adapted(Outcome(None, can_gain=True)) == 4
    assert Outcome(None, can_gain=False).unseen
    assert adapted(Outcome(None, can_gain=False)) == 1


@pytest.mark.parametrize("damping", [11.0, 1e30])
def test_a_damping_that_hides_the_gain_falls(damping):
    found = adapted(Outcome(NAN, can_gain=True), damping, reach=1 / damping)
    assert found == pytest.approx(min(damping / 3, 1e7))


@pytest.mark.parametrize("ratio", [0.1, 0.6, 1.0])
def test_a_step_that_had_to_be_shortened_raises_the_damping(ratio):
    assert adapted(Outcome(ratio, can_gain=True, shortened=True)) == 2


@pytest.mark.parametrize(("ratio", "factor"), [(0.1, 2), (0.6, 1), (1.0, 1), (0.0, 4)])
def test_the_damping_does_not_fall_while_a_rule_shortens_steps(ratio, factor):
    assert adapted(Outcome(ratio, can_gain=True, steady=True)) == factor


@pytest.mark.parametrize("damping", [1e-30, 1e-3, 1e9])
@pytest.mark.parametrize("can_gain", [True, False])
def test_a_step_that_was_not_measured_changes_nothing(damping, can_gain):
    outcome = Outcome(None, can_gain, taken=True)
    assert not outcome.rejected and not outcome.seen
    assert adapted(outcome, damping) == damping


def test_a_step_that_a_rule_keeps_is_not_rejected():
    outcome = Outcome(1e-4, can_gain=True, kept=True)
    assert not outcome.rejected
    assert adapted(outcome) == 2


@pytest.mark.parametrize("reach", [0.0, 0.5, None])
def test_bounds(reach):
    good, bad = Outcome(1.0, can_gain=True), Outcome(-1.0, can_gain=True)
    damping = 1.0
    for _ in range(100):
        damping = adapted(good, damping, reach=reach)
    assert damping == pytest.approx(4e-13)
    for _ in range(100):
        damping = adapted(bad, damping, reach=reach and reach / (1 + damping))
    assert damping == pytest.approx(100 if reach is None else 1e7)
    for _ in range(20):
        damping = adapted(good, damping, reach=reach)
    assert damping < 1e-2


def test_the_damping_rises_on_where_the_step_still_reaches_far():
    """The loss is 1e20 times half the sum of squares: a proper step needs as much damping."""
    damping = 1.0
    for _ in range(100):
        reach = 1e20 * 10 / (10 + damping)
        if reach < 1:
            break
        damping = adapted(Outcome(-1.0, can_gain=True), damping, reach=reach)
    assert 1e20 < damping < 1e23


@pytest.mark.parametrize("damping", [1e30, 1e-30])
@pytest.mark.parametrize("reach", [0.0, None])
def test_a_damping_out_of_bounds_comes_back_at_once(damping, reach):
    found = adapted(Outcome(0.5, can_gain=True), damping, reach=reach)
    assert 1e-14 < found <= 1e7


@pytest.mark.parametrize("largest", [0.0, math.inf, 1e-320])
def test_a_jacobian_that_is_zero_or_too_large_sets_no_bounds(largest):
    found = adapted(Outcome(0.5, can_gain=True), 1.0, largest)
    assert 0 < found <= 1
