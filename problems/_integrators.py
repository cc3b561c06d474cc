"""Explicit time integrators for ordinary differential equations with a control."""

from collections.abc import Callable

from torch import Tensor


def rk4(
    derivative: Callable[[Tensor, Tensor], Tensor], state: Tensor, control: Tensor, dt: float
) -> Tensor:
    """One step of the classical fourth-order Runge–Kutta method.

    Args:
        derivative: Time derivative ``f(state, control)``, of the shape of ``state``.
        state: State at the start of the step, any shape.
        control: Control, constant over the step, whatever shape ``derivative`` takes.
        dt: Step length, in the time unit of ``derivative``.

    Returns:
        State at the end of the step; shape, dtype and device of ``state``.
    """
    k1 = derivative(state, control)
    k2 = derivative(state + 0.5 * dt * k1, control)
    k3 = derivative(state + 0.5 * dt * k2, control)
    k4 = derivative(state + dt * k3, control)
    return state + dt / 6 * (k1 + 2 * (k2 + k3) + k4)
