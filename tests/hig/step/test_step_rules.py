"""Step-size rules: what they do along one direction, and through an optimiser."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import hig
from hig._step.step_rules import STEP_RULES, Fixed, LineSearch, make_step_rule
from tests.hig.networks import build, least_squares
from tests.hig.trials import parabola
from tests.textbook import flat


def test_fixed_takes_the_learning_rate():
    parameter, trial = parabola(lr=0.25)
    Fixed().take(trial)
    assert float(parameter) == pytest.approx(0.25 * 6)


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
        rule = make_step_rule(name)
        rule.state.update({"ceiling": 1.0} if name == "trust" else {})
        rule.take(trial)
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
