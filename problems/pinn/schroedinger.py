"""The nonlinear Schrödinger equation of a focusing wave, periodic in space."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from problems._problem import Batch, Settings, parameter
from problems.pinn._evolution import Evolution
from problems.pinn._jets import Jet, is_tanh_network, jet, tangents, taylor
from problems.pinn._pairs import difference_rule, pair_rows, propagate_side_by_side, start_pairs
from problems.pinn._sampling import grid
from problems.pinn._settings import settings_for
from problems.pinn._split_step import split_step

PLACES, FRAMES = 256, 101  # of the test grid


@dataclass(frozen=True)
class Schroedinger(Evolution):
    r""":math:`i h_t + \tfrac12 h_{xx} + |h|^2 h = 0` for x in [-5, 5] and t in [0, π/2].

    The wave starts as :math:`h = 2 / \cosh x`, and h and :math:`h_x` are periodic. Unknowns are the
    real and the imaginary part. The solution is computed by splitting on a fine grid and kept at
    256 places and 101 times.

    A boundary point is a pair of points, the two ends at one time, and has four residuals: the
    differences of h and of :math:`h_x`.
    """

    points_boundary: int = parameter(500, "boundary pairs for so many interior points")

    name: ClassVar[str] = "schroedinger"
    low: ClassVar[tuple[float, ...]] = (-5.0, 0.0)
    high: ClassVar[tuple[float, ...]] = (5.0, math.pi / 2)
    walls: ClassVar[tuple[int, ...]] = (0,)
    coordinates: ClassVar[tuple[str, ...]] = ("x", "t")
    unknowns: ClassVar[tuple[str, ...]] = ("real", "imaginary")
    derivatives: ClassVar[tuple[int, int]] = (2, 1)
    settings: ClassVar[Mapping[str, Settings]] = settings_for(20000, 500)

    def equation(self, at: Jet) -> Tensor:
        """Residuals (..., 2): real and imaginary part."""
        h, (_, h_t, h_xx) = at.value, at.derivatives.unbind(-2)
        rotated = torch.stack([-h_t[..., 1], h_t[..., 0]], -1)  # i h_t
        return rotated + 0.5 * h_xx + h.square().sum(-1, keepdim=True) * h

    def prescribed(self, group: str, points: Tensor) -> Tensor:
        """The wave at the start (..., 2)."""
        amplitude = 2 / points[..., 0].cosh()
        return torch.stack([amplitude, torch.zeros_like(amplitude)], -1)

    def _draw_group(self, group: str, count: int, generator: torch.Generator) -> Tensor:
        points = super()._draw_group(group, count, generator)
        if group != "boundary":
            return points
        pairs = points.unsqueeze(1).repeat(1, 2, 1)
        pairs[:, 0, 0], pairs[:, 1, 0] = self.low[0], self.high[0]
        return pairs

    def residuals(self, network: nn.Module, group: str, points: Tensor) -> Tensor:
        """Residuals of one group; see `PhysicsInformed`.

        Args:
            network: Maps (..., 2) to (..., 2).
            group: ``"interior"``, ``"boundary"`` or ``"initial"``.
            points: (count, 2), or pairs (count, 2, 2) for the boundary.

        Returns:
            (count, 2), or (count, 4) for the boundary.
        """
        if group != "boundary":
            return super().residuals(network, group, points)
        ends = jet(network, points, 1, 0)
        left, right = torch.cat([ends.value, ends.derivatives[..., 0, :]], -1).unbind(1)
        return right - left

    def _jointly(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        """Residuals (rows, 2) of all groups; a boundary pair makes two rows, of h and of h_x."""
        groups = tuple(self.group_sizes)
        points = [batch[group] for group in groups]
        if not is_tanh_network(network):
            found = zip(groups, points, strict=True)
            return [self.residuals(network, *part).reshape(-1, 2) for part in found]
        first, second = self.derivatives
        paired = [group == "boundary" for group in groups]
        starts = [
            start_pairs(own) if pairs else Jet(own, tangents(own, first, second))
            for own, pairs in zip(points, paired, strict=True)
        ]
        rules = [difference_rule if pairs else taylor(first, second) for pairs in paired]
        return [
            pair_rows(at) if group == "boundary" else self._residuals_of(group, own, at)
            for group, own, at in zip(
                groups, points, propagate_side_by_side(network, starts, rules), strict=True
            )
        ]

    def solution(self) -> tuple[Tensor, Tensor]:
        """The test grid (25856, 2), without the right end, and the solution on it (25856, 2)."""
        step = (self.high[0] - self.low[0]) / PLACES
        points = grid(self.low, (self.high[0] - step, self.high[1]), (PLACES, FRAMES))
        waves = reference_waves(4 * PLACES, FRAMES, 16)[:, ::4].T
        return points, torch.view_as_real(torch.tensor(waves)).flatten(0, 1)


def reference_waves(modes: int, frames: int, steps: int) -> np.ndarray:
    """The solution, complex (frames, modes); see `split_step`."""
    x = np.linspace(-5, 5, modes, endpoint=False)
    return split_step(2 / np.cosh(x), 10.0, math.pi / 2, frames, steps)
