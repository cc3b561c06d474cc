"""Is the derivative right? Backward passes against differences, and what makes the two differ."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hig.testing._differences import gauss_legendre, jump
from hig.testing._line import Estimate, Line, searched
from hig.testing._localise import localised
from hig.testing._report import Check
from hig.testing._simulator import SimulationError, Simulator, cast, nearby, typical_sizes

__all__ = ["check_vjp"]

_NAME = "gradients right"
# What tolerances of solvers leave; steps are then right to the same part.
_APPROXIMATE = 1e-4
# The derivative's own error, in units of what the solver's jumps make of a slope.
_OF_JUMPS = 20
_SCAN = 25
_NODES = 24


@dataclass(frozen=True)
class _Finding:
    """Result for one input: a relative error and, where it is one, its cause."""

    position: int
    error: float
    noise: float = 0.0
    cause: str = ""  # "jumps", "approximate", "unresolved" or "wrong"
    place: str = ""
    resolved: float = 0.0
    ratio: float = float("nan")


def check_vjp(simulator: Simulator) -> Check:
    """Products with the Jacobian's transpose against central finite differences."""
    inputs, dtype = nearby(simulator.inputs), torch.float64
    try:
        if simulator(*cast(inputs, dtype)).dtype != dtype:
            dtype = simulator.dtype
    except SimulationError:
        dtype = simulator.dtype  # `check_dtypes` has said so
    inputs = cast(inputs, dtype)
    middle = simulator(*inputs)
    # Values of float32 may come as float64 numbers; the noise of the differences will show it.
    eps = max(torch.finfo(dtype).eps, torch.finfo(middle.dtype).eps)
    findings = []
    for position in simulator.floating:
        line = Line(
            simulator,
            inputs,
            position,
            torch.zeros_like(inputs[position]),
            middle.double().flatten(),
            eps,
        )
        findings.append(_of_input(line))
    return _verdict(findings, str(dtype).removeprefix("torch."))


def _of_input(line: Line) -> _Finding:
    """Compare along three directions; look closer along the one that differs most."""
    worst: tuple[Line, Estimate] | None = None
    error = noise = 0.0
    for one, seed in _directions(line):
        found = searched(one, seed)
        if found[-1].agrees:
            error, noise = max(error, found[-1].error), max(noise, found[-1].noise)
            continue
        best = min(found, key=lambda estimate: estimate.uncertainty)
        if worst is None or _distinct(best) > _distinct(worst[1]):
            worst = one, best
        if len(found) == 2:  # differences that are beyond doubt
            break
    if worst is None:
        return _Finding(line.position, error, noise)
    return _explained(*worst)


def _distinct(estimate: Estimate) -> float:
    return estimate.error / (1e-12 + estimate.uncertainty)


def _directions(line: Line) -> Iterator[tuple[Line, int]]:
    """Lines in three directions and seeds for their cotangents.

    The last one moves inputs of little influence more than others, so that all count alike.
    """
    x = line.inputs[line.position]
    sizes = typical_sizes(x)
    generator = torch.Generator("cpu").manual_seed(1)

    def along(direction: Tensor) -> Line:
        return Line(
            line.simulator, line.inputs, line.position, direction.to(x.dtype), line.middle, line.eps
        )

    for seed in (0, 1):
        random = torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu")
        yield along(random.to(x.device) * sizes), seed
    weights = torch.randn(line.middle.shape, generator=generator, dtype=torch.float64, device="cpu")
    influence = line.gradient(0, weights.to(line.middle)).abs() * sizes
    if not bool((influence > 0).any()):
        return
    least = torch.maximum(influence.max() * line.eps**0.25, influence[influence > 0].min())
    signs = torch.randint(0, 2, x.shape, generator=generator, device="cpu").to(sizes) * 2 - 1
    yield along(signs * sizes * least / torch.maximum(influence, least)), 2


def _explained(line: Line, found: Estimate) -> _Finding:
    """The cause of a difference between a backward pass and differences along a line."""
    scan = _jumps(line, found)
    if scan is not None:
        # Not part by part: what samples share by a common step size is noise of other samples.
        relative, error, noise = scan
        allowed = max(_APPROXIMATE, _OF_JUMPS * relative)
        if error <= allowed:
            return _Finding(line.position, min(found.error, error), noise, "jumps")
        part, place = found, ""
    else:
        noise = 0.0
        part, place = localised(line, found)
        error, relative = part.error, part.uncertainty
        if error <= _APPROXIMATE:
            return _Finding(line.position, error, 0.0, "approximate", place, relative)
        if error <= 10 * relative:
            return _Finding(line.position, error, part.noise, "unresolved", place, relative)
    return _Finding(line.position, error, noise, "wrong", place, relative, _ratio(part))


def _ratio(found: Estimate) -> float:
    return found.claimed / found.expected if found.expected else float("inf")


def _jumps(line: Line, found: Estimate) -> tuple[float, float, float] | None:
    """Jumps or noise of the outputs along a line; None where there is no more than rounding.

    A derivative that is wrong grows into a difference in proportion to the way; what a solver's
    tolerance leaves does not, however its derivative may look between two jumps. So the integral
    of the derivative along the line is compared with the outputs at its ends.

    Returns:
        What the jumps make of a slope over the line, relative; the relative error of the
        integrated derivative; the jumps' size relative to the outputs.
    """
    cotangent = found.cotangent
    size = float((cotangent * line.middle).norm()) + found.size
    nodes, weights = gauss_legendre(_NODES)

    def values(t: float) -> Tensor:
        return line.values(t) @ cotangent

    for reach in (0.3, 0.1, 0.02):
        height = jump(values, reach, _SCAN)
        if height <= 1e3 * line.eps * size:
            continue
        try:
            slopes = [line.derivative(reach * t, cotangent) for t in nodes]
        except SimulationError:
            continue
        way = max(sum(map(abs, slopes)) / _NODES, found.size) * 2 * reach
        change = float(values(reach) - values(-reach))
        claimed = reach * sum(w * s for w, s in zip(weights, slopes, strict=True))
        return height / way, abs(change - claimed) / way, height / size
    return None


def _verdict(findings: list[_Finding], precision: str) -> Check:
    order = ["", "approximate", "unresolved", "jumps", "wrong"]
    worst = max(findings, key=lambda finding: (order.index(finding.cause), finding.error))
    found = f"within {worst.error:.0e} of finite differences in {precision}"
    if not worst.cause:
        return Check(_NAME, "ok", found)
    if worst.cause == "wrong":
        exact = f", exact to {worst.resolved:.0e}" if worst.resolved > 0 else ""
        found = f"by input {worst.position} only {found}{exact}{worst.place}"
        return Check(_NAME, "fail", found, _remedy_of_wrong(worst))
    found = f"by input {worst.position} {found}"
    if worst.cause == "jumps":
        found += f": the output itself jumps or is noisy by {worst.noise:.0e} of its size"
        return Check(_NAME, "note", found, _JUMPS)
    if worst.cause == "unresolved":
        found += f", which are no closer than {worst.resolved:.0e}"
        return Check(_NAME, "note", found, _UNRESOLVED)
    return Check(_NAME, "note", f"{found}; smaller steps do not reduce it", _APPROXIMATE_REMEDY)


def _remedy_of_wrong(finding: _Finding) -> str:
    if abs(finding.ratio) < 1e-6:
        sign = "none arrives there: "
    elif abs(finding.ratio + 1) < 1e-2:
        sign = "its sign is the opposite: "
    else:
        sign = ""
    return sign + _CAUSES + (_TOLERANCE_TOO if finding.noise > 0 else "")


_CAUSES = (
    "look for .item(), .detach(), .numpy() or torch.tensor(x) inside, which cut the graph; in a "
    "black box for a transposed Jacobian or adjoint, or too large difference steps; kinks count too"
)
_TOLERANCE_TOO = (
    "; or tighten a solver's tolerance (rtol, atol): its adaptive steps make the output jump too"
)
_JUMPS = (
    "so a solver's tolerance, its adaptive step control or single precision inside leave it, and "
    "the derivative is as right as the simulation: tighten the tolerance (rtol, atol, of the "
    "sensitivities too), or fix the number of steps and iterations"
)
_APPROXIMATE_REMEDY = (
    "so a solver's tolerance, a continuous adjoint or differences inside leave it, and steps are "
    "as right: tighten the tolerance (rtol, atol, of the sensitivities too) or the time step; if "
    "it should be exact, look for a small term that is missing"
)
_UNRESOLVED = (
    "rounding hides the changes: subtract large constants from the output, or give inputs "
    "in float64; the derivative could not be checked further"
)
