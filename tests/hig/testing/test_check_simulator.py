"""The checks find what is wrong with a simulator, and nothing where all is well."""

import itertools

import pytest
import torch
from torch import nn

import hig
from hig.testing import assert_simulator, check_simulator
from tests.hig.testing.simulators import CONTROLS, INPUTS, START, pendulum, smooth


def verdicts(report):
    return {check.name: check.verdict for check in report.checks}


def test_a_good_simulator_passes_every_check():
    report = check_simulator(pendulum, START, CONTROLS)
    assert set(verdicts(report).values()) == {"ok"}
    assert report.passed
    assert (report.engine, report.batched, report.passes) == ("layerwise", True, 3)
    assert report.methods == ("gram", "svd", "lanczos")
    assert "ready: engine layerwise, 3 backward passes a step in batches" in str(report)
    assert len(str(report).splitlines()) == len(report.checks) + 1


def test_integers_stay_integers():
    table = torch.linspace(0, 1, 5)

    def simulate(state, place):
        return pendulum(state, CONTROLS.to(state)) + table.to(state)[place].unsqueeze(1)

    assert check_simulator(simulate, START, torch.tensor([0, 1, 4, 2])).passed


counter = itertools.count()


def test_chance_leaves_out_checks_that_compare_calls():
    report = check_simulator(lambda x: x + next(counter), START)
    assert [failure.name for failure in report.failures] == ["deterministic"]
    assert list(verdicts(report))[-1] == "differentiable"


def test_time_as_the_first_axis_is_suspected():
    """With as many times as samples, the shape alone is ambiguous."""

    def states(x, controls):
        found = []
        for control in controls.unbind(1):
            x = x + control[:, None]
            found.append(x)
        return torch.stack(found)

    hint = "the first axis must be the batch: is it time instead"
    (note,) = check_simulator(states, START, CONTROLS[:, :4]).notes
    assert f"{hint}, in (4, 4, 2)?" in note.remedy
    (note,) = check_simulator(lambda x: x - x.mean(0), START).notes
    assert hint not in note.remedy
    assert check_simulator(lambda x: x.cos(), torch.ones(3, 3)).checks[-3].remedy == ""


COUPLED = {
    "mean": lambda x: x - x.mean(0),
    "cumulative": lambda x: x.cumsum(0),
    "step of the worst sample": lambda x: x / (1 + x.abs().max()),
    "normalised": lambda x: nn.functional.batch_norm(x, None, None, training=True),
}


@pytest.mark.parametrize("name", COUPLED)
def test_samples_that_influence_one_another_are_noted(name):
    report = check_simulator(COUPLED[name], torch.randn(6, 3, generator=torch.manual_seed(1)))
    assert report.passed
    assert [note.name for note in report.notes] == ["sample independence"]
    assert (report.engine, report.passes) == ("rows", 18)


def test_the_engine_is_that_of_a_step():
    """Compare the report with a step on the same simulator."""
    for simulate in (pendulum, lambda s, c: pendulum(s, c) - pendulum(s, c).mean(0)):
        report = check_simulator(simulate, START, CONTROLS)
        network = nn.Linear(2, 6)
        optimizer = hig.HIG(network.parameters())

        def closure(network=network, simulate=simulate):
            prediction = simulate(START, network(CONTROLS[:, :2]))
            return prediction.square().mean(), prediction

        optimizer.step(closure)
        assert optimizer.report.engine == report.engine


class TestAssertions:
    def test_a_good_simulator(self):
        assert assert_simulator(pendulum, START, CONTROLS, allow=()).passed

    def test_a_failure_brings_the_whole_report(self):
        with pytest.raises(AssertionError, match="fail  differentiable"):
            assert_simulator(lambda x: x.detach(), START)

    def test_notes_as_wanted(self):
        def coupled(x):
            return x - x.mean(0)

        assert_simulator(coupled, START)
        for name in ("sample independence", "samples apart"):  # and its former name
            assert_simulator(coupled, START, allow=(name,))
        with pytest.raises(AssertionError, match="samples influence one another"):
            assert_simulator(coupled, START, allow=())
        with pytest.raises(ValueError, match="allow must have names of checks, got 'sample'; they"):
            assert_simulator(coupled, START, allow=("sample",))


@pytest.mark.cuda
def test_on_a_gpu():
    report = check_simulator(pendulum, START.cuda(), CONTROLS.cuda())
    assert report.passed, report
    moved = check_simulator(lambda s, c: pendulum(s, c).cpu(), START.cuda(), CONTROLS.cuda())
    assert "device preserved" in [failure.name for failure in moved.failures]


def test_cheap_checks_say_how_much_they_run():
    calls = 0

    def simulate(x):
        nonlocal calls
        calls += 1
        return smooth(x)

    report = check_simulator(simulate, INPUTS)
    assert report.simulations == calls < 60
    assert f"checked by {calls} simulations" in str(report)
