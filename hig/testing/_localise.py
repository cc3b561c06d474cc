"""Which outputs and inputs a wrong derivative belongs to: bisection of both."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hig.testing._differences import OFFSETS, slope
from hig.testing._line import Estimate, Line
from hig.testing._simulator import SimulationError

__all__ = ["Located", "localised"]

# Parts of less influence than this are not looked at alone.
_INFLUENCE = 1e-4


@dataclass(frozen=True)
class Located:
    """A line that moves some of the inputs, and in which outputs the difference lies.

    Attributes:
        line: the line.
        place: the samples, in words; empty where it is all of them.
    """

    line: Line
    place: str


def localised(line: Line, found: Estimate) -> tuple[Located, Estimate]:
    """The part of the outputs and inputs in which the relative difference is largest.

    A wrong entry among thousands of right ones is a small part of any sum of them: halves are
    followed down to where the error no longer grows.
    """
    found = _of_outputs(line, found)
    samples = found.cotangent.view(line.shape).abs().sum(1).nonzero().flatten().tolist()
    few = 0 < len(samples) < line.simulator.samples
    place = f", in samples {samples[:6]}" if few else ""
    line, found = _of_inputs(line, found)
    return Located(line, place), found


def _halves(chosen: Tensor) -> list[Tensor]:
    """Masks of the first and the second half of the chosen entries."""
    indices = chosen.nonzero().flatten()
    halves = []
    for part in indices.tensor_split(2):
        mask = torch.zeros_like(chosen)
        mask[part] = True
        halves.append(mask)
    return halves


def _of_outputs(line: Line, found: Estimate) -> Estimate:
    values = torch.stack([line.values(k * found.step) for k in OFFSETS])
    chosen = found.cotangent != 0
    while int(chosen.sum()) > 1:
        try:
            parts = [_part(line, found, values, half) for half in _halves(chosen)]
        except SimulationError:  # not all solvers take cotangents of some samples
            return found
        best = max(parts, key=lambda part: part.error if _clear(part) else -1.0)
        if not _clear(best) or best.error < 1.05 * found.error:
            return found
        found, chosen = best, best.cotangent != 0
    return found


def _clear(found: Estimate) -> bool:
    return found.size > 0 and found.error > 10 * found.uncertainty


def _part(line: Line, found: Estimate, values: Tensor, mask: Tensor) -> Estimate:
    """The estimate for some of the outputs."""
    cotangent = torch.where(mask, found.cotangent, 0)
    expected, uncertainty = (float(x) for x in slope(values @ cotangent, found.step))
    size = max(float((cotangent * found.slopes).norm()), abs(expected))
    return replace(
        found,
        cotangent=cotangent,
        expected=expected,
        claimed=line.derivative(0, cotangent),
        size=size,
        uncertainty=uncertainty / size if size > 0 else 0.0,
    )


def _of_inputs(line: Line, found: Estimate) -> tuple[Line, Estimate]:
    gradient = line.gradient(0, found.cotangent).flatten()
    whole = found.size
    chosen = line.direction.flatten() != 0
    while int(chosen.sum()) > 1:
        parts = []
        for half in _halves(chosen):
            direction = torch.where(half.view_as(line.direction), line.direction, 0)
            part = replace(line, direction=direction)
            claimed = float((gradient * direction.double().flatten()).sum())
            parts.append((part, _along(part, found, claimed)))
        usable = [p for p in parts if _clear(p[1]) and p[1].size > _INFLUENCE * whole]
        best = max(usable, key=lambda part: part[1].error, default=None)
        if best is None or best[1].error < 1.05 * found.error:
            return line, found
        line, found = best
        chosen = line.direction.flatten() != 0
    return line, found


def _along(line: Line, found: Estimate, claimed: float) -> Estimate:
    """The estimate along a line that moves fewer inputs, for the same outputs."""
    values = torch.stack([line.values(k * found.step) for k in OFFSETS])
    slopes, _ = slope(values, found.step)
    expected, uncertainty = (float(x) for x in slope(values @ found.cotangent, found.step))
    size = max(float((found.cotangent * slopes).norm()), abs(expected))
    relative = uncertainty / size if size > 0 else 0.0
    return replace(
        found, slopes=slopes, expected=expected, claimed=claimed, size=size, uncertainty=relative
    )
