r"""A network's outputs together with their derivatives along coordinates.

Through a tanh network they are propagated layer by layer, as a truncated Taylor series (forward
mode of first and second order; Griewank, Walther, *Evaluating Derivatives*, ch. 13): a linear layer
acts on every derivative as on the value, without the bias, and :math:`y = \tanh z` gives

.. math::
    y' = (1 - y^2)\, z', \qquad y'' = (1 - y^2)\, z'' - 2 y (1 - y^2)\, z'^2.

Nothing is differentiated twice by autograd, so that one backward pass costs what it costs without
derivatives, times the channels, and every weight meets its inputs in plain linear layers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from problems.pinn._nested import nested


class Jet(NamedTuple):
    """A value with its derivatives at the same points.

    Attributes:
        value: (..., width).
        derivatives: (..., channels, width): the first derivatives along the leading coordinates,
            then the second ones along the first few of these.
    """

    value: Tensor
    derivatives: Tensor


Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def jet(network: nn.Module, points: Tensor, first: int, second: int) -> Jet:
    """Outputs of a network and their derivatives along its leading inputs.

    Args:
        network: Maps (..., inputs) to (..., outputs), each point for itself. A tanh network is
            propagated, see `is_tanh_network`; any other is differentiated by autograd twice, once
            for each output and second derivative.
        points: (..., inputs), of the network's dtype and device.
        first: First derivatives are wanted along the inputs 0 ... first - 1.
        second: Pure second derivatives are wanted along the inputs 0 ... second - 1.

    Returns:
        Value (..., outputs) and derivatives (..., first + second, outputs).

    Raises:
        ValueError: If not 0 <= second <= first <= inputs; or if derivatives would be wrong: points
            influence one another (batch normalisation in training mode), the network cuts its
            graph, or holds what cannot be differentiated twice.
    """
    if not 0 <= second <= first <= points.shape[-1]:
        raise ValueError(
            f"derivatives must be 0 <= second <= first <= {points.shape[-1]} inputs, got first = "
            f"{first} and second = {second}; put the coordinates with second derivatives first"
        )
    if first == 0:
        value = network(points)
        return Jet(value, value.new_empty(*value.shape[:-1], 0, value.shape[-1]))
    if not is_tanh_network(network):
        return Jet(*nested(network, points, first, second))
    return propagate(network, Jet(points, tangents(points, first, second)), taylor(first, second))


def is_tanh_network(network: nn.Module) -> bool:
    """Whether a network is a plain `nn.Sequential` of `nn.Linear` and `nn.Tanh`, without hooks."""
    # Exact types: a subclass or a parametrised layer may compute something else. So may a hook,
    # which normalisation of weights and pruning use too, and a forward of the instance's own.
    return (
        type(network) is nn.Sequential
        and not _has_any_global_hook()
        and all(type(layer) in (nn.Linear, nn.Tanh) for layer in network)
        and all(_is_plain(module) for module in (network, *network))
    )


def _is_plain(module: nn.Module) -> bool:
    return "forward" not in vars(module) and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def tangents(points: Tensor, first: int, second: int) -> Tensor:
    """Derivatives (..., first + second, inputs) of the inputs themselves: units, then zeros."""
    inputs = points.shape[-1]
    channels = points.new_zeros(first + second, inputs)
    channels[:first] = torch.eye(first, inputs).to(points)
    return channels.expand(*points.shape[:-1], -1, -1)


def propagate(network: nn.Sequential, start: Jet, rule: Rule) -> Jet:
    """Carry points (..., inputs) and channels (..., channels, inputs) through a tanh network.

    The rule maps values (..., width) and channels (..., channels, width) through tanh.
    """
    value, channels = start
    for layer in network:
        if type(layer) is nn.Tanh:
            value, channels = rule(value, channels)
        else:
            # Two calls and not one with the bias added to the value afterwards: engines that look
            # for linear layers find the bias in the first, where it acts.
            value = F.linear(value, layer.weight, layer.bias)
            channels = F.linear(channels, layer.weight)
    return Jet(value, channels)


def taylor(first: int, second: int) -> Rule:
    """The rule of tanh for first and second derivatives, in the order of a `Jet`."""
    return lambda value, channels: _TaylorTanh.apply(value, channels, first, second)


class _TaylorTanh(torch.autograd.Function):
    """The tanh rule with a backward of its own, which reads and writes each channel once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, channels: Tensor, first: int, second: int) -> tuple[Tensor, Tensor]:
        y = z.tanh()
        slope = 1 - y.square()
        result = channels * slope.unsqueeze(-2)
        squares = channels[..., :second, :].square()
        result[..., first:, :].addcmul_((y * slope).unsqueeze(-2), squares, value=-2)
        return y, result

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[0], inputs[1])
        ctx.first, ctx.second = inputs[2:]

    @staticmethod
    def backward(ctx, value_gradient: Tensor, gradient: Tensor) -> tuple:
        y, channels = ctx.saved_tensors
        first, second = ctx.first, ctx.second
        leading = channels[..., :second, :]
        slope = 1 - y.square()
        twice = 2 * y
        # The derivative of the square of z' in y''.
        product = gradient[..., first:, :] * leading
        to_channels = gradient * slope.unsqueeze(-2)
        to_leading = to_channels[..., :second, :]
        to_leading.addcmul_((twice * slope).unsqueeze(-2), product, value=-2)
        # The slope changes by -2 y slope with z, and -2 y slope by -2 slope (1 - 3 y²).
        to_value = value_gradient - twice * (gradient * channels).sum(-2)
        to_value = to_value - (6 * slope - 4) * (product * leading).sum(-2)
        return slope * to_value, to_channels, None, None
