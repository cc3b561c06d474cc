"""The progress of a run: a loss that is no lower than at the start is noted."""

import math

import pytest
import torch
from torch import nn

import hig
from hig._step.progress import Progress
from tests.hig.networks import build, least_squares

LOST = "this run may be lost"


def after(losses):
    progress = Progress({})
    for loss in losses:
        progress.add(loss)
    return progress


@pytest.mark.parametrize("decades", [0, 1, 3, 6.5])
def test_decades_of_a_fall(decades):
    progress = after([1.0] * 5 + [10.0**-decades] * 200)
    assert progress.decades() == pytest.approx(decades, abs=1e-6)
    assert bool(progress.notes()) == (decades == 0)


def test_the_first_steps_are_no_judgement():
    losses = [2.0**k for k in range(30)]
    assert not any(after(losses[:count]).notes() for count in range(20))
    assert all(after(losses[:count]).notes() for count in range(20, 31))


def test_the_note_names_both_losses():
    (note,) = after([2.0] * 5 + [300.0] * 200).notes()
    assert "is 300," in note and "was 2;" in note and LOST in note


def test_with_other_data_it_begins_again():
    progress = after([1.0] * 5 + [1e-3] * 30)
    progress.restart(0.5)  # below the start nothing is noted anyway
    assert progress.state["steps"] == 35
    progress.restart(1e4)
    for loss in [1e4] * 5 + [1e2] * 30:
        progress.add(loss)
        assert not progress.notes()
    assert progress.decades() == pytest.approx(2, rel=0.1)


def test_a_run_that_is_lost_does_not_begin_again():
    progress = after([1.0] * 5 + [3.0] * 30)
    progress.restart(1e4)
    assert progress.notes()


@pytest.mark.parametrize("loss", [0.0, -1.0, math.inf, math.nan])
def test_a_loss_without_a_logarithm_says_nothing(loss):
    progress = after([1.0] * 5 + [0.1] * 30)
    before = dict(progress.state)
    progress.add(loss)
    assert progress.state == before
    assert not after([loss] * 50).notes()


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_any_scale(scale):
    progress = after([scale] * 5 + [0.5 * scale] * 50)
    assert progress.decades() == pytest.approx(math.log10(2), rel=1e-2)
    assert not progress.notes()
    assert after([scale] * 40 + [scale * 1.5] * 8).notes()


def test_the_state_goes_on():
    losses = [1.0 / (k + 1) for k in range(40)]
    state = after(losses[:17]).state
    assert all(type(value) in (int, float) for value in state.values())
    again = Progress(dict(state))
    for loss in losses[17:]:
        again.add(loss)
    assert again.state == after(losses).state


def noted(make, closures, steps=30):
    network, _ = build("mlp")
    optimizer, notes = make(network.parameters()), []
    for step in range(steps):
        optimizer.step(closures(network, step))
        notes.append(any(LOST in note for note in optimizer.report.notes))
    return notes


def learned(network, step):
    return least_squares(network, torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4))


def harder(network, step):
    """Samples with a loss that grows from step to step, whatever is learned."""
    inputs = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4)

    def closure():
        prediction = network(inputs)
        return (prediction - 3.0**step).square().mean(), prediction

    return closure


RULES = {
    "hig": lambda p: hig.HIG(p, step_rule="trust"),
    "line search": lambda p: hig.HIG(p, step_rule="line_search"),
    "gn": lambda p: hig.GaussNewton(p, step_rule="trust"),
    "lm": lambda p: hig.LevenbergMarquardt(p, step_rule="trust"),
}


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
def test_the_report_notes_a_lost_run(make):
    notes = noted(make, harder)
    assert not any(notes[:19]) and all(notes[19:])
    assert not any(noted(make, learned))


@pytest.mark.parametrize("name", ["hig", "gn", "lm"])  # the line search does not look back
def test_a_harder_task_is_no_lost_run(name):
    generator = torch.Generator().manual_seed(0)

    def closures(network, step):
        inputs = torch.randn(16, 4, generator=generator, dtype=torch.float64)
        change = inputs.sum(1, keepdim=True)
        targets = change.sin() if step < 30 else 30 * change.cos()

        def closure():
            prediction = network(inputs)
            return (prediction - targets).square().mean(), prediction

        return closure

    assert not any(noted(RULES[name], closures, steps=100))


def test_a_step_that_does_not_measure_waits_for_no_loss():
    """On a GPU the host would have to."""
    network, inputs = nn.Linear(4, 2), torch.randn(5, 4)
    optimizer = hig.HIG(network.parameters(), lr=1e-3, step_rule="fixed")
    for _ in range(3):
        optimizer.step(least_squares(network, inputs))
    assert optimizer.state["progress"].get("steps", 0) == 0
