"""The trust rule and the safe point: when it looks there, and when it goes back."""

import pytest

from hig._step.step_rules import Trust
from tests.hig.trials import parabola

RETURN = "back to the parameters before them"


@pytest.mark.parametrize(
    ("steps", "rise", "back"), [(3, 1.2, False), (40, 1.5, True), (60, 3.0, False), (60, 6.0, True)]
)
def test_it_goes_back_for_less_in_the_first_steps(steps, rise, back):
    rule = Trust(look_back=1)
    rule.state["steps"] = steps
    _, trial = parabola()
    trial.loss_at_safe_point = lambda: trial.loss / rise
    trial.return_to_safe_point = lambda: setattr(trial, "returned", True)
    rule.take(trial)
    assert trial.returned is back
    assert any(RETURN in note for note in trial.notes) is back


@pytest.mark.parametrize(
    ("high", "loss", "looks"),
    [(9.0, 44.0, False), (9.0, 46.0, True), (-9.0, -2.0, False), (-9.0, -1.0, True)],
)
def test_a_loss_far_above_those_of_recent_batches_is_looked_at_at_once(high, loss, looks):
    rule, seen = Trust(), []
    rule.state.update(steps=20, recent_high=high)
    _, trial = parabola()
    trial.loss = loss
    trial.loss_at_safe_point = lambda: seen.append(1)
    rule.take(trial)
    assert bool(seen) is looks
    assert rule.state["recent_high"] == loss


def looks_at(losses, there=lambda loss: None):
    """Steps of a rule at which it looked at the safe point; then the rule."""
    rule, looks = Trust(look_back=1000), []
    rule.state.update(steps=60)
    for step, loss in enumerate(losses):
        _, trial = parabola()
        trial.loss = loss
        trial.loss_at_safe_point = lambda at=step, loss=loss: looks.append(at) or there(loss)
        trial.return_to_safe_point = lambda: None
        rule.take(trial)
    return looks, rule


@pytest.mark.parametrize("batches", [(1.0, 20.0), (1.0, 100.0, 3.0, 300.0), (-9.0, -1.0)])
def test_batches_that_differ_in_difficulty_or_size_are_no_jumps(batches):
    assert looks_at(batches * 20)[0] in ([], [1], [1, 3])
    assert looks_at([*batches * 20, 1e4])[0][-1] == 20 * len(batches)


def test_after_a_return_the_next_jump_is_seen_too():
    losses = [1.0, 1e6, 1.0, 1e3]
    assert looks_at(losses, lambda loss: 1.0)[0] == [1, 3]


@pytest.mark.parametrize(("part", "changed"), [(1.0, True), (0.5, True), (0.01, False)])
def test_a_jump_at_the_safe_point_too_is_one_of_the_data(part, changed):
    looks, rule = looks_at([1.0, 100.0], lambda loss: part * loss)
    assert looks == [1] and rule.data_changed is changed
    _, trial = parabola()
    trial.loss = 100.0
    rule.take(trial)
    assert not rule.data_changed
