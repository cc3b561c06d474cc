"""Checks of the derivative: is there one, is it right, and how can it be asked for."""

import torch
from torch import Tensor

from hig._backward import Backward
from hig.testing._report import Check
from hig.testing._simulator import Simulator, cast, first_line, nearby

__all__ = ["backward_couples", "check_differentiable", "check_passes", "check_twice", "check_vjp"]

# Steps of the finite differences, relative to the input: truncation falls and rounding rises
# with smaller ones, and the best one counts.
_STEPS = {
    torch.float64: [10.0**-k for k in range(2, 8)],
    torch.float32: [0.1, 0.03, 0.01, 3e-3, 1e-3],
}
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
_DIRECTIONS = 3


def _with_graph(simulator: Simulator, inputs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Differentiable inputs that require a gradient, and the output with its graph."""
    given = [value.detach().clone() for value in inputs]
    for position in simulator.floating:
        given[position].requires_grad_()
    with torch.enable_grad():
        return [given[position] for position in simulator.floating], simulator.run(*given)


def _pulled_back(output: Tensor, leaves: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        output, leaves, cotangent, allow_unused=True, retain_graph=True, materialize_grads=True
    )


def check_differentiable(simulator: Simulator) -> Check:
    """Whether the output has a graph, to which inputs it leads, and finite gradients."""
    name = "differentiable"
    try:
        gradients = _gradients(simulator)
    except (RuntimeError, TypeError, ValueError) as error:
        return Check(name, "fail", *_told(error))
    if gradients is None:
        if _is_constant(simulator):
            return Check(name, "fail", *_CONSTANT)
        return Check(name, "fail", "the output has no graph", _STAY)
    found = dict(zip(simulator.floating, gradients, strict=True))
    bad = [i for i, g in found.items() if g is not None and not g.isfinite().all()]
    if bad:
        remedy = "look for sqrt, norm or division at 0, and add a small number there"
        return Check(name, "fail", f"NaN or Inf in the gradient by input {bad}", remedy)
    used = [i for i, g in found.items() if g is not None and bool((g != 0).any())]
    if not used and _is_constant(simulator):
        return Check(name, "fail", *_CONSTANT)
    if not used:
        remedy = "rounding, comparison and argmax have no derivative: smooth them"
        return Check(name, "fail", "the gradient is zero by every input", remedy)
    unused = [i for i in found if i not in used]
    rest = f"; none by {unused}" if unused else ""
    return Check(name, "ok", f"gradients by inputs {used}{rest}")


_STAY = "stay in torch (no .numpy(), .detach(), .item()), or wrap it with hig.black_box"
_CONSTANT = (
    "the output stays the same where the inputs change a little",
    "compute it from the inputs: a constant has no derivative, and steps no direction",
)


def _gradients(simulator: Simulator) -> tuple[Tensor | None, ...] | None:
    """Gradients of the output for a random cotangent; None where it has no graph."""
    leaves, output = _with_graph(simulator, nearby(simulator.inputs))
    if not output.requires_grad:
        return None
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    return torch.autograd.grad(output, leaves, cotangent, allow_unused=True)


def _is_constant(simulator: Simulator) -> bool:
    before, after = simulator(*simulator.inputs), simulator(*nearby(simulator.inputs))
    return torch.equal(before, after)


def _told(error: Exception) -> tuple[str, str]:
    """What an error in a computation with a graph means for a simulator, and the remedy."""
    text = first_line(error)
    if "numpy() on Tensor that requires grad" in text:
        return "it takes .numpy() of a tensor that requires a gradient", _STAY
    if "in-place" in text or "inplace" in text:
        remedy = (
            "let each step make new tensors: state = state + ..., torch.stack, not state[i] = ..."
        )
        return "a change in place overwrites what the derivative needs", remedy
    remedy = "it runs without gradients; call it with inputs that require one to see where it ends"
    return f"{type(error).__name__}: {text}", remedy


def check_vjp(simulator: Simulator) -> Check:
    """Products with the Jacobian's transpose against central finite differences."""
    inputs, dtype = nearby(simulator.inputs), torch.float64
    try:
        if simulator(*cast(inputs, dtype)).dtype != dtype:
            dtype = simulator.dtype
    except (RuntimeError, TypeError, ValueError):
        dtype = simulator.dtype  # `check_dtypes` has said so
    inputs = cast(inputs, dtype)
    leaves, output = _with_graph(simulator, inputs)
    errors = {
        position: max(
            _error(simulator, inputs, position, leaf, output, seed) for seed in range(_DIRECTIONS)
        )
        for position, leaf in zip(simulator.floating, leaves, strict=True)
    }
    worst = max(errors, key=errors.__getitem__)
    precision = str(dtype).removeprefix("torch.")
    found = f"within {errors[worst]:.0e} of finite differences in {precision}"
    if errors[worst] > _TOLERANCE[dtype]:
        return Check("gradients right", "fail", f"by input {worst} only {found}", _CAUSES)
    return Check("gradients right", "ok", found)


_CAUSES = (
    "look for .item(), .detach(), .numpy() or torch.tensor(x) inside, which cut the graph; in a "
    "black box for a transposed Jacobian or adjoint, or too large difference steps; kinks count too"
)


def _error(
    simulator: Simulator,
    inputs: list[Tensor],
    position: int,
    leaf: Tensor,
    output: Tensor,
    seed: int,
) -> float:
    """The relative difference of uᵀ(J v), by differences, and (Jᵀ u)ᵀ v, for random u and v."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
    u = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    scale = float(1 + inputs[position].abs().mean())
    best = float("inf")
    for step in _STEPS[output.dtype]:
        change = step * scale * v
        ahead, behind = (
            simulator(*(x + s * change if i == position else x for i, x in enumerate(inputs)))
            for s in (1, -1)
        )
        difference = (ahead - behind).double() / (2 * step * scale)
        size = float(difference.norm())
        # Along the difference too: beside much larger outputs a random u hides what is small.
        along = u.double() / u.double().norm() + (difference / size if size > 0 else 0)
        (gradient,) = _pulled_back(output, [leaf], along.to(output))
        found = float((gradient.double() * v.double()).sum())
        expected = float((along * difference).sum())
        if size == 0 and found == 0:
            return 0.0
        best = min(best, abs(found - expected) / max(size, 1e-300))
    return best


def backward_couples(simulator: Simulator) -> bool:
    """Whether outputs of half of the samples have a gradient by the others."""
    leaves, output = _with_graph(simulator, nearby(simulator.inputs))
    half = torch.arange(simulator.samples) % 2 == 0
    cotangent = half.to(output).view(-1, *[1] * (output.ndim - 1)).expand_as(output)
    gradients = _pulled_back(output, leaves, cotangent)
    eps = torch.finfo(output.dtype).eps
    return any(bool(g[~half].abs().max() > 10 * eps * g[half].abs().max()) for g in gradients)


def check_passes(simulator: Simulator) -> Check:
    """Whether many backward passes run at once, and give what single ones do."""
    leaves, output = _with_graph(simulator, nearby(simulator.inputs))
    generator = torch.Generator().manual_seed(0)
    cotangents = torch.randn((2, *output.shape), generator=generator, dtype=torch.float64)
    cotangents = cotangents.to(output)
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    backward = Backward(chunk=2)
    ((_, together),) = backward.gradients(
        output, leaves, 2, lambda start, stop: cotangents[start:stop], size
    )
    if not backward.batched:
        refusal = backward.notes[-1].partition("refuses batches: ")[2]
        return Check("batched passes", "note", f"one by one: {refusal}", _BATCH_REMEDY)
    singles = zip(*(_pulled_back(output, leaves, one) for one in cotangents), strict=True)
    for batch, single in zip(together, singles, strict=True):
        one = torch.stack(single)
        batch = torch.zeros_like(one) if batch is None else batch
        if (batch - one).norm() > torch.finfo(one.dtype).eps ** 0.5 * one.norm():
            remedy = "look for a custom backward that takes the first axis for the batch"
            return Check("batched passes", "fail", "they differ from single ones", remedy)
    return Check("batched passes", "ok", "many at once equal one by one")


_BATCH_REMEDY = "custom backward passes in torch operations alone can be batched"


def check_twice(simulator: Simulator) -> Check:
    """Whether the derivative can be differentiated by its cotangent, for products J v."""
    name = "products J v"
    leaves, output = _with_graph(simulator, nearby(simulator.inputs))
    cotangent = torch.zeros_like(output, requires_grad=True)
    try:
        gradients = torch.autograd.grad(
            output, leaves, cotangent, create_graph=True, allow_unused=True
        )
        used = [g for g in gradients if g is not None and g.requires_grad]
        weights = [torch.ones_like(gradient) for gradient in used]
        products = torch.autograd.grad(used, cotangent, weights, allow_unused=True)
        text = "" if products[0] is not None else "the derivative has no graph"
    except (RuntimeError, ValueError) as error:
        text = first_line(error)
    if text:
        remedy = "needed for method='lanczos' beyond plain layers, for very large batches"
        return Check(name, "note", f"not available: {text}", remedy)
    return Check(name, "ok", "by a second derivative")
