"""Checks of a step: whether its Jacobians can be computed sample by sample."""

import torch
from torch import Tensor

from hig._simulation.step_jacobians import Step
from hig._torch.autograd_graph import leaves, reachable_nodes

__all__ = ["IN_PLACE", "check_state", "refusal_of_step"]

IN_PLACE = (
    "the step changes its state or control in place; let it return a new tensor, all states are "
    "needed for the derivative"
)


def refusal_of_step(step: Step, state: Tensor, control: Tensor) -> str:
    """Return why the step Jacobians of single samples are not the whole derivative, or "".

    The step is run once, near the given point, with a graph. A random half of the samples must
    not have gradients by the others, and the graph must end at state and control alone.

    Raises:
        TypeError: the step does not return a tensor.
        ValueError: it returns another shape or dtype, or changes its arguments in place.
    """
    near = [_near(tensor).requires_grad_() for tensor in (state, control)]
    with torch.enable_grad():
        arguments = [tensor.clone() for tensor in near]  # not leaves, which may not change in place
        after = step(*arguments)
    _check_output(after, state, arguments)
    if not after.requires_grad:
        return "the step returns a tensor without a graph (detached, or computed in no_grad)"
    if _other_leaves(after, near):
        return "the step depends on another tensor that requires a gradient"
    moved = torch.randperm(len(state), generator=_GENERATOR, device="cpu") < (len(state) + 1) // 2
    mask = moved.to(state.device).view(-1, *[1] * (state.ndim - 1))
    gradients = torch.autograd.grad(after, near, mask.expand_as(after).to(after), allow_unused=True)
    for gradient in gradients:
        if gradient is not None:
            others = gradient[~moved.to(gradient.device)]
            # Exactly zero: products with a zero have no rounding. NaN is 0 times infinity.
            if bool(((others != 0) & torch.isfinite(others)).any()):
                return "the samples of the batch influence one another in the step"
    return ""


# The halves differ from call to call, so that no pair of samples is in the same half for long. A
# separate generator: the check must not change the user's random state.
_GENERATOR = torch.Generator("cpu").manual_seed(0)


def _near(tensor: Tensor) -> Tensor:
    """Move a point a little: at a special one, such as rest, an influence may vanish."""
    noise = torch.randn(tensor.shape, generator=_GENERATOR, dtype=torch.float64, device="cpu")
    noise = noise.to(device=tensor.device, dtype=tensor.dtype)
    return tensor + 1e-3 * noise * (1 + tensor.abs())


def check_state(after: Tensor, state: Tensor) -> None:
    """Raise a TypeError or ValueError unless a step returned a tensor of the state's shape."""
    if not isinstance(after, Tensor):
        raise TypeError(
            f"the step must return the next state as one tensor, got {type(after).__name__}; "
            "stack its parts along the last axis (torch.cat)"
        )
    if after.shape != state.shape:
        raise ValueError(
            f"the step must keep the shape of the state, {tuple(state.shape)}, got "
            f"{tuple(after.shape)}; check its broadcasting"
        )


def _check_output(after: Tensor, state: Tensor, arguments: list[Tensor]) -> None:
    check_state(after, state)
    if after.dtype != state.dtype:
        raise ValueError(
            f"the step must keep the dtype of the state, {state.dtype}, got {after.dtype}; convert "
            "what is of another one"
        )
    if any(tensor._version for tensor in arguments):
        raise ValueError(IN_PLACE)


def _other_leaves(after: Tensor, inputs: list[Tensor]) -> bool:
    """Return whether the graph ends at a leaf that is not one of ``inputs``."""
    known = {id(tensor) for tensor in inputs}
    return any(id(leaf) not in known for leaf in leaves(reachable_nodes(after)))
