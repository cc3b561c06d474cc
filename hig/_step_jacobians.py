r"""Jacobians of all steps of a rollout in one vectorised call, and products of them.

:math:`A_t = \partial s_{t+1} / \partial s_t` and :math:`B_t = \partial s_{t+1} / \partial c_t`.
Time is the first axis of everything here.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LinearStep", "Step", "step_jacobians", "suffix_products"]

Step = Callable[[Tensor, Tensor], Tensor]

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


def step_jacobians(step: Step, states: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobians of all steps by the state, (T, B, S, S), and by the control, (T, B, S, C).

    Args:
        step: the step.
        states: all states, (T + 1, B, ...).
        controls: (T, B, ...).

    Raises:
        RuntimeError: if the step gives other states than those in ``states``.
    """
    if isinstance(step, LinearStep):
        return _linear(step, states[:-1], controls)
    with torch._C.DisableTorchFunction():
        try:
            after, by_state, by_control = _vectorised(step, states[:-1], controls)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            warnings.warn(
                f"the step cannot be vectorised over time ({str(error).splitlines()[0]}); its "
                "Jacobians are computed step by step, method='loop' may be faster",
                RuntimeWarning,
                stacklevel=2,
            )
            after, by_state, by_control = _one_by_one(step, states[:-1], controls)
    _check_repeatable(after, states[1:])
    times, batch = controls.shape[:2]
    shape = (times, states[0, 0].numel(), batch, -1)
    # (T, S, B, ...) -> (T, B, S, ...)
    by_state, by_control = (
        jacobian.reshape(shape).transpose(1, 2).contiguous() for jacobian in (by_state, by_control)
    )
    return by_state, by_control


def suffix_products(matrices: Tensor) -> Tensor:
    """(T, B, S, S) -> (T + 1, B, S, S): entry t is M_{T-1} ... M_t, the last the identity."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    identity = identity.expand(matrices.shape[1:])
    if matrices.is_cuda:
        return torch.cat([_products_by_doubling(matrices), identity.unsqueeze(0)])
    products = [identity]
    for matrix in reversed(matrices.unbind()):
        products.append(products[-1] @ matrix)
    return torch.stack(products[::-1])


def _products_by_doubling(matrices: Tensor) -> Tensor:
    """The same without the identity, in log2(T) rounds: where each launch costs, not the work."""
    products, span = matrices, 1
    while span < len(matrices):
        products = torch.cat([products[span:] @ products[:-span], products[-span:]])
        span *= 2
    return products


def _vectorised(step: Step, before: Tensor, controls: Tensor):
    """All steps at once: (T, B, ...) states after, and (T, S, B, ...) gradients of each entry."""
    size = before[0, 0].numel()
    select = torch.eye(size, dtype=before.dtype, device=before.device)
    select = select.view(size, 1, *before.shape[2:]).expand(-1, *before.shape[1:])

    def one_time(state, control):
        after, pull = torch.func.vjp(step, state, control)
        return after, *torch.func.vmap(pull)(select)

    # Some twenty intermediates of a step are alive at once for each of the S cotangents.
    per_time = 20 * size * before[0].numel() * before.element_size()
    chunk = max(1, STEP_BYTES // per_time)
    return torch.func.vmap(one_time, chunk_size=chunk)(before, controls)


def _one_by_one(step: Step, before: Tensor, controls: Tensor):
    """As :func:`_vectorised`, one step and one entry of the state at a time."""
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    results = []
    for state, control in zip(before.unbind(), controls.unbind(), strict=True):
        state, control = state.detach().requires_grad_(), control.detach().requires_grad_()
        with torch.enable_grad():
            after = step(state, control)
            entries = after.flatten(1).sum(0).unbind()
        rows = [torch.autograd.grad(entry, (state, control), **options) for entry in entries]
        results.append((after.detach(), *map(torch.stack, zip(*rows, strict=True))))
    return tuple(map(torch.stack, zip(*results, strict=True)))


def _linear(step: LinearStep, before: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
    flat = controls.reshape(*controls.shape[:2], -1)

    def change(select: Tensor) -> Tensor:
        tangent = select.expand_as(flat).reshape(controls.shape)
        _, of_matrices = torch.func.jvp(step.matrices, (controls,), (tangent,))
        return (of_matrices @ before.unsqueeze(-1)).squeeze(-1)

    unit = torch.eye(flat.shape[2], dtype=controls.dtype, device=controls.device)
    return step.matrices(controls), torch.stack([change(select) for select in unit], -1)


def _check_repeatable(again: Tensor, states: Tensor) -> None:
    tolerance = torch.finfo(states.dtype).eps ** 0.5
    if bool((again - states).abs().max() > tolerance * states.abs().max()):
        raise RuntimeError(
            "the step gave another result when it was run again for its Jacobian: it draws random "
            "numbers or keeps a state of its own, such as a time counter; make these part of the "
            "controls, or use rollout(..., method='loop')"
        )
