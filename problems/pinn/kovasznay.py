"""Kovasznay's flow behind a grid of bars, steady and with a known solution."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from problems._problem import Settings, parameter
from problems.pinn._jets import Jet
from problems.pinn._navier_stokes import navier_stokes
from problems.pinn._physics_informed import PhysicsInformed
from problems.pinn._sampling import grid
from problems.pinn._settings import settings_for


@dataclass(frozen=True)
class Kovasznay(PhysicsInformed):
    r"""Steady Navier–Stokes equations for x in [-0.5, 1] and y in [-0.5, 1.5].

    .. math::
        u = 1 - e^{\lambda x} \cos 2 \pi y, \quad
        v = \tfrac{\lambda}{2 \pi} e^{\lambda x} \sin 2 \pi y, \quad
        p = \tfrac12 (1 - e^{2 \lambda x}), \quad
        \lambda = \tfrac{Re}{2} - \sqrt{\tfrac{Re^2}{4} + 4 \pi^2}

    (Kovasznay, Proc. Cambridge Phil. Soc. 44 (1948)) is prescribed on the boundary, pressure
    included. There are two losses; the test grid has 101 × 101 points.

    Attributes:
        reynolds: Reynolds number.
    """

    reynolds: float = parameter(40.0, "Reynolds number")

    name: ClassVar[str] = "kovasznay"
    low: ClassVar[tuple[float, ...]] = (-0.5, -0.5)
    high: ClassVar[tuple[float, ...]] = (1.0, 1.5)
    walls: ClassVar[tuple[int, ...]] = (0, 1)
    coordinates: ClassVar[tuple[str, ...]] = ("x", "y")
    unknowns: ClassVar[tuple[str, ...]] = ("u", "v", "p")
    derivatives: ClassVar[tuple[int, int]] = (2, 2)
    settings: ClassVar[Mapping[str, Settings]] = settings_for(20000, 400)

    def exact(self, points: Tensor) -> Tensor:
        """The solution (..., 3) at points (..., 2)."""
        rate = self.reynolds / 2 - math.sqrt(self.reynolds**2 / 4 + 4 * math.pi**2)
        x, y = points.unbind(-1)
        decay, phase = (rate * x).exp(), 2 * math.pi * y
        u = 1 - decay * phase.cos()
        v = rate / (2 * math.pi) * decay * phase.sin()
        return torch.stack([u, v, 0.5 * (1 - decay.square())], -1)

    def equation(self, at: Jet) -> Tensor:
        """Residuals (..., 3): momentum along x and y, continuity."""
        return navier_stokes(at, 1 / self.reynolds)

    def prescribed(self, group: str, points: Tensor) -> Tensor:
        """The solution (..., 3)."""
        return self.exact(points)

    def solution(self) -> tuple[Tensor, Tensor]:
        """The test grid (10201, 2) and the solution on it (10201, 3)."""
        points = grid(self.low, self.high, (101, 101))
        return points, self.exact(points)
