"""Burgers' equation, whose solution steepens into a shock."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from problems._problem import Settings, parameter
from problems.pinn._cole_hopf import burgers_solution
from problems.pinn._evolution import Evolution
from problems.pinn._jets import Jet
from problems.pinn._sampling import grid
from problems.pinn._settings import settings_for


@dataclass(frozen=True)
class Burgers(Evolution):
    r""":math:`u_t + u u_x = \nu u_{xx}` for x in [-1, 1] and t in [0, 1].

    Conditions are :math:`u(x, 0) = -\sin \pi x` and :math:`u(\pm 1, t) = 0`. The solution is that
    of Cole and Hopf, on a grid of 256 places and 101 times.

    Attributes:
        viscosity: ν, from 0.001 to 1.
    """

    points_interior: int = parameter(10000, "interior points of a published batch")
    points_boundary: int = parameter(250, "boundary points for so many interior ones")
    points_initial: int = parameter(250, "initial points for so many interior ones")
    viscosity: float = parameter(0.01 / math.pi, "viscosity ν")

    name: ClassVar[str] = "burgers"
    low: ClassVar[tuple[float, ...]] = (-1.0, 0.0)
    high: ClassVar[tuple[float, ...]] = (1.0, 1.0)
    walls: ClassVar[tuple[int, ...]] = (0,)
    coordinates: ClassVar[tuple[str, ...]] = ("x", "t")
    unknowns: ClassVar[tuple[str, ...]] = ("u",)
    derivatives: ClassVar[tuple[int, int]] = (2, 1)
    settings: ClassVar[Mapping[str, Settings]] = settings_for(10000, 1000)

    def __post_init__(self):
        super().__post_init__()
        if not 1e-3 <= self.viscosity <= 1:
            raise ValueError(
                f"viscosity must be from 0.001 to 1, got {self.viscosity}; for others the solution "
                f"is not computed to enough digits, the default is {0.01 / math.pi:.6f}"
            )

    def equation(self, at: Jet) -> Tensor:
        """Residual (..., 1)."""
        u_x, u_t, u_xx = at.derivatives.unbind(-2)
        return u_t + at.value * u_x - self.viscosity * u_xx

    def prescribed(self, group: str, points: Tensor) -> Tensor:
        """Zero at the ends, a sine at the start (..., 1)."""
        x = points[..., :1]
        return torch.zeros_like(x) if group == "boundary" else -(math.pi * x).sin()

    def solution(self) -> tuple[Tensor, Tensor]:
        """The test grid (25856, 2) and the solution on it (25856, 1)."""
        points = grid(self.low, self.high, (256, 101))
        return points, burgers_solution(*points.unbind(1), self.viscosity).unsqueeze(1)
