r"""A differentiable time loop whose Jacobian costs about as much as the loop.

Forward, the loop runs without a graph and keeps its states. Backward, the Jacobians of all steps
are computed in one vectorised call over batch and time,
:math:`A_t = \partial s_{t+1} / \partial s_t` and :math:`B_t = \partial s_{t+1} / \partial c_t`,
and the adjoint is a chain of small matrix products.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["LinearStep", "rollout"]

Step = Callable[[Tensor, Tensor], Tensor]

ROLLOUT_METHODS = ("auto", "jacobians", "loop")
# Step Jacobians up to this size are formed; larger states are differentiated through the loop.
JACOBIAN_BYTES = 512 * 2**20
# Scratch of the vectorised differentiation of the steps.
STEP_BYTES = 256 * 2**20


@dataclass(frozen=True)
class LinearStep:
    r"""A step that is a matrix: :math:`s_{t+1} = M(c_t)\, s_t`, such as Crank-Nicolson.

    Args:
        matrices: control (..., C) or (...) -> step matrices (..., S, S), for any leading axes;
            real or complex. Called once for all samples and times.
    """

    matrices: Callable[[Tensor], Tensor]

    def __call__(self, state: Tensor, control: Tensor) -> Tensor:
        """One step: state (B, S), control of one time -> (B, S)."""
        return (self.matrices(control) @ state.unsqueeze(-1)).squeeze(-1)


def rollout(
    step: Step, state: Tensor, controls: Tensor, trajectory: bool = False, method: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """Apply ``state = step(state, controls[:, t])`` for all times, differentiably.

    Args:
        step: (state, control of one time) -> state, both with the batch axis; a deterministic
            function of its arguments. A :class:`LinearStep` hands over its matrices.
        state: initial state, (batch, ...).
        controls: (batch, time, ...).
        trajectory: return all states as well.
        method: "jacobians" (vectorised step Jacobians), "loop" (plain autograd through the
            loop), or "auto": the first, unless the step depends on something else that is
            trained, the state is large or complex without being a LinearStep, or a ``torch.func``
            transform is at work.

    Returns:
        The final state, (batch, ...); with ``trajectory`` also all states,
        (batch, time + 1, ...).

    Raises:
        ValueError: if shapes or ``method`` are wrong, or "jacobians" cannot be used.
        RuntimeError: in the backward pass, if the step turns out not to be deterministic.
    """
    _check(state, controls, method)
    refusal = _refusal(step, state, controls) if method != "loop" else ""
    if method == "jacobians" and refusal:
        raise ValueError(f"method='jacobians' cannot be used: {refusal}; use method='auto'")
    if method == "loop" or refusal:
        states = [state]
        for control in controls.unbind(1):
            states.append(step(states[-1], control))
        return (states[-1], torch.stack(states, 1)) if trajectory else states[-1]
    final, states = _Rollout.apply(step, state, controls)
    return (final, states) if trajectory else final


class _Rollout(torch.autograd.Function):
    """Loop forward, chain of step Jacobians backward; accepts batched cotangents."""

    @staticmethod
    def forward(ctx, step: Step, state: Tensor, controls: Tensor):
        # The mode that watches for layers would look at every operation of the loop, in which
        # there is nothing for it to see: no parameter takes part.
        with torch._C.DisableTorchFunction():
            states = _states(step, state, controls)
        ctx.step, ctx.total = step, None
        ctx.save_for_backward(states, controls)
        ctx.set_materialize_grads(False)
        return states[:, -1].clone(), states

    @staticmethod
    @once_differentiable
    def backward(ctx, of_final, of_states):
        states, controls = ctx.saved_tensors
        batch, times = controls.shape[:2]
        if of_states is None:
            if ctx.total is None:
                # Kept for further passes through the same graph: they are then one product.
                ctx.total = _total_jacobians(*_step_jacobians(ctx.step, states, controls))
            by_state, by_control = ctx.total
            adjoint = of_final.reshape(batch, 1, -1)
            of_state = adjoint @ by_state.conj()
            of_controls = adjoint.unsqueeze(1) @ by_control.conj()
        else:
            by_state, by_control = _step_jacobians(ctx.step, states, controls)
            direct = of_states.reshape(batch, times + 1, 1, -1)
            adjoint = direct[:, -1]
            if of_final is not None:
                adjoint = adjoint + of_final.reshape(batch, 1, -1)
            of_controls = []
            for t in range(times - 1, -1, -1):
                of_controls.append(adjoint @ by_control[:, t].conj())
                adjoint = adjoint @ by_state[:, t].conj() + direct[:, t]
            of_controls, of_state = torch.stack(of_controls[::-1], 1), adjoint
        if not controls.is_complex():
            of_controls = torch.real(of_controls)
        return None, of_state.reshape(states[:, 0].shape), of_controls.reshape(controls.shape)


def _states(step: Step, state: Tensor, controls: Tensor) -> Tensor:
    states = [state]
    if isinstance(step, LinearStep):
        for matrix in step.matrices(controls).unbind(1):
            states.append((matrix @ states[-1].unsqueeze(-1)).squeeze(-1))
    else:
        for control in controls.unbind(1):
            states.append(step(states[-1], control))
    return torch.stack(states, 1)


def _total_jacobians(by_state: Tensor, by_control: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobians of the final state: by the initial state (B, S, S), by controls (B, T, S, C)."""
    products = _suffix_products(by_state)
    return products[:, 0], products[:, 1:] @ by_control


def _suffix_products(matrices: Tensor) -> Tensor:
    """(B, T, S, S) -> (B, T + 1, S, S): entry t is M_{T-1} ... M_t, the last the identity."""
    batch, times, size = matrices.shape[:3]
    identity = torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    identity = identity.expand(batch, 1, size, size)
    if matrices.is_cuda:
        return torch.cat([_suffix_products_by_doubling(matrices), identity], 1)
    products = [identity[:, 0]]
    for t in range(times - 1, -1, -1):
        products.append(products[-1] @ matrices[:, t])
    return torch.stack(products[::-1], 1)


def _suffix_products_by_doubling(matrices: Tensor) -> Tensor:
    """The same without the identity, in log2(T) rounds: where each launch costs, not the work."""
    products, span = matrices, 1
    while span < matrices.shape[1]:
        products = torch.cat([products[:, span:] @ products[:, :-span], products[:, -span:]], 1)
        span *= 2
    return products


def _step_jacobians(step: Step, states: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobians of all steps: by the state (B, T, S, S), by the control (B, T, S, C)."""
    before = states[:, :-1]
    if isinstance(step, LinearStep):
        return _linear_jacobians(step, before, controls)
    with torch._C.DisableTorchFunction():
        try:
            after, by_state, by_control = _vectorised(step, before, controls)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            warnings.warn(
                f"the step cannot be vectorised over time ({str(error).splitlines()[0]}); its "
                "Jacobians are computed step by step, method='loop' may be faster",
                RuntimeWarning,
                stacklevel=2,
            )
            after, by_state, by_control = _one_by_one(step, before, controls)
    _check_repeatable(after, states[:, 1:])
    batch, times = controls.shape[:2]
    size = states[0, 0].numel()
    # (T, S, B, ...) -> (B, T, S, ...)
    by_state = by_state.reshape(times, size, batch, -1).permute(2, 0, 1, 3)
    by_control = by_control.reshape(times, size, batch, -1).permute(2, 0, 1, 3)
    return by_state, by_control


def _vectorised(step: Step, before: Tensor, controls: Tensor):
    """All steps at once: (T, B, ...) states after, and (T, S, B, ...) gradients of each entry."""
    size = before[0, 0].numel()
    select = torch.eye(size, dtype=before.dtype, device=before.device)
    select = select.view(size, 1, *before.shape[2:]).expand(-1, *before[:, 0].shape)

    def one_time(state, control):
        after, pull = torch.func.vjp(step, state, control)
        return after, *torch.func.vmap(pull)(select)

    # Some twenty intermediates of a step are alive at once for each of the S cotangents.
    per_time = 20 * size * before[:, 0].numel() * before.element_size()
    chunk = max(1, STEP_BYTES // per_time)
    return torch.func.vmap(one_time, in_dims=(1, 1), chunk_size=chunk)(before, controls)


def _one_by_one(step: Step, before: Tensor, controls: Tensor):
    """As :func:`_vectorised`, one step and one entry of the state at a time."""
    results = []
    for state, control in zip(before.unbind(1), controls.unbind(1), strict=True):
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
    after, by_state, by_control = zip(*results, strict=True)
    return torch.stack(after), torch.stack(by_state), torch.stack(by_control)


def _linear_jacobians(step: LinearStep, before: Tensor, controls: Tensor):
    matrices = step.matrices(controls)
    flat = controls.reshape(*controls.shape[:2], -1)

    def change(select):
        tangent = select.expand_as(flat).reshape(controls.shape)
        _, by_control = torch.func.jvp(step.matrices, (controls,), (tangent,))
        return (by_control @ before.unsqueeze(-1)).squeeze(-1)

    unit = torch.eye(flat.shape[2], dtype=controls.dtype, device=controls.device)
    return matrices, torch.stack([change(select) for select in unit], -1)


def _check_repeatable(again: Tensor, states: Tensor) -> None:
    states = states.transpose(0, 1)
    tolerance = torch.finfo(states.dtype).eps ** 0.5
    if bool((again - states).abs().max() > tolerance * states.abs().max()):
        raise RuntimeError(
            "the step gave another result when it was run again for its Jacobian: it draws random "
            "numbers or keeps a state of its own, such as a time counter; make these part of the "
            "controls, or use rollout(..., method='loop')"
        )


def _check(state: Tensor, controls: Tensor, method: str) -> None:
    if method not in ROLLOUT_METHODS:
        raise ValueError(f"method must be one of {ROLLOUT_METHODS}, got {method!r}")
    if state.ndim < 2 or controls.ndim < 2 or len(state) != len(controls) or not len(state):
        raise ValueError(
            "state must be (batch, ...) and controls (batch, time, ...) with the same batch, got "
            f"{tuple(state.shape)} and {tuple(controls.shape)}; add a batch axis of 1 for a single "
            "sample"
        )
    if not controls.shape[1]:
        raise ValueError(f"controls have no time step, got shape {tuple(controls.shape)}")


def _refusal(step: Step, state: Tensor, controls: Tensor) -> str:
    """Why plain autograd must be used, or an empty string."""
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in (state, controls)):
        return "a torch.func transform differentiates the loop itself"
    if not (torch.is_grad_enabled() and (state.requires_grad or controls.requires_grad)):
        return _trained_parts(step, state, controls) or "nothing is to be differentiated"
    if isinstance(step, LinearStep):
        return _trained_parts(step, state, controls)
    if state.is_complex() or controls.is_complex():
        return "a complex step has no complex Jacobian unless it is a LinearStep"
    if not controls.is_floating_point():
        return f"controls of dtype {controls.dtype} cannot be differentiated"
    size, control_size = state[0].numel(), controls[0, 0].numel()
    formed = controls.shape[0] * controls.shape[1] * size * (size + control_size)
    if formed * state.element_size() > JACOBIAN_BYTES:
        return f"the step Jacobians of {size} x {size + control_size} entries are too large"
    return _trained_parts(step, state, controls)


def _trained_parts(step: Step, state: Tensor, controls: Tensor) -> str:
    # What else the step depends on shows when its own arguments carry no gradient.
    if torch.is_grad_enabled() and step(state.detach(), controls[:, 0].detach()).requires_grad:
        return "the step depends on another tensor that requires a gradient"
    return ""
