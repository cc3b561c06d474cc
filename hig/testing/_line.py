"""Comparison of finite differences and the derivative along a line of inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hig.testing._differences import OFFSETS, noise, slope
from hig.testing._simulator import SimulationError, Simulator

__all__ = ["Estimate", "Line", "estimate", "search_steps"]

# Largest relative difference of an exact derivative and differences of sixth order.
_AGREEMENT = 1e-6


@dataclass(frozen=True)
class Line:
    """Simulator at x + t v, where v moves only one input.

    Attributes:
        simulator: the simulator.
        inputs: x, one tensor (batch, ...) each.
        position: the input that v moves.
        direction: v, shape and dtype of that input.
        middle: the outputs at x, float64 (outputs,).
        eps: relative rounding of inputs and outputs.
    """

    simulator: Simulator
    inputs: Sequence[Tensor]
    position: int
    direction: Tensor
    middle: Tensor
    eps: float

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of outputs as (samples, outputs per sample), for views."""
        return self.simulator.samples, -1

    def at(self, t: float) -> list[Tensor]:
        """Return the inputs x + t v."""
        moved = self.inputs[self.position] + t * self.direction
        return [moved if i == self.position else x for i, x in enumerate(self.inputs)]

    def values(self, t: float) -> Tensor:
        """Compute the outputs at t, float64 (outputs,); NaN if the simulator raises an error."""
        if t == 0:
            return self.middle
        try:
            return self.simulator(*self.at(t)).double().flatten()
        except SimulationError:  # too far away; smaller steps decide
            return torch.full_like(self.middle, float("nan"))

    def gradient(self, t: float, cotangent: Tensor) -> Tensor:
        """Compute the gradient by the input at t for a cotangent (outputs,), both float64."""
        leaves, output = self.simulator.with_graph(self.at(t))
        gradients = self.simulator.pulled_back(
            output, leaves, cotangent.view_as(output).to(output.dtype)
        )
        return gradients[self.simulator.floating.index(self.position)].double()

    def derivative(self, t: float, cotangent: Tensor) -> float:
        """Derivative along v of the outputs weighted by a cotangent, by a backward pass."""
        return float((self.gradient(t, cotangent) * self.direction.double()).sum())


@dataclass(frozen=True)
class Estimate:
    """Derivative along a line, by differences with one step and by a backward pass.

    Attributes:
        step: step of the differences.
        cotangent: weights of the outputs, float64 (outputs,).
        slopes: derivatives of all outputs by differences, float64 (outputs,).
        expected: derivative of the weighted outputs by differences.
        claimed: derivative of the weighted outputs by a backward pass.
        size: norm of the derivatives of the weighted outputs, to which errors are relative.
        uncertainty: relative uncertainty of ``expected``.
        noise: noise of the weighted outputs, relative to their size.
        tolerance: largest relative error of a correct derivative.
    """

    step: float
    cotangent: Tensor
    slopes: Tensor
    expected: float
    claimed: float
    size: float
    uncertainty: float
    noise: float
    tolerance: float

    @property
    def error(self) -> float:
        """Relative difference of the two derivatives."""
        difference = abs(self.claimed - self.expected)
        if difference == 0:
            return 0.0
        return difference / self.size if self.size > 0 else float("inf")

    @property
    def agrees(self) -> bool:
        """Return whether they are equal within the resolution of the differences."""
        return self.error <= self.tolerance


def estimate(line: Line, step: float, seed: int) -> Estimate:
    """Compare a backward pass with differences of one step."""
    values = torch.stack([line.values(k * step) for k in OFFSETS])
    slopes, spread = slope(values, step)
    if not (slopes.isfinite().all() and spread.isfinite().all()):
        nothing = torch.zeros_like(line.middle)
        infinite = float("inf")
        return Estimate(step, nothing, nothing, 0.0, 1.0, 0.0, infinite, infinite, 0.0)
    cotangent = _balanced(slopes, spread, line.shape, seed)
    expected, uncertainty = (float(x) for x in slope(values @ cotangent, step))
    size = max(float((cotangent * slopes).norm()), abs(expected))
    outputs = float((cotangent * line.middle).norm()) + size
    rough = float(noise(values @ cotangent, OFFSETS)) / max(outputs, 1e-300)
    relative = uncertainty / size if size > 0 else 0.0
    tolerance = max(_AGREEMENT, 100 * line.eps)
    if rough <= 100 * line.eps and relative < 0.1:
        tolerance = max(tolerance, 4 * relative)  # the differences are inexact only by rounding
    claimed = line.derivative(0, cotangent)
    return Estimate(step, cotangent, slopes, expected, claimed, size, relative, rough, tolerance)


def _balanced(slopes: Tensor, spread: Tensor, shape: tuple[int, int], seed: int) -> Tensor:
    """Weights (outputs,) that make all outputs count alike, whatever their units.

    For the first seed, the signs are those of the slopes, so that errors of one kind add up, and
    random for others. Outputs that differences do not resolve count less.
    """
    table = slopes.view(shape).abs()
    place = table.square().mean(0, keepdim=True).sqrt()
    sample = table.square().mean(1, keepdim=True).sqrt()
    # A slope may vanish by chance, so that its error is not small relative to it.
    size = (table.square() + (0.1 * torch.minimum(place, sample)).square()).sqrt()
    size = (size.square() + (spread.view(shape) / _AGREEMENT).square()).sqrt()
    typical = size[size > 0].median() if bool((size > 0).any()) else torch.ones_like(size[0, 0])
    weights = (typical / torch.where(size > 0, size, typical)).flatten()
    if seed == 0:
        return torch.where(slopes < 0, -weights, weights)
    generator = torch.Generator("cpu").manual_seed(seed)
    signs = (
        torch.randint(0, 2, weights.shape, generator=generator, device="cpu").to(weights) * 2 - 1
    )
    return signs * weights


def search_steps(line: Line, seed: int) -> list[Estimate]:
    """Make estimates with several steps; the last one agrees if any does.

    Smaller steps have less truncation error and more rounding error: the search continues in the
    direction in which the uncertainty falls.
    """
    estimates = [estimate(line, 1e-2, seed)]
    if estimates[0].agrees:
        return estimates
    estimates.append(estimate(line, 1e-3, seed))
    if all(one.uncertainty < min(1e-4, 0.1 * one.error) for one in estimates):
        return estimates  # resolved by both, and different
    first, second = (one.uncertainty for one in estimates)
    if second < 2 * first or second == float("inf"):
        _walk(line, seed, estimates, [10.0**-k for k in range(4, 11)])
    best = min(one.uncertainty for one in estimates)
    if not estimates[-1].agrees and best > 1e-4:
        _walk(line, seed, estimates, [0.1, 1.0, 10.0, 100.0, 1e3, 1e4])
    return estimates


def _walk(line: Line, seed: int, estimates: list[Estimate], steps: Sequence[float]) -> None:
    """Add estimates until one agrees, or the uncertainty rises well above the best one."""
    for step in steps:
        if estimates[-1].agrees:
            return
        estimates.append(estimate(line, step, seed))
        best = min(one.uncertainty for one in estimates)
        if best < float("inf") and estimates[-1].uncertainty > 30 * best:
            return
