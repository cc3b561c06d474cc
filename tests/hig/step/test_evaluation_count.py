"""A batch is evaluated no more often than a rule asks for, but for a check now and then."""

from itertools import pairwise

import pytest

import hig
from hig._step import evaluation
from hig._step.evaluation import Watch
from tests.hig.graph_closures import CLOSURES, OPTIMIZERS, problem
from tests.textbook import flat


def counted(make, steps, closure_of=None):
    """Parameters at each evaluation, by step, and the optimizer."""
    network, closure = problem("plain")
    visited = []

    def counting():
        visited[-1].append(tuple(flat(network.parameters()).tolist()))
        return closure() if closure_of is None else closure_of(closure)

    optimizer = make(network.parameters())
    for _ in range(steps):
        visited.append([])
        optimizer.step(counting)
    return visited, optimizer


def fixed(parameters):
    return hig.HIG(parameters, step_rule="fixed")


def one_loss(closure):
    return closure()


def two_losses(closure):
    loss, prediction = closure()
    return [(loss, prediction), (prediction.square().mean(), prediction)]


def two_predictions(closure):
    loss, prediction = closure()
    other = prediction.exp()
    return [(loss, prediction), (other.mean(), other)]


COUNTED = {
    **{name: (make, one_loss) for name, make in OPTIMIZERS.items()},
    "fixed": (fixed, one_loss),
    "several": (lambda p: hig.MultiHIG(p, step_rule="trust"), two_losses),
    "several_searched": (lambda p: hig.MultiHIG(p, step_rule="line_search"), two_losses),
    "several_predictions": (lambda p: hig.MultiHIG(p, step_rule="trust"), two_predictions),
}


@pytest.mark.parametrize(("make", "outcome"), COUNTED.values(), ids=COUNTED)
def test_a_point_is_evaluated_once_in_a_step(make, outcome):
    visited, optimizer = counted(make, 20, outcome)
    for start, *trials in visited:
        elsewhere = [place for place in trials if place != start]
        assert len(set(elsewhere)) == len(elsewhere)
    measured = make is not fixed
    again = [trials.count(start) for start, *trials in visited]
    assert sum(map(len, visited)) - 20 == optimizer._watch._evaluations
    assert again[0] == measured  # a check
    assert sum(again[1:]) <= 1 + optimizer._watch._evaluations // evaluation._PAUSE


@pytest.mark.parametrize("name", ["plain", "differentiated_by_inputs", "asserts"])
def test_checks_are_rare(name, monkeypatch):
    """After two early ones, one in 64 evaluations."""
    checks, checked = [], Watch.learn

    def learn(self, graph, notes):
        checks.append(self._evaluations)
        checked(self, graph, notes)

    monkeypatch.setattr(Watch, "learn", learn)
    network, closure = problem(name)
    optimizer = hig.LevenbergMarquardt(network.parameters(), damping=0.1, step_rule="fixed")
    for _ in range(150):
        optimizer.step(closure)
    assert checks[0] == 1 + CLOSURES[name][1]
    pauses = [later - earlier for earlier, later in pairwise(checks)]
    assert pauses[0] >= evaluation._SHORT_PAUSE
    assert len(pauses) > 2 and all(pause >= evaluation._PAUSE for pause in pauses[1:])


def test_trust_evaluates_now_and_then():
    """In each of the first eight steps, in every sixth after that; at the safe point less often."""
    visited, _ = counted(OPTIMIZERS["trust"], 70)
    measured = [step < 50 or step % 6 == 0 for step in range(70)]
    looked_back = [0 < step < 10 or (step > 10 and step % 5 == 4) for step in range(70)]
    fewest = [1 + m + b for m, b in zip(measured, looked_back, strict=True)]
    extra = [len(places) - n for places, n in zip(visited, fewest, strict=True)]
    assert min(extra) >= 0
    # Two early checks of the closure, and now and then a step that is tried again.
    assert sum(extra) <= 2 + 2, extra


class Custom:
    """A rule that asks for the loss at the start, which is known, and twice at another point."""

    measures = True

    def __init__(self):
        self.state = {}

    def take(self, trial):
        assert trial.measure(0.0) == trial.loss
        assert trial.measure(0.1) == trial.measure(0.1)
        trial.move(0)
        assert trial.measure(0.1) < trial.measure(0)
        trial.move(0.1)


def test_a_rule_of_ones_own_evaluates_what_it_asks_for():
    visited, _ = counted(lambda p: hig.HIG(p, step_rule=Custom()), 5)
    assert list(map(len, visited)) == [3, 2, 2, 2, 2]
