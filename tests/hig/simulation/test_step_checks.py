"""Steps whose Jacobians cannot be taken sample by sample are found before it matters."""

import pytest
import torch
from torch import nn

from hig._simulation.step_checks import refusal_of_step

STATE, CONTROL = torch.zeros(6, 2), torch.zeros(6)


def push(state, control):
    return torch.sin(state) + control.unsqueeze(1)


def test_independent_samples_pass_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    assert refusal_of_step(push, STATE, CONTROL) == ""
    assert "without a graph" in refusal_of_step(lambda s, c: s.detach(), STATE, CONTROL)
    assert refusal_of_step(lambda s, c: s.abs().sqrt(), STATE, CONTROL) == ""
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "coupled",
    [
        lambda s, c: s - s.mean(0),
        lambda s, c: s * s.mean(0),  # nothing of it shows at rest
        lambda s, c: s + 1e-6 * s.roll(1, 0),
        lambda s, c: s + c.mean(),
        lambda s, c: push(s, c.flip(0)),
    ],
)
def test_coupled_samples(coupled):
    assert "influence one another" in refusal_of_step(coupled, STATE, CONTROL)


def test_one_coupled_pair_does_not_stay_hidden():
    def coupled(state, control):
        return torch.cat([state[:1] + 1e-3 * state[4:5], state[1:]])

    found = [refusal_of_step(coupled, STATE, CONTROL) != "" for _ in range(40)]
    assert any(found)


def test_trained_tensors():
    gain = nn.Parameter(torch.ones(()))
    for step in (lambda s, c: gain * s, lambda s, c: s + gain.exp().square() * c[:, None]):
        assert "another tensor that requires a gradient" in refusal_of_step(step, STATE, CONTROL)


def in_place(state, control):
    state += control.unsqueeze(1)
    return state.clone()


@pytest.mark.parametrize(
    ("step", "error", "match"),
    [
        (lambda s, c: (s, s), TypeError, "as one tensor, got tuple"),
        (lambda s, c: s[:, :1] + c, ValueError, r"\(6, 2\), got \(6, 6\)"),
        (lambda s, c: s.double(), ValueError, "torch.float32, got torch.float64"),
        (in_place, ValueError, "in place; let it return a new tensor"),
    ],
)
def test_steps_that_are_no_steps(step, error, match):
    with pytest.raises(error, match=match):
        refusal_of_step(step, STATE, CONTROL)
