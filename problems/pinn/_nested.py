"""Derivatives of any network along coordinates: autograd of autograd, output by output.

Reverse mode twice and not forward mode, which torch lacks for some operations and has wrong for
others: taken twice through layer, instance or batch normalisation it is 100 % off. Reverse mode is
right twice wherever torch has it (``python -m experiments.derivatives``).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hig.errors import out_of_memory
from problems.pinn._nested_checks import (
    check_functions,
    check_single_points,
    check_value,
    no_derivative,
    no_graph,
)

Network = Callable[[Tensor], Tensor]


class Derivatives(NamedTuple):
    """A value with its derivatives, first and second ones apart.

    Attributes:
        value: (..., outputs), as the network returns it.
        slopes: (..., first, outputs); of complex outputs real and imaginary parts in turn.
        curvatures: (..., second, outputs), likewise.
    """

    value: Tensor
    slopes: Tensor
    curvatures: Tensor


def nested(network: Network, points: Tensor, first: int, second: int) -> tuple[Tensor, Tensor]:
    """Outputs of a network and their derivatives along its leading inputs.

    Args:
        network: Maps (..., inputs) to (..., outputs), each point for itself. Called once; more
            often where the graph holds a `torch.autograd.Function`, whose second derivatives are
            held against differences.
        points: (..., inputs), real.
        first: First derivatives are wanted along the inputs 0 ... first - 1, one at least.
        second: Pure second derivatives are wanted along the inputs 0 ... second - 1.

    Returns:
        Value (..., outputs) and derivatives (..., first + second, outputs).

    Raises:
        ValueError: If the points influence one another, or the network returns another shape, cuts
            its graph, or holds what cannot be differentiated twice.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        value, slopes, curvatures = _transformed(network, points, first, second)
    else:
        kept = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            at = points if kept and points.requires_grad else points.detach().clone()
            found = _derive(network, at.requires_grad_(), first, second, kept)
            if second:
                check_functions(found, at, lambda at: _derive(network, at, first, second, False))
        value, slopes, curvatures = found if kept else (part.detach() for part in found)
    derivatives = torch.cat([slopes, curvatures], -2)
    if value.is_complex():
        derivatives = torch.view_as_complex(derivatives.unflatten(-1, (-1, 2)).contiguous())
    return value, derivatives


def _derive(network: Network, at: Tensor, first: int, second: int, kept: bool) -> Derivatives:
    """All derivatives, of one call of the network; with a graph if they are ``kept``."""
    # A copy, for networks that begin in place. Fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        value = network(at.clone())
    check_value(value, at)
    outputs = _real(value).unbind(-1)
    try:
        check_single_points(network, at, outputs)
        slopes = [_gradient(output, at, kept or second > 0) for output in outputs]
        if all(slope is None for slope in slopes):
            no_graph(network, at, value)
        zeros = torch.zeros_like(at)
        slopes = [zeros if slope is None else slope for slope in slopes]
        curvatures = [_curvatures(slope, at, second, kept) for slope in slopes]
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise no_derivative(network, at, error) from error
    slopes = [slope[..., :first] for slope in slopes]
    return Derivatives(value, torch.stack(slopes, -1), torch.stack(curvatures, -1))


def _curvatures(slope: Tensor, at: Tensor, second: int, kept: bool) -> Tensor:
    """Second derivatives (..., second) of one output, whose gradient is ``slope`` (..., inputs)."""
    found = [torch.zeros_like(at[..., :second])] if second == 0 else []
    for axis in range(second):
        gradient = _gradient(slope[..., axis], at, kept)
        found.append((torch.zeros_like(at) if gradient is None else gradient)[..., axis, None])
    return torch.cat(found, -1)


def _gradient(output: Tensor, at: Tensor, create_graph: bool) -> Tensor | None:
    """Of one output (...) by each point, (..., inputs); None without a graph."""
    if not output.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(
        output.sum(), at, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return gradient


def _real(value: Tensor) -> Tensor:
    """Real outputs, or real and imaginary parts in turn."""
    return torch.view_as_real(value.resolve_conj()).flatten(-2) if value.is_complex() else value


def _transformed(network: Network, points: Tensor, first: int, second: int) -> Derivatives:
    """As `_derive`, where torch.func is at work and its own transforms alone may be used."""

    def both(at: Tensor) -> tuple[Tensor, Tensor]:
        value = network(at)
        return _real(value), value

    def slopes(at: Tensor) -> tuple[Tensor, Tensor]:
        outputs, pull, value = torch.func.vjp(both, at, has_aux=True)
        rows = [pull(_unit(outputs, index))[0] for index in range(outputs.shape[-1])]
        return torch.stack(rows, -1)[..., :first, :], value

    with sdpa_kernel(SDPBackend.MATH):
        found, pull, value = torch.func.vjp(slopes, points, has_aux=True)
        curvatures = [
            pull(_unit(found, axis, index))[0][..., axis]
            for axis in range(second)
            for index in range(found.shape[-1])
        ]
    if not curvatures:
        return Derivatives(value, found, found[..., :0, :])
    return Derivatives(value, found, torch.stack(curvatures, -1).unflatten(-1, (second, -1)))


def _unit(like: Tensor, *index: int) -> Tensor:
    """A cotangent of one in the entry of the last axes that is named, at every point."""
    unit = torch.zeros_like(like)
    unit[..., *index] = 1
    return unit
