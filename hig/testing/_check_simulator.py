"""Check of a simulator for half-inverse steps: all checks in one call."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from hig.arguments import check_count
from hig.testing._calls import check_calls
from hig.testing._derivative_checks import (
    backward_couples,
    check_differentiable,
    check_passes,
    check_twice,
    count_passes,
)
from hig.testing._forward_checks import FORWARD, check_output, forward_couples
from hig.testing._gradients import check_vjp
from hig.testing._report import Check, SimulatorReport
from hig.testing._simulator import SimulationError, Simulator

__all__ = ["assert_simulator", "check_simulator"]


def check_simulator(
    simulate: Callable[..., Tensor], *inputs: Tensor, chunk: int | None = None
) -> SimulatorReport:
    """Check a simulator at the given inputs.

    It is run 50 to 70 times, as the report says: use a small batch. The checks are: shape, dtype
    and device of the output; inputs unchanged; equal outputs for equal inputs; independence of
    calls; gradients against finite differences, in float64 if the simulator supports it;
    independence of samples; and the engines, batches of backward passes and methods that it
    allows. An error that the simulator raises, of any class, is part of the report.

    Example::

        report = hig.testing.check_simulator(simulate, start, torch.randn(8, 20))
        print(report)

    Args:
        simulate: function from tensors to one tensor, (batch, ...) each: the part of a training
            step between the network's output and the prediction. It may contain PhiFlow or black
            boxes.
        inputs: at least two samples each, such as a start and controls; the derivative is taken
            by those of a floating-point dtype.
        chunk: backward passes in one batch, as in the optimisers. With 1 none runs in a batch:
            for simulators whose backward pass calls compiled code outside torch, in which a batch
            may crash the process.

    Returns:
        The report; ``print`` it, or use its ``passed``.

    Raises:
        TypeError: ``simulate`` is not callable, an input is not a tensor, none is floating-point,
            or ``chunk`` is not an integer.
        ValueError: fewer than two samples, inputs that differ in samples, dtype or device, or a
            ``chunk`` below 1.
    """
    if chunk is not None:
        chunk = check_count(chunk, "chunk", "or None")
    simulator = Simulator.of(simulate, inputs)
    report = _checked(simulator, chunk)
    return replace(
        report, simulations=simulator.calls.simulations, backward_calls=simulator.calls.passes
    )


def _checked(simulator: Simulator, chunk: int | None) -> SimulatorReport:
    returned = _guarded("output", check_output, simulator)
    checks = [returned]
    if returned.verdict == "fail":
        return SimulatorReport(checks)
    checks += [_guarded(name, check, simulator) for name, check in FORWARD.items()]
    chance = checks[-1].verdict == "fail"  # not deterministic: finite differences mean nothing
    differentiable = _guarded("differentiable", check_differentiable, simulator)
    checks.append(differentiable)
    if chance or differentiable.verdict == "fail":
        return SimulatorReport(checks)
    checks.append(_guarded("call independence", check_calls, simulator))
    checks.append(_guarded("gradient check", check_vjp, simulator))
    output = simulator(*simulator.inputs)
    coupled, refused = _coupled(simulator, chunk)
    checks.append(_about_samples(coupled, (*simulator.inputs, output), refused))
    passes = _guarded("batched passes", lambda one: check_passes(one, chunk), simulator)
    twice = _guarded("products J v", check_twice, simulator)
    checks += [passes, twice]
    return SimulatorReport(
        checks,
        engine="rows" if coupled else "layerwise",
        batched=passes.verdict == "ok",
        methods=("gram", "svd", "lanczos") if twice.verdict == "ok" else ("gram", "svd"),
        passes=output.numel() if coupled else count_passes(simulator),
    )


def _guarded(name: str, check: Callable[[Simulator], Check], simulator: Simulator) -> Check:
    """Run a check; return a failure if the simulator raises an error in it."""
    try:
        return check(simulator)
    except SimulationError as raised:
        return Check(name, "fail", f"it raises {raised}", _RAISED)


_RAISED = (
    "find why it ends for these inputs, or for some a few per cent from them as a network will "
    "give: a solver that does not converge needs another start, tolerance or step"
)


def _coupled(simulator: Simulator, chunk: int | None) -> tuple[bool, str]:
    """Return whether samples influence one another, and an error that prevented a full check."""
    try:
        if forward_couples(simulator):
            return True, ""
    except SimulationError as raised:
        return True, f"inputs of half of the samples moved: {raised}"
    try:
        return backward_couples(simulator, chunk), ""
    except SimulationError as raised:
        return False, f"cotangents of half of the samples: {raised}"


def _about_samples(coupled: bool, tensors: Sequence[Tensor], refused: str) -> Check:
    name = "sample independence"
    if refused:
        verdict = "samples may influence one another: engine rows" if coupled else _APART
        remedy = "not all could be checked; rows of single samples (engine rows) may be refused too"
        return Check(name, "note", f"{verdict}; it refuses {refused}", remedy)
    if not coupled:
        return Check(name, "ok", _APART)
    remedy = "if not wanted, look for means over the batch, or a step size that all samples share"
    square = [tuple(t.shape) for t in tensors if t.ndim > 1 and t.shape[0] == t.shape[1]]
    if square:
        remedy += f"; the first axis must be the batch: is it time instead, in {square[-1]}?"
    return Check(name, "note", "samples influence one another: engine rows", remedy)


_APART = "no sample influences another"

# Former names of checks, which `allow` still accepts.
_FORMER_NAMES = {
    "dtype kept": "dtype preserved",
    "device kept": "device preserved",
    "calls apart": "call independence",
    "gradients right": "gradient check",
    "samples apart": "sample independence",
}


def assert_simulator(
    simulate: Callable[..., Tensor],
    *inputs: Tensor,
    allow: tuple[str, ...] | None = None,
    chunk: int | None = None,
) -> SimulatorReport:
    """Check a simulator in a test suite; if it fails, raise an error with the whole report.

    Example::

        def test_my_simulator():
            hig.testing.assert_simulator(simulate, torch.zeros(4, 2), torch.randn(4, 20))

    Args:
        simulate: as in `check_simulator`.
        inputs: as in `check_simulator`.
        allow: names of checks that may end with a note; None allows all of them, ``()`` none.
        chunk: as in `check_simulator`.

    Returns:
        The report.

    Raises:
        AssertionError: a check has failed, or has a note that is not allowed.
        ValueError: as in `check_simulator`, or ``allow`` has a name that is not one of a check.
        TypeError: as in `check_simulator`.
    """
    report = check_simulator(simulate, *inputs, chunk=chunk)
    allowed = {_FORMER_NAMES.get(name, name) for name in allow or ()}
    unknown = allowed - {check.name for check in report.checks}
    if unknown and report.passed:
        known = ", ".join(check.name for check in report.checks)
        raise ValueError(
            f"allow must have names of checks, got {sorted(unknown)[0]!r}; they are {known}"
        )
    refused = [] if allow is None else [c for c in report.notes if c.name not in allowed]
    if report.failures or refused:
        raise AssertionError(f"the simulator has not passed all checks:\n{report}")
    return report
