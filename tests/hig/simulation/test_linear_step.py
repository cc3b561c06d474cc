"""Steps that are a matrix, against the same steps taken for any function."""

import pytest
import torch

import hig
from hig._simulation import linear_step as linear_step_module
from hig._simulation.linear_step import linear_pieces, linear_states, runs
from hig._simulation.step_jacobians import cotangent_of, step_jacobians
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
@pytest.mark.parametrize("scratch", [linear_step_module.MATRIX_BYTES, 1, 250])
def test_states_and_jacobians(monkeypatch, name, scratch):
    monkeypatch.setattr(linear_step_module, "MATRIX_BYTES", scratch)
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
    monkeypatch.setattr(linear_step_module, "MATRIX_BYTES", scratch)
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
    monkeypatch.setattr(linear_step_module, "MATRIX_BYTES", 250)
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


def inverse(control):
    """Its forward mode is wrong in torch 2.11 and 2.13."""
    a = control[..., 0]
    rows = [torch.stack([2 + a**2, 0 * a], -1), torch.stack([a, 3 + a.cos()], -1)]
    return torch.cholesky_inverse(torch.stack(rows, -2))


class Exponential(torch.autograd.Function):
    """Has no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.exp())
        return x.exp()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


class Slope(torch.autograd.Function):
    """A forward mode that somebody has got wrong."""

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx, tangent):
        return 1.01 * tangent * ctx.saved_tensors[0]


def rotation(control):
    """Complex matrices, of an imaginary exponent that is wrong in forward mode."""
    a = Slope.apply(control[..., 0]) * (1 + 0j)
    return torch.stack([torch.stack([a, 1j * a], -1), torch.stack([1j - 0 * a, a * a], -1)], -2)


WRONG = {
    "cholesky_inverse": (inverse, "have another derivative in forward mode"),
    "no jvp": (lambda c: Exponential.apply(matrices(c)), "have no forward-mode derivative"),
    "wrong jvp": (lambda c: Slope.apply(matrices(c)), "have another derivative in forward mode"),
    "complex": (rotation, "have another derivative in forward mode"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("passes", ["one", "batched", "vmap", "run by run"])
def test_reverse_mode_where_forward_mode_is_wrong_or_missing(monkeypatch, name, passes):
    if passes == "run by run":
        monkeypatch.setattr(linear_step_module, "MATRIX_BYTES", 250)
    function, match = WRONG[name]
    state, controls = inputs()
    if name == "complex":
        state = state.to(torch.complex128)
    controls.requires_grad_()
    final = hig.rollout(hig.LinearStep(function), state, controls, method="jacobians")
    expected = hig.rollout(hig.LinearStep(function), state, controls, method="loop")
    torch.manual_seed(1)
    cotangents = torch.randn(3, *final.shape, dtype=final.dtype)
    with pytest.warns(RuntimeWarning, match=match):
        if passes == "batched":
            found = torch.autograd.grad(final, controls, cotangents, is_grads_batched=True)[0]
        elif passes == "vmap":
            found = torch.vmap(lambda cotangent: torch.autograd.grad(final, controls, cotangent))(
                cotangents
            )[0]
        else:
            found = [
                torch.autograd.grad(final, controls, cotangent, retain_graph=True)[0]
                for cotangent in cotangents
            ]
    for cotangent, gradient in zip(cotangents, found, strict=True):
        plain = torch.autograd.grad(expected, controls, cotangent, retain_graph=True)[0]
        assert relative_error(gradient, plain) < 1e-12


def test_a_step_reports_the_other_route():
    torch.manual_seed(0)
    network = torch.nn.Linear(2, TIMES).double()
    target = torch.randn(4, 2, dtype=torch.float64)
    start = torch.randn(4, 2, dtype=torch.float64)
    optimizer = hig.HIG(network.parameters(), lr=0.1, rcond=1e-6, step_rule="fixed")

    def closure():
        controls = network(target).unsqueeze(2)
        final = hig.rollout(hig.LinearStep(inverse), start, controls)
        return (final - target).square().mean(), final

    with pytest.warns(RuntimeWarning, match="in reverse mode"):
        optimizer.step(closure)
    assert sum("step matrices have another derivative" in n for n in optimizer.report.notes) == 1


def test_a_cotangent_sees_real_and_imaginary_parts():
    found = cotangent_of(torch.zeros(3, 2, dtype=torch.complex64))
    assert found.dtype == torch.complex64
    assert found.real.unique().numel() == found.imag.unique().numel() == 6
    assert cotangent_of(torch.zeros(4)).unique().numel() == 4
