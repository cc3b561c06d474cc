"""The trust rule: its fraction along one direction, and its ceiling over many batches."""

import math
import re

import pytest
import torch
from torch import nn

import hig
from hig._step.step_rules import Trust
from hig._step.trial_step import Trial
from hig._step.trust import STUCK, UNSEEN
from tests.hig.trials import parabola, quartic
from tests.textbook import flat, textbook_jacobian

RETURN = "back to the parameters before them"


def without_ceiling(**settings):
    """A rule whose steps the fraction alone bounds."""
    rule = Trust(**settings)
    rule.state["ceiling"] = 1.0
    return rule


def test_the_first_step_is_a_tenth_of_the_cauchy_step():
    parameter, trial = parabola()
    assert Trust().take(trial) == pytest.approx(1)
    assert float(parameter) == pytest.approx(0.1 * 3)


def test_without_a_ceiling_it_is_half_of_it_and_all_of_it_in_the_end():
    rule = without_ceiling()
    fractions = []
    for _ in range(6):
        parameter, trial = parabola()
        ratio = rule.take(trial)
        fractions.append(float(parameter) / 3)
        assert ratio == pytest.approx(1)  # the model is exact
    assert fractions[0] == pytest.approx(0.5)
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)


@pytest.mark.parametrize("wall", [1.4, 1.0, 0.3, 0.02])
def test_a_step_that_raises_the_loss_is_tried_again_shorter(wall):
    rule = without_ceiling()
    parameter, trial = parabola(wall=wall)
    assert rule.take(trial) == pytest.approx(1)
    assert 0 < float(parameter) < wall
    assert trial.measure(trial.step_size) < trial.loss
    assert rule.state["share"] == pytest.approx(float(parameter) / 3)
    assert rule.state["fraction"] <= 2 * rule.state["share"]


def test_a_direction_without_descent_is_given_up():
    rule = without_ceiling()
    parameter, trial = parabola(wall=1e-12)  # everything on the way is infinite
    assert rule.take(trial) < 0
    assert float(parameter) == trial.step_size == rule.state["share"] == 0
    assert len(trial._losses) == 1 + trial.tries
    for _ in range(40):
        rule.take(parabola(wall=1e-12)[1])
    shares = []
    for _ in range(70):  # from its lower bound it comes back
        rule.take(parabola()[1])
        shares.append(rule.state["share"])
    assert shares == sorted(shares)
    assert shares[0] < 1e-5 and shares[19] >= 1 / 16 and shares[-1] > 0.5


@pytest.mark.parametrize("rise", [1.5, 2.0, 4.0])
def test_the_next_try_is_the_minimum_of_a_parabola(rise):
    """Loss, slope and the loss at the rejected step determine one."""
    parameter = torch.zeros(1, dtype=torch.float64)
    # The model has a curvature of 2 and its lowest point at 1/2, which is tried.
    slope, curvature = 1.0, 4 * rise

    def loss():
        x = -float(parameter)
        return 5 - slope * x + 0.5 * curvature * x**2

    rule = without_ceiling()
    rule.state["fraction"] = 1.0
    trial = Trial([parameter], [torch.ones(1).double()], 1.0, 5.0, slope, 2.0, loss)
    assert 0 < rule.take(trial) < 1
    assert trial.step_size == pytest.approx(slope / curvature)


def test_it_measures_in_the_warm_up_and_then_at_times():
    rule = Trust(warm_up=3, period=5)
    measured = [rule.take(parabola()[1]) is not None for _ in range(12)]
    assert measured == [True, True, True, False, False, True, *[False] * 4, True, False]


@pytest.mark.parametrize(("gain", "next_too"), [(1.9, False), (2.1, True)])
def test_after_twice_the_predicted_gain_the_next_step_is_measured_too(gain, next_too):
    rule = Trust(warm_up=0, period=5)
    _, trial = parabola()
    trial.gain_ratio = lambda: gain
    assert rule.take(trial) == gain
    assert (rule.take(parabola()[1]) is not None) is next_too
    assert rule.take(parabola()[1]) is None  # that one gained what its model had said


def test_it_goes_no_further_than_the_mean_of_late_models_asks():
    """A flat batch after curved ones is no reason to go far; a curved one after flat ones is."""
    rule = without_ceiling()
    for _ in range(8):
        rule.take(parabola()[1])
    fraction = rule.state["fraction"]
    _, flat_trial = parabola(curvature=0.2, minimum=3)
    rule.take(flat_trial)
    slopes = torch.tensor([36.0] * 8 + [0.36], dtype=torch.float64)
    curvatures = slopes / torch.tensor([0.5] * 8 + [5.0], dtype=torch.float64)
    typical = float(slopes.sum() / curvatures.sum())
    assert 0.5 < typical < 5
    assert flat_trial.step_size == pytest.approx(fraction * typical)
    _, curved = parabola(curvature=20.0)
    fraction = rule.state["fraction"]
    rule.take(curved)
    assert curved.step_size == pytest.approx(fraction / 20)


def test_it_is_not_misled_by_easy_batches():
    """Their Cauchy step is a thousand times what the hard ones bear."""
    rule = without_ceiling()
    rule.take(parabola(curvature=1000.0, minimum=1.0)[1])
    for _ in range(20):
        easy = parabola(curvature=1.0, minimum=1.0)[1]
        rule.take(easy)
        assert easy.step_size < 0.0011
        rule.take(parabola(curvature=1000.0, minimum=1.0)[1])


@pytest.mark.parametrize("reach", [1.0, 4.0])
@pytest.mark.parametrize(("difference", "found"), [(0.0, 4.0), (1e-5, None), (1e-2, 1.0)])
def test_losses_that_differ_by_less_than_their_rounding_say_nothing_of_the_batch(
    reach, difference, found
):
    """Near an exact fit those of two batches do; one batch for another is fitted at any price."""
    rule = Trust()
    _, trial = parabola()
    trial.unseen = 1e-4
    rule.state.update(reach=reach, end=trial.loss + difference)
    rule.take(trial)
    assert rule.state["reach"] == (found or reach)


def test_a_return_shows_that_batches_change():
    rule = Trust()
    rule.state["reach"] = 4.0
    rule.retreat()
    assert rule.batch_changes


@pytest.mark.parametrize(("others", "reach"), [(False, 4), (True, 1)])
def test_it_goes_further_where_there_is_one_batch(others, reach):
    rule, x = without_ceiling(memory=1000), torch.full((1,), 10.0, dtype=torch.float64)
    slopes, curvatures, limited = [], [], 0
    for k in range(40):
        other = others and k % 2 == 1
        trial = parabola(curvature=1e-3)[1] if other else quartic(x)
        fraction = rule.state["fraction"]
        slopes.append(trial.slope)
        curvatures.append(trial.curvature)
        rule.take(trial)
        # The first step knows of one batch, and its successor is the first that can be capped.
        farthest = reach * sum(slopes) / sum(curvatures) if k else math.inf
        if not other:
            own = trial.slope / trial.curvature
            assert trial.step_size == pytest.approx(fraction * min(own, farthest))
            limited += farthest < own
    assert limited > 3


def test_it_does_not_stay_careful_after_a_start_from_far_away():
    """The first losses are a million times the others, and bear a hundredth of their steps."""
    rule = without_ceiling()
    for _ in range(3):
        rule.take(parabola(curvature=200.0, minimum=300.0)[1])
    for _ in range(420):
        trial = parabola(curvature=2.0, minimum=3.0)[1]
        rule.take(trial)
    assert trial.step_size == pytest.approx(rule.state["fraction"] / 2, rel=0.05)


def test_slopes_from_both_ends_of_the_numbers():
    rule = Trust()
    for scale in (*[1e-100] * 40, 1e100, 1e-100):
        trial = parabola(curvature=scale, minimum=1.0)[1]
        rule.take(trial)
        assert math.isfinite(trial.step_size) and trial.step_size > 0


def test_it_walks_on_across_a_plateau():
    """A saddle at a loss of 1: growth is exponential, but unseen in float32 for many steps."""
    position = torch.full((1,), 1e-6, requires_grad=True)

    def closure():
        prediction = position.view(1, 1) * 1.0
        return (1 - prediction.square() + prediction**4).mean(), prediction

    optimizer = hig.HIG([position], step_rule="trust")
    for _ in range(90):
        optimizer.step(closure)
    assert float(position.detach()) == pytest.approx(0.5**0.5, rel=1e-2)


def test_it_forgets():
    rule = without_ceiling(memory=4)
    for _ in range(60):
        rule.take(parabola(curvature=200.0)[1])
    for _ in range(100):
        trial = parabola(curvature=2.0)[1]
        rule.take(trial)
    assert trial.step_size == pytest.approx(rule.state["fraction"] / 2, rel=1e-3)


def test_without_curvature_there_is_no_ceiling():
    parameter = torch.zeros(1, dtype=torch.float64)
    trial = Trial(
        [parameter], [torch.ones(1).double()], 0.2, 1.0, 1.0, 0.0, lambda: 1 + float(parameter)
    )
    rule = Trust()
    rule.state["ceiling"] = 0.02
    rule.take(trial)
    assert float(parameter) == pytest.approx(-0.1)


# -- the ceiling ---------------------------------------------------------------------------------

LOSSES = {
    "squares": lambda y, t: (y - t).square().sum(1).mean(),
    "cosh": lambda y, t: (y - t).cosh().log().sum(),
    "quartic": lambda y, t: (y - t).pow(4).sum(),
    "entropy": lambda y, t: nn.functional.cross_entropy(y, t.softmax(1)),
}


def dense_line(loss_of, network, inputs, targets, start):
    """Slope and curvature of a loss along the step from a start, in the outputs; and the loss."""
    prediction = network(inputs)
    step = flat(network.parameters()) - start
    change = textbook_jacobian(prediction, network.parameters()) @ step
    outputs = prediction.detach()
    gradient = torch.autograd.functional.jacobian(lambda y: loss_of(y, targets), outputs).flatten()
    hessian = torch.autograd.functional.hessian(lambda y: loss_of(y, targets), outputs)
    hessian = hessian.reshape(len(change), len(change))
    loss = float(loss_of(outputs, targets))
    return float(gradient @ change), abs(float(change @ hessian @ change)), loss


@pytest.mark.parametrize("loss_of", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("kind", [hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt])
def test_the_ceiling_follows_from_the_next_batch(kind, loss_of):
    """Against dense matrices: 1.8 times the mean of the best shares, weighted by curvature."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    optimizer = kind(network.parameters(), rcond=1e-3, step_rule="trust")
    ceiling, judged, best, weight, share, start, moved = 0.1, 0, 0.0, 0.0, 0.0, None, 0
    for _ in range(25):
        inputs, targets = torch.randn(2, 6, 4).double()[0], torch.randn(6, 3).double()
        if share > 0:
            slope, curvature, loss = dense_line(loss_of, network, inputs, targets, start)
        start = flat(network.parameters()).clone()

        def closure(inputs=inputs, targets=targets):
            prediction = network(inputs)
            return loss_of(prediction, targets), prediction

        optimizer.step(closure)
        if any(RETURN in note for note in optimizer.report.notes):
            ceiling, judged = max(ceiling / 2, 0.02), judged // 2
        elif share > 0:
            judged = min(judged + 1, 16)
            own = curvature / share**2 / loss
            weight += (own - weight) / judged
            best += (own * share * (1 - slope / curvature) - best) / judged
            bounded = min(max(1.8 * best / weight, ceiling / 2), 1.5 * ceiling)
            moved += bounded not in (ceiling / 2, 1.5 * ceiling)
            ceiling = min(max(bounded, 0.02), 1.0)
        state = optimizer.state["step_rule"]
        assert state["ceiling"] == pytest.approx(ceiling, rel=1e-7)
        assert state["share"] <= ceiling * (1 + 1e-12)
        share = state["share"]
    assert moved >= 3  # the formula has decided, not its bounds alone


class Earlier:
    """Stands for earlier points: a slope and a curvature along the last step."""

    def __init__(self, slope, curvature):
        self.seen = slope, curvature

    def were_set(self):
        return False

    def last_step(self):
        return self.seen

    def values(self, point):
        return None

    def keep_safe(self, values):
        pass


def judged_by(rule, slope, curvature):
    _, trial = parabola()
    trial._earlier = Earlier(slope, curvature)
    rule.take(trial)
    return rule.state["ceiling"]


@pytest.mark.parametrize(("slope", "factor"), [(-1e3, 1.5), (1e3, 0.5), (-1e300, 1.5)])
def test_the_ceiling_changes_by_bounded_factors_and_stays_within_bounds(slope, factor):
    rule = Trust()
    rule.take(parabola()[1])
    before = rule.state["ceiling"]
    for _ in range(40):
        after = judged_by(rule, slope, 1.0)
        assert after == pytest.approx(min(max(factor * before, 0.02), 1.0))
        before = after
    assert before == (0.02 if factor < 1 else 1.0)


def test_late_in_training_the_ceiling_stays_higher():
    rule = Trust()
    rule.take(parabola()[1])
    rule.state.update(steps=60, ceiling=0.5)
    found = [judged_by(rule, 1e3, 1.0) for _ in range(3)]
    assert found == [0.3, 0.3, 0.3]
    rule.retreat()
    assert rule.state["ceiling"] == 0.15
    rule.take(parabola()[1])
    assert [judged_by(rule, 1e3, 1.0) for _ in range(3)] == pytest.approx([0.225, 0.3, 0.3])


@pytest.mark.parametrize(
    ("slope", "curvature"),
    [(0.0, 0.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf)],
)
def test_what_says_nothing_leaves_the_ceiling(slope, curvature):
    rule = Trust()
    rule.take(parabola()[1])
    before = {name: rule.state[name] for name in ("ceiling", "judged", "best", "weight")}
    assert judged_by(rule, slope, curvature) == 0.1
    assert before == {name: rule.state[name] for name in before}


@pytest.mark.parametrize(
    ("scale", "offset"), [(1e-20, 0.0), (1.0, 0.0), (1e20, 0.0), (1.0, -1e3), (1.0, 1e3)]
)
@pytest.mark.parametrize("kind", [hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt])
def test_on_one_batch_of_a_linear_problem_whole_steps_are_taken_soon(kind, scale, offset):
    """Also of a loss that is negative, as some energies are."""
    torch.manual_seed(0)
    network, inputs = nn.Linear(6, 2).double(), torch.randn(4, 6).double()
    optimizer = kind(network.parameters(), step_rule="trust")

    def closure():
        prediction = network(inputs)
        return scale * (prediction - 1).square().sum() + offset, prediction

    ceilings = []
    for _ in range(10):
        optimizer.step(closure)
        ceilings.append(optimizer.state["step_rule"]["ceiling"])
    assert ceilings[0] == 0.1 and ceilings[8] == 1.0
    assert ceilings == sorted(ceilings)


def hidden(rule):
    """Notes of a step whose gain is lost in rounding, where a longer one would be seen."""
    _, trial = parabola()
    trial.gain_ratio = lambda: math.nan
    rule.take(trial)
    return trial.notes


def test_a_fraction_that_hides_the_gain_grows():
    rule = without_ceiling(warm_up=100)
    rule.state["fraction"] = 2.0**-18
    assert not any(hidden(rule) for _ in range(18))
    assert rule.state["fraction"] == 1.0
    assert UNSEEN in hidden(rule)


def test_a_run_that_stands_still_says_what_to_change():
    """Every step along the direction raises the loss, however short."""
    rule = without_ceiling(warm_up=100)
    for _ in range(18):
        _, trial = parabola()
        trial.gain_ratio = lambda: -1.0
        rule.take(trial)
    assert rule.state["fraction"] == 2.0**-18
    assert STUCK in trial.notes and "a larger rcond, such as 1e-4" in STUCK


def test_a_ceiling_that_hides_the_gain_leaves_the_fraction():
    rule = Trust(warm_up=100)
    assert UNSEEN in hidden(rule) and rule.state["fraction"] == 0.5


def test_the_mean_model_follows_damped_steps_on_one_batch():
    """They do not need it, but the first step on other batches does."""
    rule = Trust()
    rule.state.update(reach=4.0, steps=1)
    _, trial = parabola()
    trial.damped, trial.damped_step = True, 0.5 * trial.slope / trial.curvature
    rule.take(trial)
    assert trial.step_size == trial.damped_step
    assert (rule.state["slope"], rule.state["curvature"]) == (trial.slope, trial.curvature)


@pytest.mark.parametrize("ceiling", [0.05, 1.0])
def test_a_schedule_shortens_steps_and_leaves_what_the_rule_has_found(ceiling):
    """The curvature is three times that of the model: a fraction near a third."""
    found, shares = [], []
    for lr in (1.0, 0.1):
        rule = without_ceiling()
        for _ in range(40):
            rule.state["ceiling"] = ceiling
            trial = parabola(lr=lr)[1]
            trial.curvature /= 3
            rule.take(trial)
        found.append(rule.state["fraction"])
        shares.append(rule.state["share"])
    if ceiling == 1:
        assert 0.15 < found[0] < 0.5 and found[1] == pytest.approx(found[0], rel=0.4)
    assert shares[1] == pytest.approx(0.1 * shares[0], rel=0.4)


@pytest.mark.parametrize("lr", [1e-3, 1.0])
def test_a_small_learning_rate_is_noted_once(lr):
    network = nn.Linear(3, 2)
    inputs = torch.randn(8, 3)

    def closure():
        prediction = network(inputs)
        return (prediction - 1).square().sum(1).mean(), prediction

    optimizer = hig.HIG(network.parameters(), lr=lr, step_rule="trust")
    optimizer.step(closure)
    noted = "lr=0.001 takes that part of the steps .*: leave it at 1 with step_rule='trust'"
    assert any(re.match(noted, note) for note in optimizer.report.notes) is (lr < 1)
    optimizer.step(closure)
    assert not any(re.match(noted, note) for note in optimizer.report.notes)
