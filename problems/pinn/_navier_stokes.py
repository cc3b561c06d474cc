"""Residuals of the incompressible Navier–Stokes equations."""

import torch
from torch import Tensor

from problems.pinn._jets import Jet


def navier_stokes(at: Jet, viscosity: float) -> Tensor:
    r"""Momentum and continuity, in any number n of space dimensions, with or without time.

    .. math::
        v_t + (v \cdot \nabla) v + \nabla p - \nu \Delta v, \qquad \nabla \cdot v

    Args:
        at: Value (..., n + 1), the velocity and then the pressure, with first derivatives along
            the n coordinates of space and along time, if there is one, and second derivatives
            along those of space.
        viscosity: ν, the inverse of the Reynolds number.

    Returns:
        (..., n + 1), the continuity last.
    """
    n = at.value.shape[-1] - 1
    velocity = at.value[..., :n]
    gradient = at.derivatives[..., :n, :n]  # [coordinate, component]
    momentum = (
        (velocity.unsqueeze(-1) * gradient).sum(-2)
        + at.derivatives[..., :n, n]
        - viscosity * at.derivatives[..., -n:, :n].sum(-2)
    )
    if at.derivatives.shape[-2] > 2 * n:
        momentum = momentum + at.derivatives[..., n, :n]
    divergence = gradient.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    return torch.cat([momentum, divergence], -1)
