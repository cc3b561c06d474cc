"""Checks of the simulation itself: what it returns, and what that depends on."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hig.errors import described
from hig.testing._report import Check, Verdict
from hig.testing._simulator import Simulator, cast, first_line, nearby

__all__ = ["check_forward", "check_output", "forward_couples"]


def check_output(simulator: Simulator) -> Check:
    """A finite real tensor with the samples first."""
    output, samples = simulator(*simulator.inputs), simulator.samples
    name = "output"
    if not isinstance(output, Tensor):
        remedy = "return one tensor (batch, ...): torch.cat or torch.stack its parts"
        return Check(name, "fail", described(output), remedy)
    shape = tuple(output.shape)
    if not output.is_floating_point():
        remedy = "return real numbers: torch.view_as_real for complex ones"
        return Check(name, "fail", f"{output.dtype} of shape {shape}", remedy)
    if output.ndim == 0 or len(output) != samples:
        remedy = "keep the batch as first axis, one row per sample"
        return Check(name, "fail", f"shape {shape} from {samples} samples", remedy)
    if not output.isfinite().all():
        bad = (~output.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        remedy = "start from inputs for which the simulation is stable, or shorten the time step"
        return Check(name, "fail", f"NaN or Inf in samples {bad[:6]}", remedy)
    return Check(name, "ok", f"{output.dtype}, shape {shape}")


def check_forward(simulator: Simulator) -> Iterator[Check]:
    """All that can be said without a derivative, given that the output is what it should be."""
    yield _check_dtypes(simulator)
    yield _check_device(simulator)
    yield _check_inputs_kept(simulator)
    yield _check_deterministic(simulator)


def _check_dtypes(simulator: Simulator) -> Check:
    kept = []
    for dtype in (torch.float32, torch.float64):
        try:
            found = simulator(*cast(simulator.inputs, dtype)).dtype
        except (RuntimeError, TypeError, ValueError) as error:
            text = f"{dtype} inputs are refused ({first_line(error)})"
            return Check("dtype kept", "note", text, _DTYPE_REMEDY)
        if found != dtype:
            verdict: Verdict = "fail" if dtype == simulator.dtype else "note"
            return Check("dtype kept", verdict, f"{dtype} inputs give {found}", _DTYPE_REMEDY)
        kept.append(str(dtype).removeprefix("torch."))
    return Check("dtype kept", "ok", " and ".join(kept))


_DTYPE_REMEDY = "give constants the dtype of the input: torch.tensor(..., dtype=state.dtype)"


def _check_device(simulator: Simulator) -> Check:
    output, device = simulator(*simulator.inputs), simulator.device
    if output.device != device:
        remedy = "make new tensors on the device of the input: torch.zeros(..., device=...)"
        return Check("device kept", "fail", f"{output.device} from {device}", remedy)
    return Check("device kept", "ok", str(device))


def _check_inputs_kept(simulator: Simulator) -> Check:
    given = [value.clone() for value in simulator.inputs]
    with torch.no_grad(), torch.random.fork_rng():
        simulator.function(*given)
    pairs = zip(given, simulator.inputs, strict=True)
    changed = [i for i, (after, before) in enumerate(pairs) if not torch.equal(after, before)]
    if changed:
        remedy = "return new tensors: state = state + ..., not state += ..."
        return Check("inputs unchanged", "fail", f"inputs {changed} change in place", remedy)
    return Check("inputs unchanged", "ok", f"{len(given)} of {len(given)}")


def _check_deterministic(simulator: Simulator) -> Check:
    name = "deterministic"
    with torch.no_grad(), torch.random.fork_rng():
        first, second = (
            simulator.function(*(value.clone() for value in simulator.inputs)) for _ in range(2)
        )
    if torch.equal(first, second):
        return Check(name, "ok", "two calls agree bit for bit")
    difference = f"two calls differ by {float((first - second).abs().max()):.1e}"
    if torch.equal(simulator(*simulator.inputs), simulator(*simulator.inputs)):
        remedy = "draw the numbers outside of the closure and pass them in"
        return Check(name, "note", f"{difference}, by random numbers of torch", remedy)
    remedy = "take other sources of chance out, or seed them in every call"
    return Check(name, "fail", f"{difference}, from the same random state of torch too", remedy)


def forward_couples(simulator: Simulator) -> bool:
    """Whether moving half of the samples moves the others by more than rounding."""
    half = torch.arange(simulator.samples, device="cpu") % 2 == 0
    moved = [
        torch.where(_columns(half, a), a, b) if a.is_floating_point() else a
        for a, b in zip(simulator.inputs, nearby(simulator.inputs), strict=True)
    ]
    before, after = simulator(*simulator.inputs), simulator(*moved)
    scale = before[half].abs().max() * torch.finfo(before.dtype).eps ** 0.75
    return bool((after[half] - before[half]).abs().max() > scale)


def _columns(chosen: Tensor, like: Tensor) -> Tensor:
    return chosen.to(like.device).view(-1, *[1] * (like.ndim - 1))
