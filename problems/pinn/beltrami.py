"""A Beltrami flow in three dimensions, unsteady and with a known solution."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from problems._problem import Settings, parameter
from problems.pinn._evolution import Evolution
from problems.pinn._jets import Jet
from problems.pinn._navier_stokes import navier_stokes
from problems.pinn._sampling import grid
from problems.pinn._settings import settings_for


@dataclass(frozen=True)
class Beltrami(Evolution):
    r"""Navier–Stokes equations on [-1, 1]³ for t in [0, 1].

    Velocity and vorticity are parallel, and what is advected is balanced by the pressure:

    .. math::
        u = -(e^x \sin(y + z) + e^z \cos(x + y))\, e^{-\nu t}, \qquad
        p = -\tfrac12 |v|^2

    with v and w by cyclic exchange of the coordinates (Ethier, Steinman, Int. J. Numer. Methods
    Fluids 19 (1994), with a = d = 1). It is prescribed on the boundary and at t = 0, pressure
    included. The test grid has 11 points along each of the four coordinates.

    Attributes:
        reynolds: Reynolds number 1 / ν.
    """

    points_interior: int = parameter(25000, "interior points of a published batch")
    points_boundary: int = parameter(5000, "boundary points for so many interior ones")
    points_initial: int = parameter(5000, "initial points for so many interior ones")
    reynolds: float = parameter(1.0, "Reynolds number")

    name: ClassVar[str] = "beltrami"
    low: ClassVar[tuple[float, ...]] = (-1.0, -1.0, -1.0, 0.0)
    high: ClassVar[tuple[float, ...]] = (1.0, 1.0, 1.0, 1.0)
    walls: ClassVar[tuple[int, ...]] = (0, 1, 2)
    coordinates: ClassVar[tuple[str, ...]] = ("x", "y", "z", "t")
    unknowns: ClassVar[tuple[str, ...]] = ("u", "v", "w", "p")
    derivatives: ClassVar[tuple[int, int]] = (4, 3)
    settings: ClassVar[Mapping[str, Settings]] = settings_for(25000, 250)

    def exact(self, points: Tensor) -> Tensor:
        """The solution (..., 4) at points (..., 4)."""
        space, t = points[..., :3], points[..., 3:]
        following, last = space.roll(-1, -1), space.roll(1, -1)
        shape = space.exp() * (following + last).sin() + last.exp() * (space + following).cos()
        velocity = -shape * (-t / self.reynolds).exp()
        pressure = -0.5 * velocity.square().sum(-1, keepdim=True)
        return torch.cat([velocity, pressure], -1)

    def equation(self, at: Jet) -> Tensor:
        """Residuals (..., 4): momentum along x, y and z, continuity."""
        return navier_stokes(at, 1 / self.reynolds)

    def prescribed(self, group: str, points: Tensor) -> Tensor:
        """The solution (..., 4)."""
        return self.exact(points)

    def solution(self) -> tuple[Tensor, Tensor]:
        """The test grid (14641, 4) and the solution on it (14641, 4)."""
        points = grid(self.low, self.high, (11, 11, 11, 11))
        return points, self.exact(points)
