"""Parameters that others have set between two steps of the trust rule."""

import copy

import pytest
import torch

import hig
from hig._step.earlier_points import Point
from tests.hig.step.earlier_runs import EACH, KINDS, Run, move, warm

BEGINS_AGAIN = "the step rule begins again from them"


def notes_after(run, number, **step):
    run.step(number, **step)
    return run.optimizer.report.notes


@EACH
def test_parameters_that_were_set_are_not_put_back(make):
    """Loaded or initialised again, and then trained on with the same optimiser."""
    run, safe = warm(make, steps=12)
    start = safe + 3 * torch.randn_like(safe)
    move(run.network, start)
    assert any(BEGINS_AGAIN in note for note in notes_after(run, 100, target=safe))
    assert (run.at() - start).norm() < 0.5 * (start - safe).norm()
    assert torch.equal(run.point(Point.SAFE), start)
    assert run.optimizer.state["step_rule"]["steps"] == 1
    assert not any(BEGINS_AGAIN in note for note in notes_after(run, 101, target=safe))


def test_a_higher_loss_at_set_parameters_is_a_new_run_and_a_lower_one_goes_on():
    bounds = []
    for length in (3.0, 0.03):
        run, _ = warm(KINDS["hig"], steps=30)
        rule = run.optimizer.state["step_rule"]
        before = rule["fraction"], rule["ceiling"]
        assert before[0] > 0.5
        move(run.network, run.at() + length * torch.randn_like(run.at()))
        steps = run.optimizer.state["progress"]["steps"]
        assert any(BEGINS_AGAIN in note for note in notes_after(run, 7))
        bounds.append((before, (rule["fraction"], rule["ceiling"])))
        assert run.optimizer.state["progress"]["steps"] == (1 if length > 1 else steps + 1)
    (_, new), (before, kept) = bounds
    assert new[1] == 0.1 and kept[0] >= before[0] and kept[1] == before[1]


@pytest.mark.parametrize("touch", ["bounds", "decay", "rounded", "swapped"])
def test_what_is_done_to_the_parameters_after_every_step_is_part_of_the_training(touch):
    run = Run(KINDS["gn"])
    move(run.network, run.at().clamp(-0.3, 0.3))
    for number in range(20):
        assert not any(BEGINS_AGAIN in note for note in notes_after(run, number))
        with torch.no_grad():
            for parameter in run.network.parameters():
                if touch == "bounds":
                    parameter.clamp_(-0.3, 0.3)
                elif touch == "decay":
                    parameter.mul_(1 - 1e-3)
                elif touch == "rounded":
                    parameter.copy_(parameter.float())
                else:  # evaluated elsewhere, as with averaged parameters
                    kept = parameter.clone()
                    parameter.zero_()
                    parameter.copy_(kept)
    assert run.point(Point.SAFE) is not None


def test_a_loss_that_is_not_finite_at_set_parameters_is_an_error():
    run, _ = warm(KINDS["hig"])
    move(run.network, torch.full_like(run.at(), 1e200))
    with pytest.raises(hig.NonFiniteError):
        run.step(100)
    assert (run.at() == 1e200).all()


def test_a_resumed_run_sees_that_its_parameters_were_set():
    (run, _), resumed = warm(KINDS["lm"]), Run(KINDS["lm"])
    move(resumed.network, run.at())
    resumed.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    assert not any(BEGINS_AGAIN in note for note in notes_after(resumed, 10))
    run.step(10)
    assert torch.equal(run.at(), resumed.at())
    move(resumed.network, run.at() + 1)
    assert any(BEGINS_AGAIN in note for note in notes_after(resumed, 11))
