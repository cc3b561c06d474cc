"""One run, from its seed to its record."""

from dataclasses import dataclass

import pytest
import torch

import hig
from experiments._robustness import training
from experiments._robustness.training import MOST_TESTED, measure
from experiments._run.batches import BatchSizeError
from experiments._run.clock import CLOCKS
from problems import ConditioningToy
from tests.experiments.robustness.made import case

ORIGIN = {"command": "python", "hig_revision": "abc"}
TOY = case(problem="conditioning_toy", seconds=0.1)


def test_a_run_and_its_repetition():
    first, again = measure(TOY, ORIGIN), measure(TOY, ORIGIN)
    assert first.case == TOY and first.origin == ORIGIN and first.stopped == "time"
    assert first.trained >= 0.1 and first.steps > 0
    assert first.start == again.start > 0  # the same weights, and the same test set
    assert first.end is not None and first.end != first.start
    assert first.machine["threads"] == 1 and "processor" in first.machine


def test_seeds_differ_and_share_the_test_set(monkeypatch):
    tested = []
    whole = training.mean_loss
    monkeypatch.setattr(
        training, "mean_loss", lambda *of: tested.append((of[2]["x"], whole(*of))) or tested[-1][1]
    )
    for seed in (0, 1):
        measure(case(seed, problem="conditioning_toy", seconds=1e-9), ORIGIN)
    assert len({loss for _, loss in tested}) > 1
    assert all(torch.equal(points, tested[0][0]) for points, _ in tested)
    assert len(tested[0][0]) <= MOST_TESTED and tested[0][0].dtype == torch.float32


@pytest.fixture
def a_second_per_step(monkeypatch):
    """Each reading of the clock is a second later, whatever is done in between."""
    ticks = iter(range(10**6))
    monkeypatch.setitem(CLOCKS, "processor", lambda: float(next(ticks)))


def test_the_loss_after_twenty_steps(a_second_per_step):
    few = measure(case(problem="conditioning_toy", seconds=19.0, batch=8), ORIGIN)
    assert few.steps == 19 and few.early is None
    same = measure(case(problem="conditioning_toy", seconds=20.0, batch=8), ORIGIN)
    more = measure(case(problem="conditioning_toy", seconds=21.0, batch=8), ORIGIN)
    assert same.early == same.end == more.early != more.end
    assert same.early != few.end


def test_precision():
    found = measure(case(problem="conditioning_toy", seconds=1e-9, dtype="float64"), ORIGIN)
    single = measure(case(problem="conditioning_toy", seconds=1e-9), ORIGIN)
    assert found.start != single.start
    assert found.start == pytest.approx(single.start, rel=1e-5)


@dataclass(frozen=True)
class Exploding(ConditioningToy):
    """The loss of every batch is NaN from some call on, that of the test set is not."""

    calls = 0
    good = 3

    def loss(self, prediction, batch):
        if prediction.requires_grad:
            type(self).calls += 1
        bad = prediction.requires_grad and self.calls > self.good
        return super().loss(prediction, batch) * (float("nan") if bad else 1.0)


def test_an_error_of_the_step_ends_the_run(monkeypatch):
    monkeypatch.setattr(training, "make", lambda folder: Exploding())
    monkeypatch.setattr(Exploding, "calls", 0)
    found = measure(case(problem="conditioning_toy", rule="fixed", seconds=60.0), ORIGIN)
    assert found.steps == 3 and found.end is None and found.lost
    assert found.stopped.startswith("NonFiniteError: ")


def test_a_loss_that_overflows_is_no_number(monkeypatch):
    losses = iter([1.0, float("inf")])
    monkeypatch.setattr(training, "mean_loss", lambda *of: next(losses))
    found = measure(case(problem="conditioning_toy", seconds=1e-9), ORIGIN)
    assert found.end is None and found.lost and found.stopped == "time"


def test_only_steps_count(a_second_per_step):
    """Evaluations and batches that take long do not use up the time of the run."""
    found = measure(case(problem="conditioning_toy", seconds=5.0), ORIGIN)
    assert found.steps == 5 and found.trained == 5.0


def test_batches_beyond_the_data():
    with pytest.raises(BatchSizeError, match="the batch size must be at most"):
        measure(case(problem="conditioning_toy", batch=10**6), ORIGIN)


def test_notes_of_the_reports_are_recorded(monkeypatch):
    class Noting(hig.HIG):
        def step(self, closure):
            loss = super().step(closure)
            self.report.notes.append("the run is lost")
            return loss

    def optimizer(variant, problem, parameters):
        return Noting(parameters, rcond=1e-6)

    monkeypatch.setattr(training.Case, "variant", property(lambda case: Maker(optimizer)))
    found = measure(case(problem="conditioning_toy", seconds=1e-9), ORIGIN)
    assert found.warned == 1 and (1, "the run is lost") in found.notes


class Maker:
    def __init__(self, make):
        self._make = make

    def optimizer(self, problem, parameters):
        return self._make(self, problem, parameters)
