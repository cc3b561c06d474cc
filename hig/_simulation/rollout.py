r"""Differentiable time loop whose Jacobian costs about as much as the loop.

Forward, the loop runs without a graph and keeps its states. Backward, the Jacobians of all steps
are computed in one vectorised call over batch and time,
:math:`A_t = \partial s_{t+1} / \partial s_t` and :math:`B_t = \partial s_{t+1} / \partial c_t`,
and the adjoint is a chain of small matrix products.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hig._simulation.adjoint import Piece, adjoint, real_cotangents, whole_jacobian
from hig._simulation.linear_step import LinearStep, check_change, linear_pieces, linear_states
from hig._simulation.step_checks import IN_PLACE, check_state, refusal_of_step
from hig._simulation.step_jacobians import Step, step_jacobians
from hig._torch.cuda_graph import cached_decision
from hig.arguments import check_choice, check_function, check_same_device

__all__ = ["rollout"]

ROLLOUT_METHODS = ("auto", "jacobians", "loop")
# Step Jacobians up to this size are computed; larger states are differentiated through the loop.
JACOBIAN_BYTES = 512 * 2**20
# Up to this many entries of the state, many cotangents at once are multiplied with the Jacobian of
# the whole rollout, computed once; above, and for single cotangents, the adjoint goes back in time.
# Differentiating a step for its Jacobian pays off up to this size, too: its cost grows with the
# square of the size, and that of the loop hardly.
TOTAL_SIZE = 16


def rollout(
    step: Step, state: Tensor, controls: Tensor, trajectory: bool = False, method: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """Apply ``state = step(state, controls[:, t])`` for all times, differentiably.

    Args:
        step: (state, control of one time) -> state, both with the batch axis; a deterministic
            function of its arguments. Of a :class:`LinearStep` the matrices are used directly.
        state: initial state, (batch, ...).
        controls: (batch, time, ...).
        trajectory: return all states as well.
        method: "jacobians" (vectorised step Jacobians), "loop" (plain autograd through the
            loop), or "auto": the first, unless the step depends on another tensor that is
            trained or couples the samples of the batch, the state has more than 16 entries or is
            complex and the step is not a LinearStep, or a ``torch.func`` transform is active.

    Returns:
        The final state, (batch, ...); with ``trajectory`` also all states,
        (batch, time + 1, ...).

    Raises:
        ValueError: shapes or ``method`` are wrong, the step changes its state in place, or
            "jacobians" cannot be used.
        RuntimeError: in the backward pass, the step turns out not to be deterministic.
        TypeError: state, controls or the result of the step is not a tensor, or the step is not
            a function.
    """
    _check(step, state, controls, method)
    if method == "auto" and state[0].numel() > TOTAL_SIZE and not isinstance(step, LinearStep):
        method = "loop"
    differentiated = torch.is_grad_enabled() and (state.requires_grad or controls.requires_grad)
    refusal = _refusal(step, state, controls) if differentiated and method != "loop" else ""
    if method == "jacobians" and refusal:
        raise ValueError(f"method='jacobians' cannot be used: {refusal}; use method='auto'")
    if method == "loop" or refusal or not differentiated:
        states = _plain_states(step, state, controls, method)
        return (states[-1], torch.stack(states, 1)) if trajectory else states[-1]
    final, states = _Rollout.apply(step, state, controls)
    return (final, states) if trajectory else final


class _Rollout(torch.autograd.Function):
    """Autograd function: loop forward, chain of step Jacobians backward, also for many cotangents.

    Time is the first axis here, so that every step works on contiguous memory.
    """

    @staticmethod
    def forward(ctx: Any, step: Step, state: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
        matrices = None
        # The capture of layers would intercept every operation of the loop in vain: no parameter
        # takes part.
        with torch._C.DisableTorchFunction():
            if isinstance(step, LinearStep):
                visited, matrices = linear_states(step, state, _time_first(controls))
            else:
                visited = _loop(step, state, controls)
            states = torch.stack(visited)
        ctx.step, ctx.pieces, ctx.whole = step, None, None
        ctx.save_for_backward(states, state, controls, matrices)
        ctx.set_materialize_grads(False)
        return states[-1].clone(), states.transpose(0, 1)

    @staticmethod
    def backward(
        ctx: Any, of_final: Tensor | None, of_states: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        states, state, controls, _ = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: these gradients are differentiated in turn
            return None, *_through_the_loop(ctx.step, state, controls, of_final, of_states)
        batch, size = len(state), states[0, 0].numel()
        if of_final is not None:
            of_final = of_final.reshape(batch, 1, size)
        if (
            of_final is not None
            and of_states is None
            and size <= TOTAL_SIZE
            and (ctx.whole or _is_batched(of_final))
        ):
            if ctx.whole is None:
                ctx.whole = whole_jacobian(_pieces(ctx))
            by_state, by_controls = ctx.whole
            of_state = of_final @ by_state.conj()
            of_controls = real_cotangents(of_final, by_controls)
        else:
            if of_final is None:
                of_final = states.new_zeros((batch, 1, size))
            if of_states is not None:
                of_states = of_states.reshape(batch, -1, 1, size)
            of_state, of_controls = adjoint(_pieces(ctx), of_final, of_states)
            of_controls = torch.real(of_controls)
        return None, of_state.reshape(state.shape), of_controls.reshape(controls.shape)


def _pieces(ctx: Any) -> Iterable[Piece]:
    """Step Jacobians, backwards in time; kept for later passes through the graph if small."""
    if ctx.pieces is not None:
        return ctx.pieces
    states, _, controls, matrices = ctx.saved_tensors
    controls = _time_first(controls)
    if not isinstance(ctx.step, LinearStep):
        ctx.pieces = [step_jacobians(ctx.step, states, controls)]
    elif matrices is not None:
        ctx.pieces = [(matrices, ctx.step.control_jacobians(matrices, states, controls))]
    else:
        return linear_pieces(ctx.step, states, controls)
    return ctx.pieces


def _time_first(controls: Tensor) -> Tensor:
    """Copy (B, T, ...) to contiguous (T, B, ...): not every function accepts strided tensors."""
    return controls.transpose(0, 1).contiguous()


def _is_batched(tensor: Tensor) -> bool:
    """Return whether a tensor holds many cotangents, by ``is_grads_batched`` or vmap."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(tensor) or functorch.is_batchedtensor(tensor)


def _plain_states(step: Step, state: Tensor, controls: Tensor, method: str) -> list[Tensor]:
    """States at all times (B, ...), by operations that autograd and torch.func can follow."""
    if isinstance(step, LinearStep) and method != "loop":
        return linear_states(step, state, _time_first(controls))[0]
    return _loop(step, state, controls)


def _loop(step: Step, state: Tensor, controls: Tensor) -> list[Tensor]:
    """States at all times, step by step."""
    first, *others = controls.unbind(1)
    before = _version(state)
    states = [state, step(state, first)]
    check_state(states[1], state)
    if _version(state) != before:
        raise ValueError(IN_PLACE)
    for control in others:
        states.append(step(states[-1], control))
    return states


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 if torch does not count that."""
    return 0 if tensor.is_inference() else tensor._version


def _through_the_loop(
    step: Step, state: Tensor, controls: Tensor, of_final: Tensor | None, of_states: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Differentiable cotangents of state and controls."""
    states = _plain_states(step, state, controls, "auto")
    outputs = states[-1], torch.stack(states, 1)
    pairs = [
        pair for pair in zip(outputs, (of_final, of_states), strict=True) if pair[1] is not None
    ]
    wanted = [tensor for tensor in (state, controls) if tensor.requires_grad]
    gradients = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            wanted,
            [cotangent for _, cotangent in pairs],
            create_graph=True,
            materialize_grads=True,
        )
    )
    return tuple(next(gradients) if t.requires_grad else None for t in (state, controls))


def _check(step: Step, state: Tensor, controls: Tensor, method: str) -> None:
    check_choice(method, "method", ROLLOUT_METHODS)
    check_function(step, "step", "(state, control) -> state")
    for name, value in (("state", state), ("controls", controls)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(value).__name__}; convert it (torch.as_tensor)"
            )
    if state.ndim < 2 or controls.ndim < 2 or len(state) != len(controls) or not len(state):
        raise ValueError(
            "state must be (batch, ...) and controls (batch, time, ...) with the same batch, got "
            f"{tuple(state.shape)} and {tuple(controls.shape)}; add a batch axis of 1 for a single "
            "sample"
        )
    if not controls.shape[1]:
        raise ValueError(
            f"controls have no time step, got shape {tuple(controls.shape)}; give one at least"
        )
    check_same_device({"state": state, "controls": controls})


def _refusal(step: Step, state: Tensor, controls: Tensor) -> str:
    """Return why plain autograd must be used, or an empty string."""
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in (state, controls)):
        return "a torch.func transform differentiates the loop itself"
    if controls.is_complex():
        return (
            "complex controls may enter with their conjugates; pass real and imaginary parts as "
            "two real controls"
        )
    if not controls.is_floating_point():
        return f"controls of dtype {controls.dtype} cannot be differentiated"
    if state.is_floating_point() and state.dtype != controls.dtype:
        return f"state is {state.dtype} and controls are {controls.dtype}"
    if state.is_complex() and not isinstance(step, LinearStep):
        return "a complex step has no complex Jacobian unless it is a LinearStep"
    size, control_size = state[0].numel(), controls[0, 0].numel()
    formed = controls.shape[0] * controls.shape[1] * size * (size + control_size)
    if not isinstance(step, LinearStep) and formed * state.element_size() > JACOBIAN_BYTES:
        return f"the step Jacobians of {size} x {size + control_size} entries are too large"
    with torch._C.DisableTorchFunction():
        return cached_decision(
            partial(_refusal_near, step, state.detach(), controls[:, 0].detach())
        )


def _refusal_near(step: Step, state: Tensor, control: Tensor) -> str:
    refusal = refusal_of_step(step, state, control)
    if not refusal and isinstance(step, LinearStep):
        check_change(step, state, control)
    return refusal
