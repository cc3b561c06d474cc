"""Checks of the derivative: its existence, and the kinds of backward passes it supports."""

import torch
from torch import Tensor

from hig._simulation.pullback import Pullback
from hig._torch.autograd_graph import reachable_nodes
from hig._torch.batched_vjp import BatchedVJP, output_cotangents
from hig.testing._report import Check
from hig.testing._simulator import (
    SimulationError,
    Simulator,
    first_line,
    nearby,
    typical_sizes,
    user_code,
)

__all__ = [
    "backward_couples",
    "check_differentiable",
    "check_passes",
    "check_twice",
    "count_passes",
]


def check_differentiable(simulator: Simulator) -> Check:
    """Check that the output has a graph to the inputs, and finite gradients that are not zero."""
    name = "differentiable"
    try:
        gradients = _gradients(simulator)
    except SimulationError as raised:
        return Check(name, "fail", *_explain(simulator, raised.error))
    if gradients is None:
        if _is_constant(simulator):
            return Check(name, "fail", *_CONSTANT)
        return Check(name, "fail", "the output has no graph", _STAY)
    by_input = dict(zip(simulator.floating, gradients, strict=True))
    bad = [i for i, g in by_input.items() if g is not None and not g.isfinite().all()]
    if bad:
        remedy = "look for sqrt, norm or division at 0, and add a small number there"
        return Check(name, "fail", f"NaN or Inf in the gradient by input {bad}", remedy)
    used = [i for i, g in by_input.items() if g is not None and bool((g != 0).any())]
    if not used and _is_constant(simulator):
        return Check(name, "fail", *_CONSTANT)
    if not used:
        remedy = "rounding, comparison and argmax have no derivative: smooth them"
        return Check(name, "fail", "the gradient is zero by every input", remedy)
    unused = [i for i in by_input if i not in used]
    without = f"; none by {unused}" if unused else ""
    return Check(name, "ok", f"gradients by inputs {used}{without}")


_STAY = "stay in torch (no .numpy(), .detach(), .item()), or wrap it with hig.black_box"
_CONSTANT = (
    "the output stays the same where the inputs change a little",
    "compute it from the inputs: a constant has no derivative, and steps no direction",
)


def _gradients(simulator: Simulator) -> tuple[Tensor | None, ...] | None:
    """Compute gradients of the output for a random cotangent; None if it has no graph."""
    leaves, output = simulator.with_graph(nearby(simulator.inputs))
    if not output.requires_grad:
        return None
    cotangent = torch.randn(
        output.shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu"
    ).to(output)
    simulator.calls.passes += 1
    with user_code():
        return torch.autograd.grad(output, leaves, cotangent, allow_unused=True)


def _is_constant(simulator: Simulator) -> bool:
    before, after = simulator(*simulator.inputs), simulator(*nearby(simulator.inputs))
    return torch.equal(before, after)


def _explain(simulator: Simulator, error: Exception) -> tuple[str, str]:
    """Explain an error in a computation with a graph, and its remedy."""
    text = first_line(error)
    if "numpy() on Tensor that requires grad" in text:
        return "it takes .numpy() of a tensor that requires a gradient", _STAY
    if "in-place" in text or "inplace" in text:
        remedy = (
            "let each step make new tensors: state = state + ..., torch.stack, not state[i] = ..."
        )
        return "a change in place overwrites what the derivative needs", remedy
    try:
        simulator(*nearby(simulator.inputs))
    except SimulationError as moved:
        remedy = "give inputs around which the simulator runs, as a network's output will vary"
        return f"inputs moved by 1 % are refused: {moved}", remedy
    remedy = "it runs without gradients; call it with inputs that require one to see where it ends"
    return f"{type(error).__name__}: {text}", remedy


def backward_couples(simulator: Simulator, chunk: int | None = None) -> bool:
    """Return whether outputs of some samples have a gradient by others, relative to their scale."""
    leaves, output = simulator.with_graph(nearby(simulator.inputs))
    units = [torch.ones_like(leaf, dtype=torch.float64) for leaf in leaves]
    outputs = output[0].numel()
    if outputs <= _ALL_ROWS:
        sizes = _row_sizes(simulator, output, leaves, chunk)
    else:
        units = [typical_sizes(leaf) for leaf in leaves]
        sizes = _estimated_sizes(simulator, output, units)
    largest = sizes.max().clamp_min(torch.finfo(output.dtype).tiny)
    # All outputs count alike, whatever their scale, as in a half-inverse step.
    weights = largest / sizes.clamp_min(2.0**-40 * largest)
    index = torch.arange(simulator.samples, device=output.device)
    eps = torch.finfo(output.dtype).eps
    rounding = 10 * eps * largest * max(1.0, outputs / _ALL_ROWS) ** 0.5
    # Any two samples differ in some bit of their numbers: halves by each bit, both ways.
    for bit in range((simulator.samples - 1).bit_length()):
        for side in (0, 1):
            half = (index >> bit) % 2 == side
            cotangent = weights * half.to(weights).unsqueeze(1)
            weighed = cotangent.view_as(output).to(output)
            gradients = simulator.pulled_back(output, leaves, weighed)
            for gradient, unit in zip(gradients, units, strict=True):
                if bool(((gradient.double() * unit)[~half].abs() > rounding).any()):
                    return True
    return False


def _row_sizes(
    simulator: Simulator, output: Tensor, leaves: list[Tensor], chunk: int | None
) -> Tensor:
    """Norms (B, D), float64, of the derivatives of all outputs."""
    squares = output.new_zeros((len(output), output[0].numel()), dtype=torch.float64)
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    cotangents, backward = output_cotangents(output), BatchedVJP(chunk)
    with user_code():
        passes = list(backward.gradients(output, leaves, squares.shape[1], cotangents, size))
    simulator.calls.passes += len(passes) if backward.batched else squares.shape[1]
    for entries, gradients in passes:
        for gradient in gradients:
            if gradient is not None:
                squares[:, entries] += (
                    gradient.double().reshape(*gradient.shape[:2], -1).square().sum(2).T
                )
    return squares.sqrt()


def _estimated_sizes(simulator: Simulator, output: Tensor, units: list[Tensor]) -> Tensor:
    """Estimate norms (B, D), float64, of the derivatives by inputs in given units, by differences.

    For a random direction v the expected value of (row v)² is the square of the row's norm. Changes
    smaller than rounding are replaced by rounding: such an output gets less weight, not more.
    """
    eps = torch.finfo(output.dtype).eps
    before = output.detach().double().flatten(1)
    least = eps * before.abs()
    squares = torch.zeros_like(before)
    generator = torch.Generator("cpu").manual_seed(1)
    for _ in range(_DIRECTIONS):
        inputs = nearby(simulator.inputs)
        for position, unit in zip(simulator.floating, units, strict=True):
            random = torch.randn(unit.shape, generator=generator, dtype=unit.dtype, device="cpu")
            moved = inputs[position].double() + eps**0.5 * unit * random.to(unit.device)
            inputs[position] = moved.to(inputs[position].dtype)
        change = (simulator(*inputs).double().flatten(1) - before).abs()
        squares += (torch.maximum(change, least) / eps**0.5).square()
    return (squares / _DIRECTIONS).sqrt()


# Up to this many outputs of a sample all rows are computed: the passes run in few batches.
_ALL_ROWS = 64
_DIRECTIONS = 4


def count_passes(simulator: Simulator) -> int:
    """Count the backward passes of a layerwise step: one per output, and one to check the layers.

    A black box that is known to be linear, sample by sample, is not called for the last one.
    """
    leaves, output = simulator.with_graph(nearby(simulator.inputs))
    pullbacks = [getattr(node, "pullback", None) for node in reachable_nodes(output)]
    boxes = [pullback for pullback in pullbacks if isinstance(pullback, Pullback)]
    generator = torch.Generator("cpu").manual_seed(0)
    first, second = torch.randn((2, *output.shape), generator=generator, device="cpu").to(output)
    if boxes:
        signs = (
            torch.arange(simulator.samples, device=output.device)
            .view(-1, *[1] * (output.ndim - 1))
            .to(output)
            + 1
        )
        for cotangent in (first, second, first + signs * second):
            simulator.pulled_back(output, leaves, cotangent)
    spared = bool(boxes) and all(box.contract.holds and box.contract.used for box in boxes)
    return output[0].numel() + (not spared)


def check_passes(simulator: Simulator, chunk: int | None = None) -> Check:
    """Check that many backward passes run at once, with the same results as single ones."""
    name = "batched passes"
    if chunk == 1:
        return Check(name, "note", "not tried: one by one, as chunk=1 asks", _CHUNK_REMEDY)
    leaves, output = simulator.with_graph(nearby(simulator.inputs))
    generator = torch.Generator("cpu").manual_seed(0)
    cotangents = torch.randn(
        (2, *output.shape), generator=generator, dtype=torch.float64, device="cpu"
    )
    cotangents = cotangents.to(output)
    singles = list(
        zip(*(simulator.pulled_back(output, leaves, one) for one in cotangents), strict=True)
    )
    simulator.calls.passes += 1
    try:
        with user_code():
            together = torch.autograd.grad(
                output,
                leaves,
                cotangents,
                is_grads_batched=True,
                allow_unused=True,
                retain_graph=True,
            )
    except SimulationError as raised:
        if isinstance(raised.error, RuntimeError):  # a step then runs them one by one
            refusal = first_line(raised.error)
            return Check(name, "note", f"one by one: {refusal}", _BATCH_REMEDY)
        return Check(name, "fail", f"{raised}, where single passes run", _SINGLE_REMEDY)
    for batch, single in zip(together, singles, strict=True):
        one = torch.stack(single)
        batch = torch.zeros_like(one) if batch is None else batch
        if not (batch - one).norm() <= torch.finfo(one.dtype).eps ** 0.5 * one.norm():
            remedy = "look for a custom backward that assumes that the first axis is the batch"
            return Check(name, "fail", "they differ from single ones", f"{remedy}, or {_SINGLE}")
    return Check(name, "ok", "many at once equal one by one")


_BATCH_REMEDY = "custom backward passes in torch operations alone can be batched"
_CHUNK_REMEDY = "give chunk=1 to the optimiser too; without it passes run in batches"
_SINGLE = "give chunk=1 to the optimiser and to this check: every pass runs alone"
_SINGLE_REMEDY = f"{_SINGLE}; a RuntimeError would be taken as a refusal of batches"


def check_twice(simulator: Simulator) -> Check:
    """Check that the derivative can be differentiated by its cotangent, for products J v."""
    name = "products J v"
    leaves, output = simulator.with_graph(nearby(simulator.inputs))
    cotangent = torch.zeros_like(output, requires_grad=True)  # as steps do
    simulator.calls.passes += 2
    try:
        with user_code():
            gradients = torch.autograd.grad(
                output, leaves, cotangent, create_graph=True, allow_unused=True
            )
            used = [g for g in gradients if g is not None and g.requires_grad]
            weights = [torch.ones_like(gradient) for gradient in used]
            products = torch.autograd.grad(used, cotangent, weights, allow_unused=True)
        text = "" if products[0] is not None else "the derivative has no graph"
    except SimulationError as raised:
        known = isinstance(raised.error, RuntimeError | ValueError)
        text = first_line(raised.error) if known else str(raised)
    if text:
        remedy = "needed for method='lanczos' beyond plain layers, for very large batches"
        return Check(name, "note", f"not available: {text}", remedy)
    return Check(name, "ok", "by a second derivative")
