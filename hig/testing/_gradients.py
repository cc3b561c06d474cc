"""Gradient check: backward passes against finite differences, and causes of their difference."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hig.testing._differences import JumpSearch, gauss_legendre
from hig.testing._line import Estimate, Line, search_steps
from hig.testing._localise import localise
from hig.testing._report import Check
from hig.testing._simulator import SimulationError, Simulator, cast, nearby, typical_sizes

__all__ = ["check_vjp"]

_NAME = "gradient check"
# Errors up to this are explained by tolerances of solvers; steps then have the same error.
_APPROXIMATE = 1e-4
# A solver's error changes smoothly as long as the sequence of its steps is the same, and jumps
# when that changes: relative to the change of the outputs along the line, it is up to this many
# times as large as the jumps.
_OF_JUMPS = 100
_OF_LARGE_JUMPS = 20
_MOST_OF_JUMPS = 0.05
# Errors below this may be those of a solver whose jumps are too far away to be found.
_LIKE_A_TOLERANCE = 0.02
_REACHES = (0.3, 1.0, 0.1, 0.02)
_SCAN = 49
_NODES = 24


@dataclass(frozen=True)
class _Finding:
    """Result for one input: a relative error and, if it is too large, its cause."""

    position: int
    error: float
    noise: float = 0.0
    cause: str = ""  # "jumps", "approximate", "unresolved" or "wrong"
    place: str = ""
    resolved: float = 0.0
    ratio: float = float("nan")


def check_vjp(simulator: Simulator) -> Check:
    """Check products with the transposed Jacobian against central finite differences."""
    inputs, dtype = nearby(simulator.inputs), torch.float64
    try:
        if simulator(*cast(inputs, dtype)).dtype != dtype:
            dtype = simulator.dtype
    except SimulationError:
        dtype = simulator.dtype  # the check of dtypes has reported it
    inputs = cast(inputs, dtype)
    middle = simulator(*inputs)
    # Values computed in float32 may be returned in float64: the noise of differences shows that.
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
        findings.append(_examine_input(line))
    return _verdict(findings, str(dtype).removeprefix("torch."))


def _examine_input(line: Line) -> _Finding:
    """Compare along three directions, and find the cause for the one that differs most."""
    worst: tuple[Line, Estimate] | None = None
    error = noise = 0.0
    for one, seed in _directions(line):
        estimates = search_steps(one, seed)
        if estimates[-1].agrees:
            error, noise = max(error, estimates[-1].error), max(noise, estimates[-1].noise)
            continue
        best = min(estimates, key=lambda estimate: estimate.uncertainty)
        if worst is None or _distinct(best) > _distinct(worst[1]):
            worst = one, best
        if len(estimates) == 2:  # differences that are beyond doubt
            break
    if worst is None:
        return _Finding(line.position, error, noise)
    return _explain(*worst)


def _distinct(estimate: Estimate) -> float:
    return estimate.error / (1e-12 + estimate.uncertainty)


def _directions(line: Line) -> Iterator[tuple[Line, int]]:
    """Yield lines in three directions and seeds for their cotangents.

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
    # Of several sizes: equal ones with random signs would cancel in a sum of entries.
    signs = torch.randint(0, 2, x.shape, generator=generator, device="cpu").to(sizes) * 2 - 1
    signs *= 0.5 + torch.rand(x.shape, generator=generator, device="cpu").to(sizes)
    yield along(signs * sizes * least / torch.maximum(influence, least)), 2


def _explain(line: Line, estimate: Estimate) -> _Finding:
    """Find the cause of a difference between a backward pass and differences along a line."""
    by_jumps = _explain_by_jumps(line, estimate)
    if by_jumps is not None:
        # Not part by part: by a common step size, samples appear as noise in one another.
        error, noise = by_jumps
        return _Finding(line.position, min(estimate.error, error), noise, "jumps")
    part, place = localise(line, estimate)
    error, relative = part.error, part.uncertainty
    if error <= _APPROXIMATE:
        return _Finding(line.position, error, 0.0, "approximate", place, relative)
    if error <= 10 * relative:
        return _Finding(line.position, error, part.noise, "unresolved", place, relative)
    return _Finding(line.position, error, 0.0, "wrong", place, relative, _ratio(part))


def _ratio(estimate: Estimate) -> float:
    return estimate.claimed / estimate.expected if estimate.expected else float("inf")


def _explain_by_jumps(line: Line, estimate: Estimate) -> tuple[float, float] | None:
    """Test whether jumps or noise of the outputs along a line explain a difference.

    The effect of a wrong derivative grows in proportion to the distance; the error by a solver's
    tolerance does not, whatever the derivative is between two jumps. So the integral of the
    derivative along the line is compared with the outputs at its ends.

    Returns:
        The relative error of the integrated derivative, and the jumps' size relative to the
        outputs; None if they do not explain it.
    """
    cotangent = estimate.cotangent
    size = float((cotangent * line.middle).norm()) + estimate.size

    def values(t: float) -> Tensor:
        return line.values(t) @ cotangent

    for reach in _REACHES:
        search, rounding = JumpSearch(values, reach, _SCAN), 1e3 * line.eps * size
        if search.least_smooth <= rounding:
            continue
        try:
            error, way = _integrated(line, estimate, reach)
        except SimulationError:
            continue
        height = search.height(max(rounding, way * _least_jump(error)))
        if height > 0:
            return error, height / size
    return None


def _integrated(line: Line, estimate: Estimate, reach: float) -> tuple[float, float]:
    """Relative error of the derivative's integral over a line, and total change of the outputs."""
    nodes, weights = gauss_legendre(_NODES)
    slopes = [line.derivative(reach * t, estimate.cotangent) for t in nodes]
    way = max(sum(map(abs, slopes)) / _NODES, estimate.size) * 2 * reach
    change = float((line.values(reach) - line.values(-reach)) @ estimate.cotangent)
    claimed = reach * sum(w * s for w, s in zip(weights, slopes, strict=True))
    return abs(change - claimed) / way, way


def _least_jump(error: float) -> float:
    """Return the smallest jump, relative to the total change, of a solver with such an error."""
    if error <= _APPROXIMATE:
        return 0.0
    return error / (_OF_JUMPS if error <= _MOST_OF_JUMPS else _OF_LARGE_JUMPS)


def _verdict(findings: list[_Finding], precision: str) -> Check:
    order = ["", "approximate", "unresolved", "jumps", "wrong"]
    worst = max(findings, key=lambda finding: (order.index(finding.cause), finding.error))
    text = f"within {worst.error:.0e} of finite differences in {precision}"
    if not worst.cause:
        return Check(_NAME, "ok", text)
    if worst.cause == "wrong":
        exact = f", exact to {worst.resolved:.0e}" if worst.resolved > 0 else ""
        text = f"by input {worst.position} only {text}{exact}{worst.place}"
        return Check(_NAME, "fail", text, _remedy_of_wrong(worst))
    text = f"by input {worst.position} {text}"
    if worst.cause == "jumps":
        text += f": the output itself jumps or is noisy by {worst.noise:.0e} of its size"
        return Check(_NAME, "note", text, _JUMPS)
    if worst.cause == "unresolved":
        text += f", which are no closer than {worst.resolved:.0e}"
        return Check(_NAME, "note", text, _UNRESOLVED)
    return Check(_NAME, "note", f"{text}; smaller steps do not reduce it", _APPROXIMATE_REMEDY)


def _remedy_of_wrong(finding: _Finding) -> str:
    if finding.error < _LIKE_A_TOLERANCE:
        return _TOLERANCE_FIRST + _CAUSES
    if abs(finding.ratio) < 1e-6:
        return "none arrives there: " + _CAUSES
    if abs(finding.ratio + 1) < 1e-2:
        return "its sign is the opposite: " + _CAUSES
    return f"{_CAUSES}; {_TOLERANCE_TOO}"


_CAUSES = (
    "look for .item(), .detach(), .numpy() or torch.tensor(x) inside, which cut the graph; in a "
    "black box for a transposed Jacobian or adjoint, or too large difference steps; kinks count too"
)
_TOLERANCE_FIRST = (
    "if a solver with a tolerance or a continuous adjoint is inside, tighten its tolerance (rtol, "
    "atol, of the sensitivities too) first: the error then falls with it; otherwise "
)
_TOLERANCE_TOO = "or tighten a solver's tolerance (rtol, atol)"
_JUMPS = (
    "so it comes from a solver's tolerance, its adaptive step control or single precision inside, "
    "and the derivative is as accurate as the simulation: tighten the tolerance (rtol, atol, of "
    "the sensitivities too), or fix the number of steps and iterations"
)
_APPROXIMATE_REMEDY = (
    "so it comes from a solver's tolerance, a continuous adjoint or differences inside, and steps "
    "are as accurate: tighten the tolerance (rtol, atol, of the sensitivities too) or the time "
    "step; if it should be exact, look for a small term that is missing"
)
_UNRESOLVED = (
    "rounding hides the changes: subtract large constants from the output, or give inputs "
    "in float64; the derivative could not be checked further"
)
