"""Localisation of a wrong derivative: bisection of the outputs and inputs."""

from dataclasses import replace

import torch
from torch import Tensor

from hig.testing._differences import OFFSETS, slope
from hig.testing._line import Estimate, Line
from hig.testing._simulator import SimulationError

__all__ = ["localise"]

# Parts with less relative influence than this are not examined separately.
_INFLUENCE = 1e-2


def localise(line: Line, estimate: Estimate) -> tuple[Estimate, str]:
    """Find the part of the outputs and inputs in which the relative difference is largest.

    A wrong entry among thousands of correct ones is a small part of any sum of them: the worse
    half is divided again, down to single entries.

    Returns:
        The estimate for that part; the samples of the outputs, in words, empty for all of them.
    """
    estimate = _narrow_outputs(line, estimate)
    samples = estimate.cotangent.view(line.shape).abs().sum(1).nonzero().flatten().tolist()
    few = 0 < len(samples) < line.simulator.samples
    place = f", in samples {samples[:6]}" if few else ""
    return _narrow_inputs(line, estimate), place


def _halves(entries: Tensor) -> list[Tensor]:
    """Masks of the first and the second half of the chosen entries."""
    indices = entries.nonzero().flatten()
    halves = []
    for part in indices.tensor_split(2):
        mask = torch.zeros_like(entries)
        mask[part] = True
        halves.append(mask)
    return halves


def _narrow_outputs(line: Line, estimate: Estimate) -> Estimate:
    """Bisect the outputs."""
    values = torch.stack([line.values(k * estimate.step) for k in OFFSETS])
    part = best = estimate
    while int((part.cotangent != 0).sum()) > 1:
        try:
            parts = [_part(line, estimate, values, half) for half in _halves(part.cotangent != 0)]
        except SimulationError:  # not all solvers accept cotangents that are zero for samples
            return best
        part = max(parts, key=_mismatch)
        if not _clear(part):
            return best
        best = max(best, part, key=lambda one: one.error)
    return best


def _mismatch(estimate: Estimate) -> float:
    return abs(estimate.claimed - estimate.expected)


def _clear(estimate: Estimate) -> bool:
    return estimate.size > 0 and estimate.error > 10 * estimate.uncertainty


def _part(line: Line, estimate: Estimate, values: Tensor, mask: Tensor) -> Estimate:
    """Make the estimate for some of the outputs."""
    cotangent = torch.where(mask, estimate.cotangent, 0)
    expected, uncertainty = (float(x) for x in slope(values @ cotangent, estimate.step))
    size = max(float((cotangent * estimate.slopes).norm()), abs(expected))
    return replace(
        estimate,
        cotangent=cotangent,
        expected=expected,
        claimed=line.derivative(0, cotangent),
        size=size,
        uncertainty=uncertainty / size if size > 0 else 0.0,
    )


def _narrow_inputs(line: Line, estimate: Estimate) -> Estimate:
    """Bisect the entries of the input."""
    gradient = line.gradient(0, estimate.cotangent).flatten()
    part = best = estimate
    while int((line.direction != 0).sum()) > 1:
        pairs = []
        for half in _halves(line.direction.flatten() != 0):
            direction = torch.where(half.view_as(line.direction), line.direction, 0)
            claimed = float((gradient * direction.double().flatten()).sum())
            shorter = replace(line, direction=direction)
            pairs.append((shorter, _along(shorter, estimate, claimed)))
        line, part = max(pairs, key=lambda pair: _mismatch(pair[1]))
        if not _clear(part) or part.size < _INFLUENCE * estimate.size:
            return best
        best = max(best, part, key=lambda one: one.error)
    return best


def _along(line: Line, estimate: Estimate, claimed: float) -> Estimate:
    """Make the estimate along a line that moves fewer entries, for the same outputs."""
    values = torch.stack([line.values(k * estimate.step) for k in OFFSETS])
    slopes, _ = slope(values, estimate.step)
    expected, uncertainty = (float(x) for x in slope(values @ estimate.cotangent, estimate.step))
    size = max(float((estimate.cotangent * slopes).norm()), abs(expected))
    relative = uncertainty / size if size > 0 else 0.0
    return replace(
        estimate, slopes=slopes, expected=expected, claimed=claimed, size=size, uncertainty=relative
    )
