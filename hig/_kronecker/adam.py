"""Adam's moments and step, for what is compared with them or moved by them."""

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
    "factor_of",
    "trained_part",
]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The real dtype in which means and factors of parameters of a dtype are kept.

    Half-precision types have too few digits for means: 0.999 times a number is the same number.
    """
    real = dtype.to_real() if dtype.is_complex else dtype
    return torch.promote_types(real, torch.float32)


def accumulable(gradient: Tensor) -> Tensor:
    """A gradient as the moments take it: all entries in memory, real, in float32 or float64.

    Args:
        gradient: of any shape; sparse ones are densified, complex ones become
            (..., 2) with real and imaginary parts, as ``torch.optim.Adam`` treats them.
    """
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    if gradient.dtype in (torch.float32, torch.float64):
        return gradient
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient.resolve_conj())
    return gradient.to(accumulation_dtype(gradient.dtype))


class AdamStep:
    """Step that Adam would take for one parameter.

    Attributes:
        mean: mean of the gradients, without its correction; owned by the state. Its last axis
            holds real and imaginary parts if the parameter is complex.
        correction: what ``mean`` is to be divided by.
        denominator: root of the corrected mean square, plus eps.
    """

    def __init__(self, state: dict[str, Any], betas: tuple[float, float], eps: float):
        first, second = (1 - beta ** state["step"] for beta in betas)
        self.mean, self.correction = state["exp_avg"], first
        # In the order of torch.optim.Adam, so that steps agree to the last bit.
        self.denominator = (state["exp_avg_sq"].sqrt() / second**0.5).add_(eps)

    def move(self, parameter: Tensor, lr: float) -> None:
        """Take the step in place."""
        size = factor_of(lr / self.correction, parameter)
        target = torch.view_as_real(parameter) if parameter.is_complex() else parameter
        target.addcdiv_(self.mean, self.denominator, value=-size)

    def square(self) -> Tensor:
        """Squared norm of the step per unit of learning rate, a scalar."""
        return (self.mean / self.denominator).square().sum() / self.correction**2


def factor_of(size: float, parameter: Tensor) -> float:
    """Return a step size that torch can multiply with in the dtype of a parameter.

    Raises:
        NonFiniteError: it is larger than all numbers of that dtype.
    """
    if size > torch.finfo(parameter.dtype).max:
        raise NonFiniteError(
            f"a step of size {size:g} is beyond the numbers of {parameter.dtype}; take a smaller lr"
        )
    return size


def adam_step(
    state: dict[str, Any], gradient: Tensor, betas: tuple[float, float], eps: float
) -> AdamStep:
    """Take a gradient into the moments.

    Kingma, Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015, arXiv 1412.6980.

    Args:
        state: the state of the parameter, with ``step``, ``exp_avg`` and ``exp_avg_sq``; filled
            where it has none yet.
        gradient: the gradient of the parameter, as :func:`accumulable` gives it.
        betas: factors by which the past counts in mean and mean square.
        eps: what is added to the denominator.
    """
    if "step" not in state:
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
    state["step"] += 1
    state["exp_avg"].lerp_(gradient, 1 - betas[0])
    state["exp_avg_sq"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    return AdamStep(state, betas, eps)


def check_adam_group(group: dict[str, Any]) -> None:
    """Check a new parameter group, but for its learning rate.

    Args:
        group: with parameters of any dtype, ``betas`` and ``eps``.

    Raises:
        TypeError: for sparse parameters, and for what is not a number.
        ValueError: for betas or eps out of range, or parameters on several devices.
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
    """The group without frozen parameters, which may be of any dtype."""
    return {**group, "params": [p for p in group["params"] if p.requires_grad]}
