"""Explicit time integrators for ordinary differential equations with a control."""

from collections.abc import Callable

import torch
from torch import Tensor


def rk4(
    derivative: Callable[[Tensor, Tensor], Tensor], state: Tensor, control: Tensor, dt: float
) -> Tensor:
    """One step of the classical fourth-order Runge–Kutta method; the control is constant in it.

    ``derivative(state, control)`` has the shape of the state, which is any.
    """
    # Small states make this a matter of launches: `alpha` saves one operation per stage.
    k1 = derivative(state, control)
    k2 = derivative(torch.add(state, k1, alpha=0.5 * dt), control)
    k3 = derivative(torch.add(state, k2, alpha=0.5 * dt), control)
    k4 = derivative(torch.add(state, k3, alpha=dt), control)
    slope = torch.add(k1 + k4, k2 + k3, alpha=2)
    return torch.add(state, slope, alpha=dt / 6)
