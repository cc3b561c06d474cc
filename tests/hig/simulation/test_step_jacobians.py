"""Jacobians of all steps at once, against autograd one by one."""

import pytest
import torch

from hig._simulation import step_jacobians as step_jacobians_module
from hig._simulation.step_jacobians import step_jacobians
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


@pytest.mark.parametrize("scratch", [step_jacobians_module.STEP_BYTES, 1, 5000])
def test_every_step_of_every_sample(monkeypatch, scratch):
    monkeypatch.setattr(step_jacobians_module, "STEP_BYTES", scratch)
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


class Half(torch.autograd.Function):
    """Half of its input, but where it is vectorised, from the second place on."""

    @staticmethod
    def forward(x):
        return 0.5 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return 0.5 * gradient

    @staticmethod
    def vmap(info, dimensions, x):
        factor = torch.full((info.batch_size,), 0.51, dtype=x.dtype)
        factor[0] = 0.5
        x = x.movedim(dimensions[0], -1)
        return factor * x, x.ndim - 1


class Sine(torch.autograd.Function):
    """Right one by one; its derivative is wrong where many are taken at once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * Half.apply(gradient) * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("of", ["state", "control"])
@pytest.mark.parametrize(
    "scratch", [step_jacobians_module.STEP_BYTES, 3000]
)  # 5 times, 1 in a call
def test_what_is_wrong_where_it_is_vectorised_is_taken_one_by_one(monkeypatch, scratch, of):
    monkeypatch.setattr(step_jacobians_module, "STEP_BYTES", scratch)

    def wrong(state, control):
        if of == "state":
            return Sine.apply(state) + control
        return state + Sine.apply(control)

    def right(state, control):
        return state.sin() + control if of == "state" else state + control.sin()

    states, controls = states_and_controls()
    states = [states[0]]
    for control in controls:
        states.append(right(states[-1], control))
    states = torch.stack(states)
    expected = step_jacobians(right, states, controls)
    with pytest.warns(RuntimeWarning, match="other derivatives where it is vectorised over time"):
        found = step_jacobians(wrong, states, controls)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-14


def test_a_step_that_does_not_depend_on_everything():
    states, controls = states_and_controls()
    for alone in (lambda s, c: s.detach() + c, lambda s, c: 2 * s, lambda s, c: s.abs().sqrt()):
        after = [states[0]]
        for control in controls:
            after.append(alone(after[-1], control))
        by_state, by_control = step_jacobians(alone, torch.stack(after), controls)
        assert by_state.isfinite().all()
        assert by_control.isfinite().all()


def test_distances_which_torch_vectorises_wrongly():
    """`torch.cdist` of 2.11 and 2.13, under vmap of vmap."""

    def distances(state, control):
        places = state.unsqueeze(2)
        return state + 0.1 * torch.cdist(places, places.roll(1, 1) + control[:, None] + 5).sum(2)

    def by_hand(state, control):
        other = state.roll(1, 1) + control + 5
        return state + 0.1 * (state[:, :, None] - other[:, None]).abs().sum(2)

    _, controls = states_and_controls()
    states = [torch.randn(3, 2, dtype=torch.float64)]
    for control in controls:
        states.append(by_hand(states[-1], control))
    expected = step_jacobians(by_hand, torch.stack(states), controls)
    with pytest.warns(RuntimeWarning, match="vectorised over time"):
        found = step_jacobians(distances, torch.stack(states), controls)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-13
