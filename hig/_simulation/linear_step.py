"""Linear steps: step matrices and their derivatives, computed for many time steps at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from hig._simulation.adjoint import Piece
from hig._simulation.step_jacobians import check_repeatable, cotangent_of, report_slow_route
from hig._torch.cuda_graph import cached_decision
from hig.arguments import check_function
from hig.errors import out_of_memory

__all__ = ["LinearStep", "check_change", "linear_pieces", "linear_states", "runs"]

# Largest size of step matrices in memory; those of more steps are computed run by run, and again
# in the backward pass.
MATRIX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class LinearStep:
    r"""Linear step :math:`s_{t+1} = M(c_t)\, s_t`, such as Crank-Nicolson.

    Args:
        matrices: control (..., C) or (...) -> step matrices (..., S, S), for any leading axes;
            real or complex. Called for all samples and many times at once.
        change: the derivative of the step by the control, if a formula is cheaper than
            differentiating ``matrices``: (control (..., C) or (...), matrices (..., S, S), state
            before (..., S), state after (..., S)) -> (..., S, C); C is 1 for a control (...).

    Raises:
        TypeError: ``matrices`` or ``change`` is not a function.
    """

    matrices: Callable[[Tensor], Tensor]
    change: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_function(self.matrices, "matrices", "(control) -> step matrices")
        if self.change is not None:
            form = "(control, matrices, state before, state after) -> derivative"
            check_function(self.change, "change", form)

    def __call__(self, state: Tensor, control: Tensor) -> Tensor:
        """Take one step: state (B, S), control of one time -> (B, S)."""
        return apply(self.matrices_of(control, 1, state), state)

    def matrices_of(self, controls: Tensor, leading: int, like: Tensor) -> Tensor:
        """Call ``matrices`` and check its result.

        Args:
            controls: (B, ...) or (T, B, ...).
            leading: number of their axes for samples and times, 1 or 2.
            like: (B, S), states that the matrices are for.

        Raises:
            TypeError: the result is not a tensor, or has another precision than the states.
            ValueError: it has another shape.
        """
        matrices = self.matrices(controls)
        if not isinstance(matrices, Tensor) or matrices.dtype != like.dtype:
            returned = matrices.dtype if isinstance(matrices, Tensor) else type(matrices).__name__
            raise TypeError(
                f"matrices must return a tensor of the state's dtype {like.dtype}, got {returned}; "
                "convert one of them"
            )
        expected = (*controls.shape[:leading], like.shape[1], like.shape[1])
        if matrices.shape != expected:
            raise ValueError(
                f"matrices must return {expected} for controls {tuple(controls.shape)}, the step "
                f"matrices last, got {tuple(matrices.shape)}; it is called for all samples and "
                "many times at once (expand what does not depend on the control)"
            )
        return matrices

    def control_jacobians(self, matrices: Tensor, states: Tensor, controls: Tensor) -> Tensor:
        """Compute the derivatives of all steps by their controls, (T, B, S, C).

        Args:
            matrices: matrices of all steps, (T, B, S, S).
            states: all states, (T + 1, B, S).
            controls: (T, B, ...).
        """
        if self.change is not None:
            jacobians = self.change(controls, matrices, states[:-1], states[1:])
            expected = (*states[:-1].shape, controls[0, 0].numel())
            if jacobians.shape != expected:
                raise ValueError(
                    f"change must return {expected}, states and controls last, got "
                    f"{tuple(jacobians.shape)}; a single control needs an axis of 1"
                )
            return jacobians

        # As for the Jacobians of other steps: torch.func transforms must not see this.
        with torch._C.DisableTorchFunction(), temporarily_clear_interpreter_stack():
            try:
                jacobians = self._forward_mode(states, controls)
            except RuntimeError as error:  # of a missing derivative, NotImplementedError is one
                if out_of_memory(error):
                    raise
                refusal = f"have no forward-mode derivative ({str(error).splitlines()[0]})"
            else:
                refusal = _disagreement(self, states, controls, jacobians)
            if refusal:
                report_slow_route(
                    f"the step matrices {refusal}; they are differentiated in reverse mode, one "
                    "entry of the state at a time, which change= would avoid"
                )
                jacobians = self._reverse_mode(states, controls)
        return jacobians

    def _forward_mode(self, states: Tensor, controls: Tensor) -> Tensor:
        """Differentiate by one control at a time, in forward mode: (T, B, S, C)."""
        flat = controls.flatten(2) if controls.ndim > 2 else controls.unsqueeze(2)

        # Each step depends on its own control alone: one tangent, the same unit vector for all
        # times and samples, gives a column of all their Jacobians, (dM/dc) s.
        def along(select: Tensor) -> Tensor:
            tangent = select.expand_as(flat).reshape(controls.shape)
            change = torch.func.jvp(self.matrices, (controls,), (tangent,))[1]
            return apply(change, states[:-1])

        unit = torch.eye(flat.shape[2], dtype=controls.dtype, device=controls.device)
        return torch.stack([along(select) for select in unit], -1)

    def _reverse_mode(self, states: Tensor, controls: Tensor) -> Tensor:
        """Differentiate one entry of the state at a time, in reverse mode: (T, B, S, C).

        Complex entries are differentiated as real and imaginary parts.
        """
        controls = controls.detach().requires_grad_()
        with torch.enable_grad():
            after = apply(self.matrices(controls), states[:-1])
            # Each step depends on its own control alone: the gradient of one entry, summed over
            # times and samples, has a row of all their Jacobians.
            parts = [torch.real(after), torch.imag(after)] if after.is_complex() else [after]
            sums = [part.sum((0, 1)).unbind() for part in parts]
        rows = [
            torch.autograd.grad(
                entry, controls, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0].reshape(*controls.shape[:2], -1)
            for entries in sums
            for entry in entries
        ]
        jacobians = torch.stack(rows, 2)
        return torch.complex(*jacobians.tensor_split(2, 2)) if after.is_complex() else jacobians


def apply(matrices: Tensor, states: Tensor) -> Tensor:
    """Apply matrices to states: (..., S, S), (..., S) -> (..., S)."""
    return (matrices @ states.unsqueeze(-1)).squeeze(-1)


def linear_states(
    step: LinearStep, state: Tensor, controls: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """Compute the T + 1 states (B, S); return also the matrices (T, B, S, S) of a single run."""
    states, matrices = [state.unsqueeze(-1)], state.new_empty(0)
    for times in runs(state, len(controls)):
        matrices = step.matrices_of(controls[times], 2, state)
        for matrix in matrices.unbind():
            states.append(torch.bmm(matrix, states[-1]))
    states = [column.squeeze(-1) for column in states]
    return states, matrices if len(matrices) == len(controls) else None


def linear_pieces(step: LinearStep, states: Tensor, controls: Tensor) -> Iterator[Piece]:
    """Yield the step Jacobians by state and control, run by run, backwards in time."""
    for times in reversed(list(runs(states[0], len(controls)))):
        matrices = step.matrices_of(controls[times], 2, states[0])
        run_states = states[times.start : times.stop + 1]
        check_repeatable(apply(matrices[0], run_states[0]), run_states[1])
        yield matrices, step.control_jacobians(matrices, run_states, controls[times])


def check_change(step: LinearStep, state: Tensor, control: Tensor) -> None:
    """Raise a ValueError unless ``change`` is the derivative of ``matrices``, of its shape."""
    if step.change is None:
        return
    after, cotangent, expected = _pulled_back(step, state, control)
    states = torch.stack([state, after])
    with torch.no_grad():
        matrices = step.matrices_of(control.unsqueeze(0), 2, state)
    change = step.control_jacobians(matrices, states, control.unsqueeze(0))
    if bool(_differs(change[0], cotangent, expected)):
        actual = _contracted(change[0], cotangent).view_as(expected)
        raise ValueError(
            "change is not the derivative of matrices by the control: they differ by "
            f"{float((actual - expected).abs().max()):.2g} where the derivative is up to "
            f"{float(expected.abs().max()):.2g}; leave change out to have it computed"
        )


def _disagreement(step: LinearStep, states: Tensor, controls: Tensor, jacobians: Tensor) -> str:
    """Describe how derivatives (T, B, S, C) by the controls differ from a backward pass, or "".

    Torch has a wrong forward mode for some operations, such as ``cholesky_inverse``. The
    derivatives at the middle time are compared.
    """
    time = len(controls) // 2
    after, cotangent, expected = _pulled_back(step, states[time], controls[time])
    check_repeatable(after, states[time + 1])
    if cached_decision(partial(bool, _differs(jacobians[time], cotangent, expected))):
        return "have another derivative in forward mode than in reverse mode"
    return ""


def _pulled_back(step: LinearStep, state: Tensor, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States after one step (B, S), a cotangent of them, and the resulting gradient of controls."""
    controls = control.detach().unsqueeze(0).requires_grad_()
    with torch.enable_grad():
        after = apply(step.matrices_of(controls, 2, state), state)[0]
    cotangent = cotangent_of(after)
    if not after.requires_grad:  # the same matrices for every control
        return after, cotangent, torch.zeros_like(control)
    (gradient,) = torch.autograd.grad(after, controls, cotangent, materialize_grads=True)
    return after.detach(), cotangent, gradient[0]


def _contracted(change: Tensor, cotangent: Tensor) -> Tensor:
    """Cotangents of real controls: (B, S, C), (B, S) -> (B, C)."""
    return torch.real((cotangent.conj().unsqueeze(-1) * change).sum(1))


def _differs(change: Tensor, cotangent: Tensor, expected: Tensor) -> Tensor:
    """Return whether a derivative (B, S, C) contradicts the reverse mode for a cotangent."""
    tolerance = 10 * torch.finfo(expected.dtype).eps ** 0.5
    scale = change.abs().max() * cotangent.abs().max()
    difference = _contracted(change, cotangent) - expected.reshape(len(change), -1)
    return difference.abs().max() > tolerance * scale


def runs(state: Tensor, times: int) -> Iterator[slice]:
    """Yield slices over time whose step matrices fit in memory, for states (B, S)."""
    length = max(1, MATRIX_BYTES // (state.numel() * state.shape[-1] * state.element_size()))
    for start in range(0, times, length):
        yield slice(start, min(start + length, times))
