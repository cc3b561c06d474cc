"""Checks of the simulation itself: its output, and the dependence on inputs and samples."""

import torch
from torch import Tensor

from hig.errors import described
from hig.testing._report import Check, Verdict
from hig.testing._simulator import SimulationError, Simulator, cast, nearby

__all__ = ["FORWARD", "check_output", "forward_couples"]


def check_output(simulator: Simulator) -> Check:
    """Check that the output is a finite real tensor with the samples first."""
    name, samples = "output", simulator.samples
    output = simulator(*simulator.inputs)
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


def _check_dtypes(simulator: Simulator) -> Check:
    """Check that the output has the dtype of the inputs, in single and in double precision."""
    kept = []
    for dtype in (torch.float32, torch.float64):
        try:
            output = simulator(*cast(simulator.inputs, dtype))
        except SimulationError as raised:
            text = f"{dtype} inputs are refused ({raised})"
            return Check("dtype preserved", "note", text, _DTYPE_REMEDY)
        if output.dtype != dtype:
            verdict: Verdict = "fail" if dtype == simulator.dtype else "note"
            text = f"{dtype} inputs give {output.dtype}"
            return Check("dtype preserved", verdict, text, _DTYPE_REMEDY)
        kept.append(str(dtype).removeprefix("torch."))
    return Check("dtype preserved", "ok", " and ".join(kept))


_DTYPE_REMEDY = "give constants the dtype of the input: torch.tensor(..., dtype=state.dtype)"


def _check_device(simulator: Simulator) -> Check:
    output, device = simulator(*simulator.inputs), simulator.device
    if output.device != device:
        remedy = "make new tensors on the device of the input: torch.zeros(..., device=...)"
        return Check("device preserved", "fail", f"{output.device} from {device}", remedy)
    return Check("device preserved", "ok", str(device))


def _check_inputs_kept(simulator: Simulator) -> Check:
    copies = [value.clone() for value in simulator.inputs]
    with torch.no_grad(), torch.random.fork_rng():
        simulator.simulate(*copies)
    pairs = zip(copies, simulator.inputs, strict=True)
    changed = [i for i, (after, before) in enumerate(pairs) if not torch.equal(after, before)]
    if changed:
        remedy = "return new tensors: state = state + ..., not state += ..."
        return Check("inputs unchanged", "fail", f"inputs {changed} change in place", remedy)
    return Check("inputs unchanged", "ok", f"{len(copies)} of {len(copies)}")


def _check_deterministic(simulator: Simulator) -> Check:
    name = "deterministic"
    first, second = _two_calls(simulator)
    if torch.equal(first, second):
        return Check(name, "ok", "two calls agree bit for bit")
    differs = (first - second).abs().max()
    difference = f"two calls differ by {float(differs):.1e}"
    third, fourth = simulator(*simulator.inputs), simulator(*simulator.inputs)
    if torch.equal(third, fourth):
        remedy = "draw the numbers outside of the closure and pass them in"
        return Check(name, "note", f"{difference}, by random numbers of torch", remedy)
    rounding = _rounding(simulator, third)
    if ((first - second).abs() <= rounding).all() and ((third - fourth).abs() <= rounding).all():
        remedy = "sums in a varying order, as by threads; step rules see closer losses as equal"
        return Check(name, "note", f"{difference}, no more than rounding", remedy)
    remedy = (
        "take other sources of chance out, or seed them in every call; start iterations from the "
        "same guess, not from the last solution"
    )
    return Check(name, "fail", f"{difference}, from the same random state of torch too", remedy)


def _two_calls(simulator: Simulator) -> tuple[Tensor, Tensor]:
    """Compute outputs for the same inputs, each with new random numbers."""
    with torch.no_grad(), torch.random.fork_rng():
        first, second = (
            # A copy: the second call may write into the output of the first.
            simulator.simulate(*(value.clone() for value in simulator.inputs)).clone()
            for _ in range(2)
        )
    return first, second


def _rounding(simulator: Simulator, output: Tensor) -> Tensor:
    """Bound of the rounding of an output, given how strongly it depends on the inputs."""
    eps = torch.finfo(output.dtype).eps
    distance = eps**0.4
    moved = simulator(*nearby(simulator.inputs, distance=distance))
    # Random differences of size c enter this estimate as c eps^0.6 only, which hides none of them.
    amplified = (moved - output).abs() / distance
    size = torch.maximum(output.abs(), output.square().mean(0, keepdim=True).sqrt())
    return eps**0.75 * size + 100 * eps * amplified


# All checks without a derivative, after that of the output itself.
FORWARD = {
    "dtype preserved": _check_dtypes,
    "device preserved": _check_device,
    "inputs unchanged": _check_inputs_kept,
    "deterministic": _check_deterministic,
}


def forward_couples(simulator: Simulator) -> bool:
    """Return whether moving half of the samples moves the others by more than rounding."""
    half = torch.arange(simulator.samples, device="cpu") % 2 == 0
    moved = [
        torch.where(_columns(half, a), a, b) if a.is_floating_point() else a
        for a, b in zip(simulator.inputs, nearby(simulator.inputs), strict=True)
    ]
    before, after = (simulator(*inputs)[half] for inputs in (simulator.inputs, moved))
    before, after = (output.reshape(len(output), -1) for output in (before, after))
    # Relative to the scale of each output and of each sample, whichever is smaller.
    sizes = before.abs()
    scale = torch.minimum(sizes.amax(0, keepdim=True), sizes.amax(1, keepdim=True))
    return bool(((after - before).abs() > torch.finfo(before.dtype).eps ** 0.75 * scale).any())


def _columns(mask: Tensor, like: Tensor) -> Tensor:
    return mask.to(like.device).view(-1, *[1] * (like.ndim - 1))
