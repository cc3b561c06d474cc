r"""Jacobians of all steps of a rollout in one vectorised call.

:math:`A_t = \partial s_{t+1} / \partial s_t` and :math:`B_t = \partial s_{t+1} / \partial c_t`.
Time is the first axis of everything here.
"""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from hig._torch.batched_vjp import note
from hig._torch.cuda_graph import cached_decision

__all__ = ["Step", "check_repeatable", "cotangent_of", "report_slow_route", "step_jacobians"]

Step = Callable[[Tensor, Tensor], Tensor]

# Scratch of the vectorised differentiation of the steps.
STEP_BYTES = 256 * 2**20


def step_jacobians(step: Step, states: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobians of all steps by the state, (T, B, S, S), and by the control, (T, B, S, C).

    Raises a RuntimeError if the step does not reproduce ``states``, (T + 1, B, ...).
    """
    # A torch.func transform may be pulling many cotangents through the rollout. It must not see
    # these derivatives, and plain autograd is refused inside of one.
    with torch._C.DisableTorchFunction(), temporarily_clear_interpreter_stack():
        try:
            results = _vectorised(step, states[:-1], controls)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            refusal = f"cannot be vectorised over time ({str(error).splitlines()[0]})"
        else:
            check_repeatable(results[0], states[1:])
            refusal = _disagreement(step, states, controls, results[1], results[2])
        if refusal:
            report_slow_route(
                f"the step {refusal}; its Jacobians are computed step by step, method='loop' may "
                "be faster"
            )
            results = _one_by_one(step, states[:-1], controls)
            check_repeatable(results[0], states[1:])
    _, by_state, by_control = results
    times, batch = controls.shape[:2]
    shape = (times, states[0, 0].numel(), batch, -1)
    # (T, S, B, ...) -> (T, B, S, ...): S counts the entries after the step, each of which had a
    # backward pass for all samples; the last axis those of the state or control before it.
    by_state, by_control = (
        jacobian.reshape(shape).transpose(1, 2).contiguous() for jacobian in (by_state, by_control)
    )
    return by_state, by_control


def _vectorised(step: Step, before: Tensor, controls: Tensor) -> tuple[Tensor, ...]:
    """Differentiate all steps at once.

    Returns:
        States after the steps, (T, B, ...), and gradients of each of their entries by the states
        and the controls before, (T, S, B, ...) each.
    """
    size = before[0, 0].numel()
    # (S, B, ...): a unit vector for each entry of a state, the same for all samples. As samples
    # are independent, one pullback of it gives that row of the Jacobians of all of them.
    select = torch.eye(size, dtype=before.dtype, device=before.device)
    select = select.view(size, 1, *before.shape[2:]).expand(-1, *before.shape[1:])

    def one_time(state: Tensor, control: Tensor) -> tuple[Tensor, ...]:
        after, pull = torch.func.vjp(step, state, control)  # type: ignore[misc]  # no has_aux
        return after, *torch.func.vmap(pull)(select)

    return torch.func.vmap(one_time, chunk_size=_times_at_once(before))(before, controls)


def _times_at_once(before: Tensor) -> int:
    """Return the number of steps that are differentiated in one call, for states (T, B, ...)."""
    # Some twenty intermediates of a step are alive at once for each of the S cotangents.
    per_time = 20 * before[0, 0].numel() * before[0].numel() * before.element_size()
    return max(1, STEP_BYTES // per_time)


def _disagreement(
    step: Step, states: Tensor, controls: Tensor, by_state: Tensor, by_control: Tensor
) -> str:
    """Describe how the Jacobians of one time differ from a backward pass; empty if they agree.

    The gradients are (T, S, B, ...), of each entry of the states after.

    An operation such as `torch.cdist`, or a `torch.autograd.Function`, may be wrong only when it
    is vectorised.
    """
    # The last time of a call: some wrong operations, as linalg.lu_solve, are right at the first.
    time = min(_times_at_once(states), len(controls)) - 1
    near = [tensor[time].detach().requires_grad_() for tensor in (states, controls)]
    with torch.enable_grad():
        after = step(*near)
    if not after.requires_grad:
        return ""
    cotangent = cotangent_of(after)
    expected = torch.autograd.grad(
        after, near, cotangent, allow_unused=True, materialize_grads=True
    )
    weights = cotangent.flatten(1).T  # (S, B)
    differs = []
    for jacobian, gradient in zip((by_state[time], by_control[time]), expected, strict=True):
        # (S, B, ...) summed over S: the cotangent times the Jacobian, to equal the gradient.
        terms = weights.view(*weights.shape, *[1] * (jacobian.ndim - 2)) * jacobian
        tolerance = 10 * torch.finfo(gradient.dtype).eps ** 0.5 * terms.abs().sum(0).max()
        differs.append(((terms.sum(0) - gradient).abs() > tolerance).any())
    if cached_decision(partial(bool, torch.stack(differs).any())):
        return "has other derivatives where it is vectorised over time than one by one"
    return ""


def cotangent_of(output: Tensor) -> Tensor:
    """Make a cotangent with different weights for all entries, so that errors hardly cancel."""
    # Computed on the device: a transfer cannot be captured in a CUDA graph.
    complex_ = output.is_complex()
    real = torch.view_as_real(output.detach()) if complex_ else output.detach()
    weights = torch.arange(1, real.numel() + 1, dtype=real.dtype, device=real.device)
    weights = weights.sin().view(real.shape)
    return torch.view_as_complex(weights) if complex_ else weights


def report_slow_route(text: str) -> None:
    """Report that a slower route is taken: a warning, and a note in the report of the step."""
    note(text)
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _one_by_one(step: Step, before: Tensor, controls: Tensor) -> tuple[Tensor, ...]:
    """Compute the same as :func:`_vectorised`, one step and one entry of the state at a time."""
    results = []
    for state, control in zip(before.unbind(), controls.unbind(), strict=True):
        state, control = state.detach().requires_grad_(), control.detach().requires_grad_()
        with torch.enable_grad():
            after = step(state, control)
            entries = after.flatten(1).sum(0).unbind()
        rows = [
            torch.autograd.grad(
                entry,
                (state, control),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            for entry in entries
        ]
        results.append((after.detach(), *map(torch.stack, zip(*rows, strict=True))))
    return tuple(map(torch.stack, zip(*results, strict=True)))


def check_repeatable(again: Tensor, states: Tensor) -> None:
    """Raise RuntimeError if a step returned other states when it was run again."""
    tolerance = torch.finfo(states.dtype).eps ** 0.5
    differs = (again - states).abs().max() > tolerance * states.abs().max()
    if cached_decision(partial(bool, differs)):
        raise RuntimeError(
            "the step gave another result when it was run again for its Jacobian: it draws random "
            "numbers or keeps a state of its own, such as a time counter; make these part of the "
            "controls, or use rollout(..., method='loop')"
        )
