"""Numerical faults in a run: what is left out, what goes back, and what is noted."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import hig
from experiments import run
from experiments._methods import METHODS
from experiments._run import checkpoint, loop
from experiments._run.faults import Faults, kind_of
from experiments._run.options import Options
from experiments._run.processes import Processes, ProcessesError
from experiments._run.progress import Progress
from experiments._run.setup import prepare
from problems import Settings
from problems._several_losses import SeveralLosses
from tests.experiments.run.test_training import assert_same, whole_and_in_parts
from tests.experiments.runs import TINY, settings
from tests.faults import OUTPUTS, OutOfMemoryAt, count, no_convergence, places, same


@dataclass(frozen=True)
class Two(SeveralLosses):
    """Two losses of one small network, for every method; a sample of the data may be NaN."""

    bad_sample: int = -1
    time_budget: float = 1.0

    name: ClassVar[str] = "two"
    settings: ClassVar[Mapping[str, Settings]] = {
        name: Settings(batch_size=4, lr=0.3 if method.jacobian else 0.01)
        for name, method in METHODS.items()
    }
    factor: ClassVar[float] = 1.0

    @property
    def loss_names(self):
        return ("first", "second")

    def network(self):
        return torch.nn.Sequential(
            torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
        )

    def data(self, generator):
        train, test = (torch.rand(n, 2, generator=generator, dtype=torch.float64) for n in (12, 6))
        if self.bad_sample >= 0:
            train[self.bad_sample] = math.nan
        return {"x": train}, {"x": test}

    def predict(self, network, batch):
        return network(batch["x"]) - batch["x"].square()

    def loss(self, prediction, batch):
        return self.factor * prediction.square().mean(0).sum()

    def losses(self, network, batch):
        return list(self.factor * self.predict(network, batch).square().mean(0))

    def single_loss(self, network, batch, index):
        return self.losses(network, batch)[index]

    def loss_pairs(self, network, batch):
        prediction = self.predict(network, batch)
        return [(loss, prediction) for loss in self.factor * prediction.square().mean(0)]


TWO = Two()
ADAM = TWO.settings["adam"]


def begun(method, options, steps=3, **changes):
    """A run after its first evaluation and some steps, and where it is."""
    options = replace(options, **changes)
    chosen = METHODS[method].complete(TWO.settings[method])
    training = prepare(TWO, METHODS[method], chosen, options, None, Processes())
    progress = Progress("", options)
    loop._evaluate(training, progress, 0.0)
    for _ in range(steps):
        loop._step(training, next(training.batches), progress)
    return training, progress


def where(training):
    """All that a step changes."""
    parts = [part for part in (training.network, training.average) if part is not None]
    return copy.deepcopy([part.state_dict() for part in (*parts, training.optimizer)])


def numbers(training):
    return torch.cat([parameter.detach().flatten() for parameter in training.network.parameters()])


def check(training, before, faults):
    """Whether a fault has left the step out; without one the step has been taken whole."""
    if len(training.faults.events) > faults:
        count(same(where(training), before))
    else:
        count(bool(torch.isfinite(numbers(training)).all()))


def goes_on(training, progress):
    faults = len(training.faults.events)
    loop._step(training, next(training.batches), progress)
    return len(training.faults.events) == faults and bool(torch.isfinite(numbers(training)).all())


@pytest.fixture
def skipping(options):
    return replace(options, on_fault="skip", max_faults=1000)


@pytest.mark.parametrize("method", METHODS)
def test_no_fault_in_a_step_harms_a_method(method, skipping, monkeypatch):
    training, progress = begun(method, skipping, average=0.5 if method == "adam" else None)

    def step(fault, spoilt=lambda batch: batch):
        before, faults = where(training), len(training.faults.events)
        loop._step(training, spoilt(next(training.batches)), progress)
        survives = fault == "no rank" or "decomposition" in fault
        assert survives or len(training.faults.events) > faults, fault
        check(training, before, faults)

    for fault, spoil in OUTPUTS.items():
        hook = training.network.register_forward_hook(lambda *given, s=spoil: s(given[-1]))
        step(fault)
        hook.remove()
        assert goes_on(training, progress), fault
    step("NaN in the data", lambda batch: {"x": batch["x"] * math.nan})
    with monkeypatch.context() as patch:
        patch.setattr(Two, "factor", math.nan)
        step("NaN in the loss")
    with no_convergence(monkeypatch):
        step("a decomposition that does not converge")
    assert goes_on(training, progress)


@pytest.mark.parametrize("method", METHODS)
def test_memory_that_runs_out_anywhere_in_a_step(method, skipping, monkeypatch):
    training, progress = begun(method, skipping)
    take_step = loop.take_step

    def step(place):
        mode = OutOfMemoryAt(place)

        def within(*given):
            with mode:
                return take_step(*given)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "take_step", within)
            loop._step(training, next(training.batches), progress)
        return mode

    for place in places(step(None).operations, most=12):
        before, faults = where(training), len(training.faults.events)
        step(place)
        check(training, before, faults)
    assert len(training.faults.events) > 6
    assert {event["kind"] for event in training.faults.events} == {"out of memory"}
    assert goes_on(training, progress)


