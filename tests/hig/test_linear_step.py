"""Steps that are a matrix, against the same steps taken for any function."""

import pytest
import torch

import hig
from hig import _linear_step
from hig._linear_step import linear_pieces, linear_states, runs
from hig._step_jacobians import step_jacobians
from tests.textbook import relative_error

BATCH, TIMES = 3, 7


def matrices(control):
    a = control[..., 0]
    return torch.stack([torch.stack([a, -a], -1), torch.stack([a**2, a], -1)], -2)


def change(control, matrix, before, after):
    a = control[..., 0]
    upper = before[..., 0] - before[..., 1]
    return torch.stack([upper, 2 * a * before[..., 0] + before[..., 1]], -1).unsqueeze(-1)


def inputs():
    torch.manual_seed(0)
    state = torch.randn(BATCH, 2, dtype=torch.float64)
    return state, torch.randn(BATCH, TIMES, 1, dtype=torch.float64)


STEPS = {
    "differentiated": hig.LinearStep(matrices),
    "written down": hig.LinearStep(matrices, change),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("scratch", [_linear_step.MATRIX_BYTES, 1, 250])
def test_states_and_jacobians(monkeypatch, name, scratch):
    monkeypatch.setattr(_linear_step, "MATRIX_BYTES", scratch)
    step = STEPS[name]
    state, controls = inputs()
    controls = controls.transpose(0, 1)
    states, kept = linear_states(step, state, controls)
    assert (kept is None) == (scratch < 1000)
    for before, control, after in zip(states, controls, states[1:], strict=False):
        assert relative_error(step(before, control), after) < 1e-15
    states = torch.stack(states)
    pieces = list(linear_pieces(step, states, controls))
    assert len(pieces) == len(list(runs(state, TIMES)))
    expected = step_jacobians(lambda s, c: step(s, c), states, controls)
    for index in (0, 1):
        found = torch.cat([piece[index] for piece in reversed(pieces)])
        assert relative_error(found, expected[index]) < 1e-14


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("scratch", [1, 250])
@pytest.mark.parametrize("batched", [True, False])
def test_matrices_made_run_by_run(monkeypatch, name, scratch, batched):
    """A rollout too long for all its matrices at once."""
    monkeypatch.setattr(_linear_step, "MATRIX_BYTES", scratch)
    results = []
    for method in ("jacobians", "loop"):
        state, controls = (tensor.requires_grad_() for tensor in inputs())
        final = hig.rollout(STEPS[name], state, controls, method=method)
        torch.manual_seed(1)
        cotangent = torch.randn(*([5] if batched else []), *final.shape, dtype=final.dtype)
        results.append(
            torch.autograd.grad(final, (state, controls), cotangent, is_grads_batched=batched)
        )
    for a, b in zip(*results, strict=True):
        assert relative_error(a, b) < 1e-13


def test_without_gradients_the_matrices_are_still_made_at_once():
    calls = []

    def counted(control):
        calls.append(control.shape)
        return matrices(control)

    state, controls = inputs()
    final = hig.rollout(hig.LinearStep(counted), state, controls)
    assert calls == [(TIMES, BATCH, 1)]
    loop = hig.rollout(hig.LinearStep(matrices), state, controls, method="loop")
    assert relative_error(final, loop) < 1e-14


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda *args: 2 * change(*args), "change is not the derivative of matrices"),
        (lambda *args: change(*args).squeeze(-1), r"change must return \(1, 3, 2, 1\)"),
    ],
)
def test_a_wrong_derivative_is_refused(wrong, match):
    state, controls = inputs()
    step = hig.LinearStep(matrices, wrong)
    assert hig.rollout(step, state, controls).shape == (BATCH, 2)
    with pytest.raises(ValueError, match=match):
        hig.rollout(step, state, controls.requires_grad_())


def test_matrices_that_change_from_call_to_call_are_noticed(monkeypatch):
    monkeypatch.setattr(_linear_step, "MATRIX_BYTES", 250)
    calls = []

    def drifting(control):
        calls.append(1)
        return matrices(control) + 0.1 * len(calls)

    state, controls = inputs()
    final = hig.rollout(hig.LinearStep(drifting), state, controls.requires_grad_())
    with pytest.raises(RuntimeError, match="time counter"):
        torch.autograd.grad(final.sum(), controls)


def test_a_derivative_of_matrices_that_do_not_depend_on_the_control():
    def constant(control):
        return torch.eye(2, dtype=torch.float64).expand(*control.shape[:-1], 2, 2)

    state, controls = inputs()
    controls.requires_grad_()
    with pytest.raises(ValueError, match="change is not the derivative of matrices"):
        hig.rollout(hig.LinearStep(constant, change), state.requires_grad_(), controls)


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        (lambda control: torch.eye(3).expand(*control.shape[:-1], 3, 3), TypeError, "float32"),
        (lambda control: matrices(control)[..., :1], ValueError, r"must return \(.*2, 2\)"),
        (lambda control: torch.eye(2, dtype=torch.float64), ValueError, "all samples and many"),
        (lambda control: [matrices(control)], TypeError, "got list"),
    ],
)
@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("method", ["auto", "loop"])
def test_what_are_no_step_matrices(wrong, error, match, graph, method):
    state, controls = inputs()
    with pytest.raises(error, match=match):
        hig.rollout(hig.LinearStep(wrong), state, controls.requires_grad_(graph), method=method)


def test_functions_that_want_contiguous_controls():
    def exponential(control):
        generator = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
        return torch.linalg.matrix_exp(control.sum(-1)[..., None, None] * generator)

    state, controls = inputs()
    found = hig.rollout(hig.LinearStep(exponential), state, controls.requires_grad_())
    expected = hig.rollout(hig.LinearStep(exponential), state, controls, method="loop")
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(found.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(found, controls, cotangent)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, controls, cotangent)[0])
