"""Jacobians of all steps at once, against autograd one by one."""

import pytest
import torch

from hig import _step_jacobians
from hig._step_jacobians import step_jacobians
from tests.textbook import relative_error


def step(state, control):
    mixed = torch.cat([state[:, 1:], state[:, :1]], 1)
    return torch.sin(state) + 0.3 * mixed * control


def states_and_controls(times=5, batch=3, size=2):
    torch.manual_seed(0)
    controls = torch.randn(times, batch, 1, dtype=torch.float64)
    states = [torch.randn(batch, size, dtype=torch.float64)]
    for control in controls:
        states.append(step(states[-1], control))
    return torch.stack(states), controls


def expected_jacobians(states, controls):
    by_state, by_control = [], []
    for state, control in zip(states[:-1], controls, strict=True):
        whole = torch.autograd.functional.jacobian(step, (state, control))
        batch = range(len(state))
        by_state.append(torch.stack([whole[0][b, :, b] for b in batch]))
        by_control.append(torch.stack([whole[1][b, :, b] for b in batch]))
    return torch.stack(by_state), torch.stack(by_control)


@pytest.mark.parametrize("scratch", [_step_jacobians.STEP_BYTES, 1, 5000])
def test_every_step_of_every_sample(monkeypatch, scratch):
    monkeypatch.setattr(_step_jacobians, "STEP_BYTES", scratch)
    states, controls = states_and_controls()
    found = step_jacobians(step, states, controls)
    for a, b in zip(found, expected_jacobians(states, controls), strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < 1e-14


def test_jacobians_that_are_the_same_at_all_times():
    """As many times as entries of the state: an axis taken for another would not show in shapes."""
    states, controls = states_and_controls(times=2)

    def affine(state, control):
        return 2 * state + control

    again = [states[0]]
    for control in controls:
        again.append(affine(again[-1], control))
    by_state, by_control = step_jacobians(affine, torch.stack(again), controls)
    assert torch.equal(by_state, 2 * torch.eye(2).double().expand(2, 3, 2, 2))
    assert torch.equal(by_control, torch.ones(2, 3, 2, 1).double())


def test_states_of_another_step_are_refused():
    states, controls = states_and_controls()
    with pytest.raises(RuntimeError, match="random numbers or keeps a state"):
        step_jacobians(step, states + 0.1, controls)
