"""Adam moments and updates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hig.arguments import FRACTION, NON_NEGATIVE, check_number, check_same_device
from hig.errors import NonFiniteError, described

__all__ = [
    "AdamStep",
    "accumulable",
    "accumulation_dtype",
    "adam_step",
    "check_adam_group",
    "checked_step_size",
    "first_squares",
    "trained_part",
    "update_means",
]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the real dtype of means and factors for parameters of a dtype.

    Half-precision types have too few digits for running means: 0.999 times a number rounds to the
    number itself.
    """
    real = dtype.to_real() if dtype.is_complex else dtype
    return torch.promote_types(real, torch.float32)


def accumulable(gradient: Tensor) -> Tensor:
    """Convert a gradient for the moments: dense, real, in float32 or float64.

    Complex gradients become (..., 2) with real and imaginary parts, as in ``torch.optim.Adam``.
    """
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    if gradient.dtype in (torch.float32, torch.float64):
        return gradient
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient.resolve_conj())
    return gradient.to(accumulation_dtype(gradient.dtype))


class AdamStep:
    """Step of Adam for one parameter.

    Attributes:
        mean: mean of the gradients, without bias correction; owned by the state. Its last axis
            holds real and imaginary parts if the parameter is complex.
        correction: divisor of ``mean`` that corrects its bias.
        denominator: root of the corrected mean square, plus eps.
    """

    def __init__(self, state: dict[str, Any], betas: tuple[float, float], eps: float):
        first, second = (1 - beta ** state["step"] for beta in betas)
        self.mean, self.correction = state["exp_avg"], first
        # In the order of torch.optim.Adam, so that steps agree to the last bit.
        self.denominator = (state["exp_avg_sq"].sqrt() / second**0.5).add_(eps)

    def move(self, parameter: Tensor, lr: float) -> None:
        """Take the step in place."""
        size = checked_step_size(lr / self.correction, parameter)
        target = torch.view_as_real(parameter) if parameter.is_complex() else parameter
        target.addcdiv_(self.mean, self.denominator, value=-size)

    def norm(self) -> Tensor:
        """Compute the norm of the step per unit of learning rate, a scalar."""
        norm: Tensor = torch.linalg.vector_norm(self.mean / self.denominator) / self.correction
        return norm


def checked_step_size(size: float, parameter: Tensor) -> float:
    """Return a step size; raise a NonFiniteError if the parameter's dtype cannot represent it."""
    if size > torch.finfo(parameter.dtype).max:
        raise NonFiniteError(
            f"a step of size {size:g} is beyond the numbers of {parameter.dtype}; take a smaller lr"
        )
    return size


def adam_step(
    state: dict[str, Any], gradient: Tensor, betas: tuple[float, float], eps: float
) -> AdamStep:
    """Update the moments with an :func:`accumulable` gradient and return the step.

    A ``state`` that is empty gets ``step``, ``exp_avg`` and ``exp_avg_sq``.

    Kingma, Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015, arXiv 1412.6980.
    """
    (mean,) = update_means([state], [gradient], [betas[0]])
    if "exp_avg_sq" in state:
        state["exp_avg_sq"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    else:
        state["exp_avg_sq"] = first_squares(gradient, mean, betas[1], state["step"])
    return AdamStep(state, betas, eps)


def update_means(
    states: Sequence[dict[str, Any]], gradients: Sequence[Tensor], betas: Sequence[float]
) -> list[Tensor]:
    """Update running means of :func:`accumulable` gradients; return them with bias correction.

    Args:
        states: state of each parameter; an empty one gets ``step`` and ``exp_avg``.
        gradients: gradient of each parameter.
        betas: decay of the mean of each parameter.
    """
    for state, gradient in zip(states, gradients, strict=True):
        if "step" not in state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
        state["step"] += 1
    for beta in dict.fromkeys(betas):
        numbers = [number for number, its in enumerate(betas) if its == beta]
        means = [states[number]["exp_avg"] for number in numbers]
        torch._foreach_lerp_(means, [gradients[number] for number in numbers], 1 - beta)
    corrections = [1 - beta ** state["step"] for state, beta in zip(states, betas, strict=True)]
    if not states:
        return []
    return list(torch._foreach_div([state["exp_avg"] for state in states], corrections))


def first_squares(gradient: Tensor, mean: Tensor, beta: float, step: int) -> Tensor:
    """Return a first running mean of squares, without bias correction.

    In a first step these are the squares of the gradient. Later, where the mean has a history, it
    may be far above one gradient: with the larger of the two no entry moves further than in a first
    step of Adam.

    Args:
        gradient: the gradient.
        mean: running mean of the gradients, bias corrected.
        beta: decay of the mean of squares.
        step: number of gradients so far.
    """
    square = gradient.square()
    if step > 1:
        square = torch.maximum(square, mean.square())
    return square.mul_(1 - beta**step)


def check_adam_group(group: dict[str, Any]) -> None:
    """Check a new parameter group, except for its learning rate.

    Raises:
        TypeError: a parameter is sparse, or a setting is not a number.
        ValueError: betas or eps are out of range, or parameters are on several devices.
    """
    check_same_device({f"parameter {i}": p for i, p in enumerate(group["params"])})
    for parameter in group["params"]:
        if parameter.layout != torch.strided:
            raise TypeError(
                "parameters must be tensors with all entries in memory, got one of "
                f"{parameter.layout}; make it one with .to_dense()"
            )
    check_number(group["eps"], "eps", NON_NEGATIVE, "1e-8 is Adam's")
    betas, remedy = group["betas"], "(0.9, 0.999) are Adam's"
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, got {described(betas)}; {remedy}")
    for index, beta in enumerate(betas):
        check_number(beta, f"betas[{index}]", FRACTION, remedy)


def trained_part(group: dict[str, Any]) -> dict[str, Any]:
    """Return the learning rate of a group and its parameters that are not frozen.

    Frozen ones may be of any dtype. The parameters are an iterator, which costs nothing where the
    learning rate is one of all dtypes.
    """
    return {"lr": group["lr"], "params": (p for p in group["params"] if p.requires_grad)}
