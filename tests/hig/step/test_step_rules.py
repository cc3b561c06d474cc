"""Step-size rules: what they do along one direction, and through an optimiser."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import hig
from hig._step.step_rules import STEP_RULES, Fixed, LineSearch, Trust, make_step_rule
from hig._step.trial_step import Trial
from tests.hig.networks import build, least_squares
from tests.textbook import flat


def parabola(lr=1.0, minimum=3.0, curvature=2.0, wall=math.inf):
    """A trial along one parameter: loss ½ c (x - minimum)², infinite beyond the wall."""
    parameter = torch.zeros(1, dtype=torch.float64)

    def loss():
        x = float(parameter)
        return 0.5 * curvature * (x - minimum) ** 2 if x < wall else math.inf

    # The output is x; its gradient is -c * minimum, and the direction is taken along it.
    gradient = -curvature * minimum
    direction = torch.tensor([gradient], dtype=torch.float64)
    trial = Trial([parameter], [direction], lr, loss(), gradient**2, curvature * gradient**2, loss)
    return parameter, trial


def test_fixed_takes_the_learning_rate():
    parameter, trial = parabola(lr=0.25)
    Fixed().take(trial)
    assert float(parameter) == pytest.approx(0.25 * 6)


def test_trust_takes_half_the_cauchy_step_first_and_all_of_it_in_the_end():
    rule = Trust()
    fractions = []
    for _ in range(6):
        parameter, trial = parabola()
        ratio = rule.take(trial)
        fractions.append(float(parameter) / 3)
        assert ratio == pytest.approx(1)  # the model is exact
    assert fractions[0] == pytest.approx(0.5)
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)


def test_trust_undoes_a_step_that_raises_the_loss_and_becomes_careful():
    rule = Trust()
    parameter, trial = parabola(wall=1.0)
    assert rule.take(trial) < 0
    assert float(parameter) == 0
    assert rule.state["fraction"] == 0.25
    parameter, trial = parabola(wall=1.0)
    rule.take(trial)
    assert float(parameter) == pytest.approx(0.75)


def test_trust_measures_in_the_warm_up_and_then_at_times():
    rule = Trust(warm_up=3, period=5)
    measured = [rule.take(parabola()[1]) is not None for _ in range(12)]
    assert measured == [True, True, True, False, False, True, *[False] * 4, True, False]


def test_trust_goes_no_further_than_the_mean_of_late_models_asks():
    """A flat batch after curved ones is no reason to go far; a curved one after flat ones is."""
    rule = Trust()
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


def test_trust_is_not_misled_by_easy_batches():
    """Their Cauchy step is a thousand times what the hard ones bear."""
    rule = Trust()
    rule.take(parabola(curvature=1000.0, minimum=1.0)[1])
    for _ in range(20):
        easy = parabola(curvature=1.0, minimum=1.0)[1]
        rule.take(easy)
        assert easy.step_size < 0.0011
        rule.take(parabola(curvature=1000.0, minimum=1.0)[1])


def quartic(x):
    """A trial of ¼ x⁴ from wherever x is, whose Cauchy step is 1 / (3 x²)."""
    direction = x**3
    slope, here = float(direction.square()), float(x)
    curvature = 3 * here**2 * slope
    loss = 0.25 * here**4
    resolution = torch.finfo(x.dtype).eps
    return Trial(
        [x], [direction], 1.0, loss, slope, curvature, lambda: 0.25 * float(x) ** 4, resolution
    )


@pytest.mark.parametrize(("others", "reach"), [(False, 4), (True, 1)])
def test_trust_goes_further_where_there_is_one_batch(others, reach):
    rule, x = Trust(memory=1000), torch.full((1,), 10.0, dtype=torch.float64)
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


def test_trust_does_not_stay_careful_after_a_start_from_far_away():
    """The first losses are a million times the others, and bear a hundredth of their steps."""
    rule = Trust()
    for _ in range(3):
        rule.take(parabola(curvature=200.0, minimum=300.0)[1])
    for _ in range(420):
        trial = parabola(curvature=2.0, minimum=3.0)[1]
        rule.take(trial)
    assert trial.step_size == pytest.approx(rule.state["fraction"] / 2, rel=0.05)


def test_trust_survives_slopes_from_both_ends_of_the_numbers():
    rule = Trust()
    for scale in (*[1e-100] * 40, 1e100, 1e-100):
        trial = parabola(curvature=scale, minimum=1.0)[1]
        rule.take(trial)
        assert math.isfinite(trial.step_size) and trial.step_size > 0


def test_trust_walks_on_across_a_plateau():
    """A saddle at a loss of 1: growth is exponential, but unseen in float32 for many steps."""
    position = torch.full((1,), 1e-6, requires_grad=True)

    def closure():
        prediction = position.view(1, 1) * 1.0
        return (1 - prediction.square() + prediction**4).mean(), prediction

    optimizer = hig.HIG([position], step_rule="trust")
    for _ in range(60):
        optimizer.step(closure)
    assert float(position.detach()) == pytest.approx(0.5**0.5, rel=1e-2)


def test_trust_forgets():
    rule = Trust(memory=4)
    for _ in range(60):
        rule.take(parabola(curvature=200.0)[1])
    for _ in range(100):
        trial = parabola(curvature=2.0)[1]
        rule.take(trial)
    assert trial.step_size == pytest.approx(rule.state["fraction"] / 2, rel=1e-3)


def test_trust_without_curvature_takes_the_learning_rate():
    parameter = torch.zeros(1, dtype=torch.float64)
    trial = Trial(
        [parameter], [torch.ones(1).double()], 0.2, 1.0, 1.0, 0.0, lambda: 1 + float(parameter)
    )
    Trust().take(trial)
    assert float(parameter) == pytest.approx(-0.1)


@pytest.mark.parametrize(("minimum", "curvature"), [(3.0, 0.01), (3.0, 2.0), (1e-6, 500.0)])
def test_line_search_is_within_a_factor_of_two_of_the_minimum(minimum, curvature):
    rule = LineSearch()
    parameter, trial = parabola(minimum=minimum, curvature=curvature)
    rule.take(trial)
    assert 0.6 * minimum < float(parameter) < 1.5 * minimum
    assert trial.measure(trial.step_size) < trial.loss


def test_line_search_remembers_where_it_was():
    rule = LineSearch()
    _, first = parabola(curvature=0.01)
    rule.take(first)
    _, second = parabola(curvature=0.01)
    rule.take(second)
    assert len(second._losses) < len(first._losses)
    assert second.step_size == first.step_size


def test_line_search_takes_no_step_where_none_helps():
    rule = LineSearch()
    parameter, trial = parabola(wall=-1.0)  # everything on the way is infinite
    rule.take(trial)
    assert float(parameter) == 0
    assert trial.step_size == 0


@pytest.mark.parametrize("name", STEP_RULES)
def test_the_learning_rate_scales_the_step(name):
    moves = []
    for lr in (1.0, 0.5):
        parameter, trial = parabola(lr=lr, curvature=1e-3)
        make_step_rule(name).take(trial)
        moves.append(float(parameter))
    if name == "line_search":  # powers of two from another start: the same end
        assert moves[0] == moves[1]
    else:
        assert moves[0] == pytest.approx(2 * moves[1])


def test_rules_do_not_share_their_memory():
    first, second = make_step_rule("trust"), make_step_rule("trust")
    first.take(parabola()[1])
    assert second.state == make_step_rule("trust").state != first.state


@pytest.mark.parametrize("name", ["trust", "line_search"])
def test_no_rule_raises_the_loss_of_its_batch(name):
    network, inputs = build("mlp")
    closure = least_squares(network, inputs)
    optimizer = hig.HIG(network.parameters(), lr=64.0, step_rule=name)  # far too bold
    for _ in range(6):
        before = float(optimizer.step(closure))
        assert closure()[0].item() <= before


def test_a_step_into_nan_is_undone():
    network = nn.Linear(2, 2).double()
    inputs = torch.randn(4, 2).double()
    before = flat(network.parameters()).clone()

    def closure():
        prediction = network(inputs)
        scale = 1.0 if torch.equal(flat(network.parameters()), before) else float("nan")
        return (scale * (prediction - 1).square()).mean(), prediction

    for rule in ("trust", "line_search"):
        hig.HIG(network.parameters(), step_rule=rule).step(closure)
        assert torch.equal(flat(network.parameters()), before)
    hig.LevenbergMarquardt(network.parameters()).step(closure)
    assert torch.equal(flat(network.parameters()), before)


class HalfCauchy:
    """A rule of one's own: half the way to the minimum of the quadratic model."""

    measures = True

    def __init__(self):
        self.state = {"steps": 0}

    def take(self, trial):
        self.state["steps"] += 1
        trial.move(0.5 * trial.lr * trial.slope / trial.curvature)


@pytest.mark.parametrize("kind", [hig.HIG, hig.GaussNewton])
def test_a_rule_of_ones_own(kind):
    network, closure = least_squares_line()
    optimizer = kind(network.parameters(), step_rule=HalfCauchy(), rcond=1e-3)
    losses = [float(optimizer.step(closure)) for _ in range(4)]
    # Half the way along the Gauss-Newton direction of a linear problem quarters the loss.
    ratios = [after / before for before, after in pairwise(losses)]
    assert all(0 < ratio < 1 for ratio in ratios)
    if kind is hig.GaussNewton:
        assert ratios == pytest.approx([0.25] * 3, rel=1e-6)
    assert optimizer.state["step_rule"] == {"steps": 4}


def test_the_memory_of_a_rule_of_ones_own_is_loaded():
    network, closure = least_squares_line()
    optimizer = hig.HIG(network.parameters(), step_rule=HalfCauchy())
    optimizer.step(closure)
    other = hig.HIG(network.parameters(), step_rule=HalfCauchy())
    other.load_state_dict(optimizer.state_dict())
    other.step(closure)
    assert other.state["step_rule"] == {"steps": 2}
    with pytest.raises(ValueError, match=r"another optimizer.*step_rule='HalfCauchy'"):
        hig.HIG(network.parameters()).load_state_dict(optimizer.state_dict())


def least_squares_line():
    """A linear network on a linear problem that can be solved."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    target = nn.Linear(3, 2, dtype=torch.float64)(x).detach()

    def closure():
        prediction = network(x)
        return 0.5 * (prediction - target).square().sum(), prediction

    return network, closure
