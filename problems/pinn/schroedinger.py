"""The nonlinear Schrödinger equation of a focusing wave, periodic in space."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from problems._problem import Batch, Settings, parameter
from problems.pinn._jets import Jet, Rule, is_tanh_network, jet, propagate, tangents, taylor
from problems.pinn._physics_informed import Evolution, grid
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
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        {
            "adam": Settings(batch_size=20000, lr=1e-3, published=True),
            # Our own choice: about as many rows as with the other problems.
            "hig": Settings(batch_size=500, lr=1.0, rcond=1e-12, step_rule="line_search"),
            "gn": Settings(batch_size=500, lr=1.0, rcond=1e-6, step_rule="line_search"),
            "lm": Settings(batch_size=500, lr=1.0, damping=1e-3),
        }
    )

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
        pairs[..., 0] = torch.tensor([self.low[0], self.high[0]])
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
        return torch.cat([ends.value.diff(dim=-2), ends.derivatives[..., 0, :].diff(dim=-2)], -1)[
            ..., 0, :
        ]

    def _jointly(self, network: nn.Module, batch: Batch, groups: Sequence[str]) -> list[Tensor]:
        """Residuals (rows, 2) of some groups; a boundary pair makes two rows, of h and of h_x."""
        if not is_tanh_network(network):
            found = [self.residuals(network, group, batch[group]) for group in groups]
            return [residuals.reshape(-1, 2) for residuals in found]
        first, second = self.derivatives
        starts, rules = [], []
        for group in groups:
            points = batch[group]
            pairs = group == "boundary"
            starts.append(_pair(points) if pairs else Jet(points, tangents(points, first, second)))
            rules.append(_difference if pairs else taylor(first, second))
        sizes = [len(start.value) for start in starts]
        start = Jet(*(torch.cat(parts) for parts in zip(*starts, strict=True)))
        at = propagate(network, start, _each(rules, sizes))
        parts = zip(*(part.split(sizes) for part in at), strict=True)
        return [
            _periodic(Jet(*part))
            if group == "boundary"
            else self._residuals_of(group, batch[group], Jet(*part))
            for group, part in zip(groups, parts, strict=True)
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


# A pair of points has as many channels as an interior point if it is carried through the network
# as the left end with its slope, and what has to be added to both to get those of the right end.
# None but the value sees the biases, as with derivatives.


def _pair(points: Tensor) -> Jet:
    """The start of pairs (count, 2, 2), each of them twice, for the rows of h and of h_x."""
    left, right = points.repeat_interleave(2, 0).unbind(1)
    slope = tangents(left, 1, 0)
    return Jet(left, torch.cat([slope, (right - left).unsqueeze(1), torch.zeros_like(slope)], 1))


def _difference(z: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """The rule of tanh for the slope, the difference and the difference of the slopes."""
    slope, step, bend = channels.unbind(-2)
    left, right = z.tanh(), (z + step).tanh()
    left_slope = (1 - left.square()) * slope
    right_slope = (1 - right.square()) * (slope + bend)
    return left, torch.stack([left_slope, right - left, right_slope - left_slope], -2)


def _periodic(at: Jet) -> Tensor:
    """Rows (2 * pairs, 2) of differences: of h, then of h_x, pair by pair."""
    by_pair = at.derivatives.unflatten(0, (-1, 2))
    return torch.stack([by_pair[:, 0, 1], by_pair[:, 1, 2]], 1).flatten(0, 1)


def _each(rules: Sequence[Rule], sizes: Sequence[int]) -> Rule:
    """A rule of its own for each run of samples."""

    def rule(z: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
        runs = zip(rules, z.split(sizes), channels.split(sizes), strict=True)
        values, derivatives = zip(*(own(*run) for own, *run in runs), strict=True)
        return torch.cat(values), torch.cat(derivatives)

    return rule
