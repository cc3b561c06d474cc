"""One call that says whether a simulator is ready for a half-inverse step."""

from collections.abc import Callable, Sequence

from torch import Tensor

from hig.testing._derivatives import (
    backward_couples,
    check_differentiable,
    check_passes,
    check_twice,
    check_vjp,
    count_passes,
)
from hig.testing._forward import check_forward, check_output, forward_couples
from hig.testing._report import Check, SimulatorReport
from hig.testing._simulator import Simulator

__all__ = ["assert_simulator", "check_simulator"]


def check_simulator(simulate: Callable[..., Tensor], *inputs: Tensor) -> SimulatorReport:
    """Check a simulator at some inputs.

    It is run a few dozen times: take a small batch. Checked are shape, dtype, device, that inputs
    stay as they are and that equal inputs give equal outputs; gradients against finite
    differences, in float64 if the simulator takes it; whether samples influence one another; and
    which engines, batches of backward passes and methods it allows.

    Example::

        report = hig.testing.check_simulator(simulate, start, torch.randn(8, 20))
        print(report)

    Args:
        simulate: from tensors to one tensor, (batch, ...) each: the part of a training step
            between the network's output and the prediction. PhiFlow or black boxes may be inside.
        inputs: at least two samples each, such as a start and controls; those of a
            floating-point dtype are differentiated by.

    Returns:
        The report; ``print`` it, or look at its ``passed``.

    Raises:
        TypeError: ``simulate`` is not callable, an input is no tensor, or none is floating-point.
        ValueError: fewer than two samples, or inputs that differ in samples, dtype or device.
    """
    simulator = Simulator.of(simulate, inputs)
    checks = [check_output(simulator)]
    if checks[-1].verdict == "fail":
        return SimulatorReport(checks)
    *others, deterministic = check_forward(simulator)
    checks += [*others, deterministic]
    chance = deterministic.verdict == "fail"  # then differences of two calls mean nothing
    differentiable = check_differentiable(simulator)
    checks.append(differentiable)
    if chance or differentiable.verdict == "fail":
        return SimulatorReport(checks)
    checks.append(check_vjp(simulator))
    output = simulator(*simulator.inputs)
    coupled = forward_couples(simulator) or backward_couples(simulator)
    checks.append(_about_samples(coupled, (*simulator.inputs, output)))
    passes, twice = check_passes(simulator), check_twice(simulator)
    checks += [passes, twice]
    return SimulatorReport(
        checks,
        engine="rows" if coupled else "layerwise",
        batched=passes.verdict == "ok",
        methods=("gram", "svd", "lanczos") if twice.verdict == "ok" else ("gram", "svd"),
        passes=output.numel() if coupled else count_passes(simulator),
    )


def _about_samples(coupled: bool, tensors: Sequence[Tensor]) -> Check:
    if not coupled:
        return Check("samples apart", "ok", "no sample influences another")
    remedy = "if not wanted, look for means over the batch, or a step size that all samples share"
    square = [tuple(t.shape) for t in tensors if t.ndim > 1 and t.shape[0] == t.shape[1]]
    if square:
        remedy += f"; the first axis must be the batch: is it time instead, in {square[-1]}?"
    return Check("samples apart", "note", "samples influence one another: engine rows", remedy)


def assert_simulator(
    simulate: Callable[..., Tensor], *inputs: Tensor, allow: tuple[str, ...] | None = None
) -> SimulatorReport:
    """The same in a test suite: an `AssertionError` with the whole report where a check fails.

    Example::

        def test_my_simulator():
            hig.testing.assert_simulator(simulate, torch.zeros(4, 2), torch.randn(4, 20))

    Args:
        simulate: as in `check_simulator`.
        inputs: as in `check_simulator`.
        allow: names of checks that may end with a note; None allows all of them, ``()`` none.

    Returns:
        The report.

    Raises:
        AssertionError: a check has failed, or has a note that is not allowed.
        ValueError: as in `check_simulator`, or ``allow`` has a name that no check has.
        TypeError: as in `check_simulator`.
    """
    report = check_simulator(simulate, *inputs)
    unknown = set(allow or ()) - {check.name for check in report.checks}
    if unknown and report.passed:
        known = ", ".join(check.name for check in report.checks)
        raise ValueError(f"allow names no check {sorted(unknown)[0]!r}; they are {known}")
    refused = [] if allow is None else [c for c in report.notes if c.name not in allow]
    if report.failures or refused:
        raise AssertionError(f"the simulator is not as wanted:\n{report}")
    return report
