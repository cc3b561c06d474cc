"""Steps that are a matrix: what they hand over to a rollout, a run of time steps at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hig._adjoint import Piece
from hig._step_jacobians import check_repeatable
from hig.arguments import check_function

__all__ = ["LinearStep", "check_change", "linear_pieces", "linear_states", "runs"]

# Step matrices up to this size exist at one time; those of more steps are made run by run, and
# once more on the way back.
MATRIX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class LinearStep:
    r"""A step that is a matrix: :math:`s_{t+1} = M(c_t)\, s_t`, such as Crank-Nicolson.

    Args:
        matrices: control (..., C) or (...) -> step matrices (..., S, S), for any leading axes;
            real or complex. Called for all samples and many times at once.
        change: the derivative of the step by the control, where it is cheaper to write down than
            to differentiate ``matrices``: (control (..., C) or (...), matrices (..., S, S), state
            before (..., S), state after (..., S)) -> (..., S, C); C is 1 for a control (...).

    Raises:
        TypeError: if one of both is no function.
    """

    matrices: Callable[[Tensor], Tensor]
    change: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_function(self.matrices, "matrices", "(control) -> step matrices")
        if self.change is not None:
            form = "(control, matrices, state before, state after) -> derivative"
            check_function(self.change, "change", form)

    def __call__(self, state: Tensor, control: Tensor) -> Tensor:
        """One step: state (B, S), control of one time -> (B, S)."""
        return apply(self.matrices_of(control, 1, state), state)

    def matrices_of(self, controls: Tensor, leading: int, like: Tensor) -> Tensor:
        """``matrices``, after a look at what it returns.

        Args:
            controls: (B, ...) or (T, B, ...).
            leading: how many of their axes count samples and times, 1 or 2.
            like: (B, S), states that the matrices are for.

        Raises:
            TypeError: if it is no tensor, or of another precision than the states.
            ValueError: if it has another shape.
        """
        found = self.matrices(controls)
        if not isinstance(found, Tensor) or found.dtype != like.dtype:
            kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(
                f"matrices must return a tensor of the state's dtype {like.dtype}, got {kind}; "
                "convert one of them"
            )
        expected = (*controls.shape[:leading], like.shape[1], like.shape[1])
        if found.shape != expected:
            raise ValueError(
                f"matrices must return {expected} for controls {tuple(controls.shape)}, the step "
                f"matrices last, got {tuple(found.shape)}; it is called for all samples and many "
                "times at once (expand what does not depend on the control)"
            )
        return found

    def control_jacobians(self, matrices: Tensor, states: Tensor, controls: Tensor) -> Tensor:
        """Derivatives of all steps by their controls, (T, B, S, C).

        Args:
            matrices: of all steps, (T, B, S, S).
            states: all states, (T + 1, B, S).
            controls: (T, B, ...).
        """
        flat = controls.reshape(*controls.shape[:2], -1)
        if self.change is not None:
            found = self.change(controls, matrices, states[:-1], states[1:])
            expected = (*states[:-1].shape, flat.shape[2])
            if found.shape != expected:
                raise ValueError(
                    f"change must return {expected}, states and controls last, got "
                    f"{tuple(found.shape)}; a single control needs an axis of 1"
                )
            return found

        def along(select: Tensor) -> Tensor:
            tangent = select.expand_as(flat).reshape(controls.shape)
            change = torch.func.jvp(self.matrices, (controls,), (tangent,))[1]
            return apply(change, states[:-1])

        unit = torch.eye(flat.shape[2], dtype=controls.dtype, device=controls.device)
        return torch.stack([along(select) for select in unit], -1)


def apply(matrices: Tensor, states: Tensor) -> Tensor:
    """M s: (..., S, S), (..., S) -> (..., S)."""
    return (matrices @ states.unsqueeze(-1)).squeeze(-1)


def linear_states(
    step: LinearStep, state: Tensor, controls: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """The T + 1 states (B, S), and the matrices (T, B, S, S) if there is only one run of them.

    Args:
        step: the step.
        state: (B, S).
        controls: (T, B, ...).
    """
    states, matrices = [state.unsqueeze(-1)], state.new_empty(0)
    for chosen in runs(state, len(controls)):
        matrices = step.matrices_of(controls[chosen], 2, state)
        for matrix in matrices.unbind():
            states.append(torch.bmm(matrix, states[-1]))
    states = [column.squeeze(-1) for column in states]
    return states, matrices if len(matrices) == len(controls) else None


def linear_pieces(step: LinearStep, states: Tensor, controls: Tensor) -> Iterator[Piece]:
    """Yield the step Jacobians by state and control, run by run, backwards in time.

    Args:
        step: the step.
        states: all states, (T + 1, B, S).
        controls: (T, B, ...).
    """
    for chosen in reversed(list(runs(states[0], len(controls)))):
        matrices = step.matrices_of(controls[chosen], 2, states[0])
        own = states[chosen.start : chosen.stop + 1]
        check_repeatable(apply(matrices[0], own[0]), own[1])
        yield matrices, step.control_jacobians(matrices, own, controls[chosen])


def check_change(step: LinearStep, state: Tensor, control: Tensor) -> None:
    """Hold a derivative that was written down against the one of the matrices.

    Args:
        step: the step.
        state: (B, S), without a graph.
        control: of one time, (B, ...), without a graph.

    Raises:
        ValueError: if ``change`` is not the derivative of ``matrices``, or has another shape.
    """
    if step.change is None:
        return
    controls = control.unsqueeze(0).requires_grad_()
    with torch.enable_grad():
        matrices = step.matrices_of(controls, 2, state)
        after = apply(matrices, state)
        if not after.requires_grad:  # the same matrices for every control: nothing may change
            after = after + 0 * controls.sum()
    generator = torch.Generator("cpu").manual_seed(0)
    cotangent = torch.randn(after.shape, generator=generator, dtype=torch.float64, device="cpu").to(
        after
    )
    (expected,) = torch.autograd.grad(after, controls, cotangent)
    states = torch.stack([state, after[0].detach()])
    change = step.control_jacobians(matrices.detach(), states, controls.detach())
    found = torch.real((cotangent.conj().unsqueeze(-1) * change).sum(2)).reshape(expected.shape)
    tolerance = 10 * torch.finfo(expected.dtype).eps ** 0.5
    scale = change.abs().max() * cotangent.abs().max()
    if bool((found - expected).abs().max() > tolerance * scale):
        raise ValueError(
            "change is not the derivative of matrices by the control: they differ by "
            f"{float((found - expected).abs().max()):.2g} where the derivative is up to "
            f"{float(expected.abs().max()):.2g}; leave change out to have it computed"
        )


def runs(state: Tensor, times: int) -> Iterator[slice]:
    """Slices over time whose step matrices may exist at once, for states (B, S)."""
    length = max(1, MATRIX_BYTES // (state.numel() * state.shape[-1] * state.element_size()))
    for start in range(0, times, length):
        yield slice(start, min(start + length, times))
