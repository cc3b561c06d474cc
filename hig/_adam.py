"""Adam's moments and step, for what is compared with them or moved by them."""

from typing import Any

import torch
from torch import Tensor

from hig.errors import NonFiniteError

__all__ = ["AdamStep", "adam_step", "factor_of"]


class AdamStep:
    """What Adam would do with one parameter.

    Attributes:
        mean: mean of the gradients, without its correction; owned by the state.
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
        parameter.addcdiv_(self.mean, self.denominator, value=-size)

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
        gradient: the gradient of the parameter.
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
