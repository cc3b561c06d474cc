"""Networks whose derivatives along coordinates would be wrong: found, and refused in words."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

Network = Callable[[Tensor], Tensor]

# What backward passes of torch.compile say when their graph is asked for: one of the two.
_COMPILED = ("double backward", "donated buffer")


class Found(Protocol):
    """Derivatives: value (..., outputs), slopes and curvatures (..., channels, outputs)."""

    value: Tensor
    slopes: Tensor
    curvatures: Tensor


def check_value(value: Any, points: Tensor) -> None:
    """Raise a TypeError or ValueError unless there is a row of outputs for each point."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the network must return one tensor (..., outputs), got {type(value).__name__}; join "
            "its outputs along the last axis (torch.cat)"
        )
    if value.ndim != points.ndim or value.shape[:-1] != points.shape[:-1]:
        raise ValueError(
            f"the network must map points {tuple(points.shape)} to outputs "
            f"{(*points.shape[:-1], '...')}, a row for each, got {tuple(value.shape)}; a single "
            "output needs an axis of 1"
        )


def check_single_points(network: object, at: Tensor, outputs: Sequence[Tensor]) -> None:
    """Raise a ValueError if points influence one another: derivatives then mean nothing.

    Half of the points, drawn at random, are differentiated; the gradient by the others must be
    zero, exactly, for nothing is rounded on the way from a zero.
    """
    connected = [output for output in outputs if output.requires_grad]
    shape = at.shape[:-1]
    if not connected or shape.numel() < 2:
        return
    chosen = torch.randperm(shape.numel(), generator=_GENERATOR) < (shape.numel() + 1) // 2
    # Weights, for what adds up to zero over the outputs or over the points.
    weights = torch.randn(len(connected), *shape, generator=_GENERATOR, dtype=torch.float64)
    weights = (weights * chosen.view(shape)).to(connected[0])
    (gradient,) = torch.autograd.grad(
        connected, at, weights.unbind(), retain_graph=True, allow_unused=True
    )
    if gradient is None:
        return
    others = gradient[~chosen.view(shape).to(gradient.device)]
    if bool(((others != 0) & torch.isfinite(others)).any()):
        raise ValueError(
            f"the points influence one another in the network{_batch_normalisation(network)}: its "
            "derivatives at a point would depend on which others are there; put normalisation "
            "over the batch into evaluation mode (network.eval()) or take nn.LayerNorm, and let "
            "nothing else mix points"
        )


# The halves differ from call to call, so that no pair of points stays on one side for long. A
# generator of its own: the check must not move the user's random state.
_GENERATOR = torch.Generator().manual_seed(0)


def _batch_normalisation(network: object) -> str:
    names = [
        f"{type(module).__name__} {name!r}"
        for name, module in _named_modules(network)
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]
    return f" ({', '.join(names)}, by statistics of the batch)" if names else ""


def no_graph(network: Network, at: Tensor, value: Tensor) -> None:
    """Raise a ValueError if outputs without a graph to the points change with them all the same."""
    with torch.no_grad():
        moved = network(at + 1e-2 * (1 + at.abs()))
    if not torch.equal(moved, value):
        raise ValueError(
            "the network's outputs have no graph that leads to the points (detached, computed in "
            "torch.no_grad or by NumPy), and change with them: derivatives would be zeros; leave "
            "out what cuts the graph"
        )


def no_derivative(network: Network, at: Tensor, error: RuntimeError) -> ValueError:
    """Error, with module and remedy, where autograd could not differentiate a network twice."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    remedy = (
        "replace it by operations with a second derivative; a torch.autograd.Function needs a "
        "backward made of differentiable operations, without once_differentiable"
    )
    if "heckpoint" in text:
        remedy = "call checkpoint(..., use_reentrant=False)"
    elif any(words in text for words in _COMPILED):
        remedy = "give jet the network itself, not what torch.compile makes of it"
    return ValueError(
        f"the network cannot be differentiated twice{_culprit(network, at)}: {text}; {remedy}"
    )


def _culprit(network: Network, at: Tensor) -> str:
    """The innermost module that alone cannot be differentiated twice."""
    calls: list[tuple[str, tuple[Any, ...], Any]] = []
    hooks = [
        module.register_forward_hook(
            lambda _, given, result, name=name: calls.append((name, given, result))
        )
        for name, module in _named_modules(network)
    ]
    try:
        with torch.random.fork_rng(devices=_devices(at)):
            network(at.clone())
    finally:
        for hook in hooks:
            hook.remove()
    names = dict(_named_modules(network))
    for name, given, result in calls:  # inner ones come before those that call them
        inputs = [t for t in given if isinstance(t, Tensor) and t.requires_grad]
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.requires_grad]
        if inputs and outputs and not _twice_differentiable(inputs, outputs):
            where = f" at {name!r}" if name else ""
            return f", because of {type(names[name]).__name__}{where}"
    return ""


def _twice_differentiable(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    options = {"allow_unused": True, "retain_graph": True}
    try:
        slopes = torch.autograd.grad(
            [t.abs().sum() for t in outputs], inputs, create_graph=True, **options
        )
        used = [slope.sum() for slope in slopes if slope is not None and slope.requires_grad]
        if used:
            torch.autograd.grad(used, inputs, **options)
    except RuntimeError:
        return False
    return True


def check_functions(found: Found, at: Tensor, derive: Callable[[Tensor], Found]) -> None:
    """Raise a ValueError if a `torch.autograd.Function` has no second derivative.

    Those found are held against differences of ``derive``, at other points.

    Autograd takes a backward on faith. One that computes with tensors kept next to
    ``ctx.saved_tensors``, or detached, has the right first derivative and no second one.
    """
    names = _functions_behind(found.value)
    if not names:
        return

    def at_points(points: Tensor) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=_devices(at)):  # the same dropout everywhere
            torch.manual_seed(0)
            found = derive(points.detach().requires_grad_())
        return found.slopes.detach(), found.curvatures.detach()

    _, curvatures = at_points(at)
    size = at.detach().abs().amax().clamp_min(1.0)
    step = torch.finfo(at.dtype).eps ** 0.25 * size
    for axis in range(curvatures.shape[-2]):
        move = torch.zeros_like(at)
        move[..., axis] = step
        low, lower, higher, high = (
            at_points(at + h * move)[0][..., axis, :] for h in (-1.0, -0.5, 0.5, 1.0)
        )
        coarse, fine = (high - low) / (2 * step), (higher - lower) / step
        rounding = 100 * torch.finfo(at.dtype).eps * high.norm() / step
        error = (curvatures[..., axis, :] - fine).norm()
        if bool(error > 10 * (fine - coarse).norm() + rounding + 1e-2 * fine.norm()):
            raise ValueError(
                f"the second derivative of {' or '.join(sorted(names))}, a torch.autograd.Function "
                f"in the network, is wrong: {float(error):.2g} off, where it is up to "
                f"{float(fine.abs().amax()):.2g}, along input {axis}; its backward must be made of "
                "differentiable operations on ctx.saved_tensors"
            )


def _functions_behind(value: Tensor) -> set[str]:
    """Names of the `torch.autograd.Function`s in a graph."""
    waiting, seen, names = [value.grad_fn], {None}, set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
        if isinstance(node, BackwardCFunction):
            names.add(node.name().removesuffix("Backward"))
    return names


def _named_modules(network: object) -> list[tuple[str, nn.Module]]:
    """All modules by name; none of a function that is no module."""
    return list(network.named_modules()) if isinstance(network, nn.Module) else []


def _devices(points: Tensor) -> list[torch.device]:
    return [points.device] if points.is_cuda else []
