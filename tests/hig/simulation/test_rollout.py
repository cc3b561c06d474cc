"""The rollout equals plain autograd through the loop, and says so where it cannot be fast."""

import numpy as np
import pytest
import torch
from torch import nn

import hig
from hig._simulation import rollout as rollout_module
from hig._simulation.adjoint import whole_jacobian
from hig._simulation.rollout import TOTAL_SIZE
from tests.textbook import relative_error

BATCH, TIMES = 3, 7


def pendulum(state, control):
    angle, speed = state.split(1, -1)
    acceleration = -angle.sin() + control.reshape(len(control), -1).sum(-1, keepdim=True)
    return torch.cat([angle + 0.1 * speed, speed + 0.1 * acceleration], -1)


def crank_nicolson(control):
    """Step matrices of i ψ' = (H + u X) ψ for any leading axes of the control."""
    size = 4
    hamiltonian = 2 * torch.eye(size) - torch.diag(torch.ones(size - 1), 1)
    hamiltonian = (hamiltonian - torch.diag(torch.ones(size - 1), -1)).to(torch.complex128)
    dipole = torch.diag(torch.linspace(-1, 1, size)).to(torch.complex128)
    identity = torch.eye(size, dtype=torch.complex128)
    generator = 0.05j * (hamiltonian + control[..., None, None] * dipole)
    return torch.linalg.solve(identity + generator, identity - generator)


def rotation(control):
    """Real step matrices from two controls."""
    a, b = control.unbind(-1)
    rows = [torch.stack([1 - a, b], -1), torch.stack([-b * a, 1 + 0.1 * b], -1)]
    return torch.stack(rows, -2)


def inputs(name, requires_grad=True):
    torch.manual_seed(0)
    state = torch.randn(BATCH, 2, dtype=torch.float64)
    controls = 0.3 * torch.randn(BATCH, TIMES, dtype=torch.float64)
    if name == "vector control":
        controls = 0.3 * torch.randn(BATCH, TIMES, 3, dtype=torch.float64)
    if name == "rotation":
        controls = 0.3 * torch.randn(BATCH, TIMES, 2, dtype=torch.float64)
    if name == "quantum":
        state = torch.randn(BATCH, 4, dtype=torch.complex128)
    return state.requires_grad_(requires_grad), controls.requires_grad_(requires_grad)


STEPS = {
    "scalar control": pendulum,
    "vector control": pendulum,
    "rotation": hig.LinearStep(rotation),
    "quantum": hig.LinearStep(crank_nicolson),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("outputs", ["final", "trajectory", "both"])
@pytest.mark.parametrize(("batch", "times"), [(BATCH, TIMES), (1, 2), (2, 1), (1, 1)])
def test_values_and_gradients_of_the_loop(name, outputs, batch, times):
    state, controls = inputs(name)
    state = state[:batch].detach().requires_grad_()
    controls = controls[:batch, :times].detach().requires_grad_()
    found, expected = [], []
    for method, results in (("jacobians", found), ("loop", expected)):
        final, states = hig.rollout(STEPS[name], state, controls, trajectory=True, method=method)
        parts = {"final": [final], "trajectory": [states], "both": [final, states]}[outputs]
        torch.manual_seed(1)
        cotangents = [torch.randn(part.shape, dtype=part.dtype) for part in parts]
        results += [final, states, *torch.autograd.grad(parts, (state, controls), cotangents)]
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert relative_error(a.detach(), b.detach()) < 1e-12


@pytest.mark.parametrize("name", STEPS)
def test_batched_cotangents(name):
    state, controls = inputs(name)
    results = []
    for method in ("jacobians", "loop"):
        final = hig.rollout(STEPS[name], state, controls, method=method)
        torch.manual_seed(1)
        cotangents = torch.randn(5, *final.shape, dtype=final.dtype)
        results.append(
            torch.autograd.grad(final, (state, controls), cotangents, is_grads_batched=True)
        )
    for a, b in zip(*results, strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("name", STEPS)
def test_the_whole_jacobian_is_formed_for_many_passes_only(name, monkeypatch):
    calls = []
    monkeypatch.setattr(
        rollout_module, "whole_jacobian", lambda pieces: calls.append(1) or whole_jacobian(pieces)
    )
    state, controls = inputs(name)
    final = hig.rollout(STEPS[name], state, controls)
    options = {"retain_graph": True}
    (alone,) = torch.autograd.grad(final, controls, torch.ones_like(final), **options)
    assert not calls
    many = torch.ones_like(final).expand(2, *final.shape)
    together = torch.autograd.grad(final, controls, many, is_grads_batched=True, **options)[0]
    vmapped = torch.func.vmap(lambda c: torch.autograd.grad(final, controls, c, **options)[0])(many)
    (again,) = torch.autograd.grad(final, controls, torch.ones_like(final), **options)
    assert len(calls) == 1
    for found in (*together, *vmapped, again):
        assert relative_error(found, alone) < 1e-13


def test_final_state_alone_is_what_is_returned_by_default():
    state, controls = inputs("scalar control")
    final = hig.rollout(pendulum, state, controls)
    _, states = hig.rollout(pendulum, state, controls, trajectory=True)
    assert final.shape == state.shape
    assert states.shape == (BATCH, TIMES + 1, 2)
    assert torch.equal(states[:, -1], final)
    assert torch.equal(states[:, 0], state)


def test_a_step_with_trained_parameters_goes_through_the_loop():
    gain = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    state, controls = inputs("scalar control", requires_grad=False)

    def step(state, control):
        return gain * pendulum(state, control)

    final = hig.rollout(step, state, controls)
    (gradient,) = torch.autograd.grad(final.sum(), gain)
    loop = hig.rollout(step, state, controls, method="loop")
    assert torch.equal(gradient, torch.autograd.grad(loop.sum(), gain)[0])
    with pytest.raises(ValueError, match="another tensor that requires a gradient"):
        hig.rollout(step, state, controls.requires_grad_(), method="jacobians")


def test_a_step_that_refuses_vectorisation_is_exact_and_warns():
    def step(state, control):
        if float(state.detach().abs().max()) > 1e9:  # data-dependent control flow
            return state
        return pendulum(state, control)

    state, controls = inputs("scalar control")
    final = hig.rollout(step, state, controls)
    with pytest.warns(RuntimeWarning, match="method='loop'"):
        found = torch.autograd.grad(final.sum(), (state, controls))
    loop = hig.rollout(step, state, controls, method="loop")
    for a, b in zip(found, torch.autograd.grad(loop.sum(), (state, controls)), strict=True):
        assert relative_error(a, b) < 1e-12


def test_a_step_with_a_memory_of_its_own_is_refused():
    calls = []

    def step(state, control):
        calls.append(1)
        return pendulum(state, control) + 0.1 * len(calls)

    state, controls = inputs("scalar control")
    final = hig.rollout(step, state, controls)
    with pytest.raises(RuntimeError, match="time counter"):
        torch.autograd.grad(final.sum(), controls)


def test_large_and_complex_states_choose_the_loop():
    state = torch.randn(2, 6000)
    controls = torch.randn(2, 4, 6000, requires_grad=True)
    with pytest.raises(ValueError, match="too large"):
        hig.rollout(lambda s, c: s + c, state, controls, method="jacobians")
    assert hig.rollout(lambda s, c: s + c, state, controls).shape == (2, 6000)
    state, controls = inputs("quantum")
    with pytest.raises(ValueError, match="LinearStep"):
        hig.rollout(lambda s, c: s * c[:, None], state, controls, method="jacobians")


@pytest.mark.parametrize(("size", "linear"), [(16, False), (17, False), (17, True)])
def test_states_beyond_a_size_go_through_the_loop_unless_the_step_is_a_matrix(size, linear):
    """Step Jacobians of 200 entries take a hundred times as long as the loop."""
    matrices = hig.LinearStep(lambda c: torch.diag_embed(1 + c))
    controls = torch.zeros(2, 3, size, requires_grad=True)
    step, state = matrices if linear else torch.add, torch.ones(2, size)
    by_jacobians = "_RolloutBackward"
    final = hig.rollout(step, state, controls)
    assert (final.grad_fn.name() == by_jacobians) == (linear or size <= 16)
    forced = hig.rollout(step, state, controls, method="jacobians")
    assert forced.grad_fn.name() == by_jacobians
    assert torch.equal(final, forced)


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("size", [2, 30])
def test_a_step_in_place_is_refused_in_the_loop_too(size, method):
    """All states of the trajectory would be the last one."""
    controls = torch.ones(2, 3, size, requires_grad=True)
    with pytest.raises(ValueError, match="changes its state or control in place"):
        hig.rollout(lambda s, c: s.add_(c), torch.ones(2, size), controls, method=method)
    with torch.inference_mode():
        assert hig.rollout(torch.add, torch.ones(2, size), controls).shape == (2, size)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("both", [True, False])
def test_second_derivatives(name, both):
    """With create_graph the gradients are differentiated in turn, through the loop."""
    results = []
    for method in ("jacobians", "loop"):
        state, controls = inputs(name)
        state.requires_grad_(both)
        wanted = (state, controls) if both else (controls,)
        final, states = hig.rollout(STEPS[name], state, controls, trajectory=True, method=method)
        loss = final.abs().square().sum() + 0.1 * states.abs().pow(3).sum()
        gradients = torch.autograd.grad(loss, wanted, create_graph=True)
        size = sum(gradient.abs().square().sum() for gradient in gradients)
        results.append((*gradients, *torch.autograd.grad(size + 0 * controls.sum(), wanted)))
    for a, b in zip(*results, strict=True):
        assert relative_error(a.detach(), b.detach()) < 1e-11


@pytest.mark.parametrize("start", ["random", "rest"])
def test_a_step_that_couples_samples_goes_through_the_loop(start):
    def step(state, control):
        return state + 0.1 * state * state.mean(0, keepdim=True) + control.unsqueeze(1)

    state, controls = inputs("scalar control")
    if start == "rest":  # where the coupling has no derivative
        state = torch.zeros_like(state).requires_grad_()
    found, expected = (
        torch.autograd.grad(hig.rollout(step, state, controls, method=m).square().sum(), controls)
        for m in ("auto", "loop")
    )
    assert torch.equal(found[0], expected[0])
    with pytest.raises(ValueError, match="samples of the batch influence one another"):
        hig.rollout(step, state, controls, method="jacobians")


def test_torch_func_differentiates_the_loop():
    state, controls = inputs("scalar control", requires_grad=False)
    jacobian = torch.func.jacrev(lambda c: hig.rollout(pendulum, state, c))(controls)
    expected = torch.func.jacrev(lambda c: hig.rollout(pendulum, state, c, method="loop"))(controls)
    assert torch.equal(jacobian, expected)


def test_no_graph_is_kept_without_need():
    state, controls = inputs("scalar control", requires_grad=False)
    assert not hig.rollout(pendulum, state, controls).requires_grad
    with torch.no_grad():
        assert not hig.rollout(pendulum, *inputs("scalar control")).requires_grad


@pytest.mark.parametrize("outputs", ["final", "trajectory"])
def test_states_too_large_for_the_whole_jacobian(outputs):
    """Above a size every pass goes back through time; cotangents may still be batched."""
    torch.manual_seed(0)
    state = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    controls = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert state[0].numel() > TOTAL_SIZE

    def step(state, control):
        return torch.tanh(state.roll(1, -1) + control.unsqueeze(-1) * state)

    results = []
    for method in ("jacobians", "loop"):
        final, states = hig.rollout(step, state, controls, trajectory=True, method=method)
        output = final if outputs == "final" else states
        torch.manual_seed(1)
        cotangents = torch.randn(3, *output.shape, dtype=output.dtype)
        results.append(
            torch.autograd.grad(output, (state, controls), cotangents, is_grads_batched=True)
        )
    for a, b in zip(*results, strict=True):
        assert relative_error(a, b) < 1e-12


def test_complex_controls_go_through_the_loop():
    """They may enter with their conjugates, and then have no complex derivative."""

    def matrices(control):
        zero = torch.zeros_like(control)
        rows = [torch.stack([zero, control], -1), torch.stack([control.conj(), zero], -1)]
        generator = 0.1j * torch.stack(rows, -2)
        identity = torch.eye(2, dtype=control.dtype)
        return torch.linalg.solve(identity + generator, identity - generator)

    step = hig.LinearStep(matrices)
    torch.manual_seed(0)
    state = torch.randn(BATCH, 2, dtype=torch.complex128)
    controls = torch.randn(BATCH, TIMES, dtype=torch.complex128, requires_grad=True)
    gradients = []
    for method in ("auto", "loop"):
        final = hig.rollout(step, state, controls, method=method)
        gradients.append(torch.autograd.grad(final[:, 0].abs().square().sum(), controls)[0])
    assert relative_error(*gradients) < 1e-13
    with pytest.raises(ValueError, match="two real controls"):
        hig.rollout(step, state, controls, method="jacobians")


@pytest.mark.parametrize("conjugated", [True, False])
def test_batched_cotangents_of_a_conjugated_state(conjugated):
    state, controls = inputs("quantum")
    results = []
    for method in ("jacobians", "loop"):
        final = hig.rollout(STEPS["quantum"], state, controls, method=method)
        overlap = (final.conj() if conjugated else final) * torch.arange(4)
        output = torch.view_as_real(overlap.resolve_conj())
        torch.manual_seed(1)
        cotangents = torch.randn(5, *output.shape, dtype=output.dtype)
        results.append(torch.autograd.grad(output, controls, cotangents, is_grads_batched=True)[0])
    assert relative_error(*results) < 1e-12


def test_state_and_controls_of_another_precision():
    state = torch.randn(BATCH, 2, dtype=torch.float64)
    controls = torch.randn(BATCH, TIMES, requires_grad=True)

    def step(state, control):
        return torch.stack([state[:, 1], control.sin() - state[:, 0]], 1)

    final = hig.rollout(step, state, controls)
    (gradient,) = torch.autograd.grad(final.square().sum(), controls)
    expected = hig.rollout(step, state, controls, method="loop")
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected.square().sum(), controls)[0], rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"state is torch.float64 and controls are torch.float32"):
        hig.rollout(step, state, controls, method="jacobians")


def test_a_step_without_a_graph_has_none_afterwards():
    state, controls = torch.randn(2, 3), torch.randn(2, 4, requires_grad=True)

    def detached(state, control):
        return (state + control.unsqueeze(1)).detach()

    assert not hig.rollout(detached, state, controls).requires_grad
    with pytest.raises(ValueError, match="without a graph"):
        hig.rollout(detached, state, controls, method="jacobians")


@pytest.mark.parametrize(
    ("state", "controls", "method", "error", "match"),
    [
        (torch.zeros(2), torch.zeros(2, 3), "auto", ValueError, r"state must be \(batch"),
        (torch.zeros(2, 2), torch.zeros(3, 3), "auto", ValueError, r"\(2, 2\) and \(3, 3\)"),
        (torch.zeros(2, 2), torch.zeros(2, 0), "auto", ValueError, "no time step"),
        (torch.ones(2, 2), torch.ones(2, 3), "fast", ValueError, "method must be one of"),
        (np.ones((2, 2)), torch.ones(2, 3), "auto", TypeError, "state must be a tensor, got ndar"),
        (
            torch.ones(2, 2),
            [[1.0], [2.0]],
            "auto",
            TypeError,
            "controls must be a tensor, got list",
        ),
    ],
)
def test_arguments_that_are_refused(state, controls, method, error, match):
    with pytest.raises(error, match=match):
        hig.rollout(pendulum, state, controls, method=method)
