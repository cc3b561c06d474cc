"""Simulators outside torch, made differentiable by the derivative that they supply."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hig._simulation.pullback import Contract, Pullback
from hig.errors import described

__all__ = ["black_box"]

Array = np.ndarray[Any, np.dtype[Any]]
ArrayPullback = Callable[[Array], Array | Sequence[Array | None]]
Linearise = Callable[..., tuple[Array, ArrayPullback | Array | Sequence[Array | None]]]


def black_box(
    linearise: Linearise, simulate: Callable[..., Array] | None = None
) -> Callable[..., Tensor]:
    """Wrap a simulator in NumPy, SciPy, JAX or anything else as a differentiable torch function.

    It is differentiable in every floating-point input. ``linearise`` simulates and returns the
    derivative in one of two forms:

    - a pullback, a function from a cotangent to gradients, such as an adjoint solver or the
      result of ``jax.vjp``. It runs once per backward pass, for all samples; passes are not
      batched. It must be linear, and samples must be independent: for a cotangent that combines
      earlier ones, sample by sample, the same combination of their gradients is returned without
      a call. In the first two simulations with such a cotangent, and in every 64th, the pullback
      is called nevertheless, to compare.
    - Jacobians of each sample. All passes are then one matrix product, and
      ``method="lanczos"`` is allowed.

    Example::

        def linearise(rate):                        # (batch, 1)
            final = np.exp(-rate)
            return final, lambda cotangent: -final * cotangent

        simulate = hig.black_box(linearise)
        prediction = simulate(network(target))

    Args:
        linearise: takes one array (batch, ...) per input, of the input's dtype, and returns
            ``(output, derivative)``: the output (batch, ...), and a callable from a cotangent of
            the output's shape to one array per input, or such arrays themselves, each
            (batch, *output.shape[1:], *input.shape[1:]). With one input, a single array is
            accepted; None stands for zero.
        simulate: computes the same output without derivative, called if none is needed; by
            default the output of ``linearise``.

    Returns:
        A function of tensors (batch, ...); its output has dtype and device of the first
        floating-point input.

    Raises:
        TypeError: ``linearise`` or ``simulate`` is not callable; in the returned function, an
            input is not a tensor, none is floating-point, or ``linearise`` does not return a pair.
        ValueError: in the returned function or its backward pass, an array has the wrong shape.
    """
    for name, value in (("linearise", linearise), ("simulate", simulate)):
        if not callable(value) and not (name == "simulate" and value is None):
            raise TypeError(f"{name} must be a function of arrays, got {described(value)}")

    contract = Contract()

    def simulated(*inputs: Tensor) -> Tensor:
        like = _first_floating(inputs)
        arrays = [_array(value) for value in inputs]
        if not (torch.is_grad_enabled() and any(value.requires_grad for value in inputs)):
            return _output(
                _pair(linearise(*arrays))[0] if simulate is None else simulate(*arrays), like
            )
        values, derivative = _pair(linearise(*arrays))
        output = _output(values, like)
        if callable(derivative):
            return _PulledBack.apply(output, _pullback_of(derivative, inputs, contract), *inputs)
        return output + _first_order(derivative, inputs, output)

    return simulated


class _PulledBack(torch.autograd.Function):
    """Identity of the output, with the gradients of the simulator's pullback."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, pullback: Pullback, *inputs: Tensor) -> Tensor:
        ctx.pullback = pullback
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_batches(cotangent)
        gradients = ctx.pullback(cotangent)
        wanted = zip(gradients, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(gradient if needed else None for gradient, needed in wanted)


def _pullback_of(
    derivative: Callable[..., Any], inputs: Sequence[Tensor], contract: Contract
) -> Pullback:
    """Convert the user's pullback to a function of tensors, for these inputs."""
    likes = [value.detach() for value in inputs]
    shapes = [value.shape for value in likes]

    def call(cotangent: Tensor) -> list[Tensor | None]:
        arrays = _one_each(derivative(_array(cotangent)), shapes, "the gradient")
        return [
            None if array is None else _tensor(array, like)
            for array, like in zip(arrays, likes, strict=True)
        ]

    return Pullback(call, contract)


def _first_order(jacobians: object, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
    """Return a zero whose derivative by the inputs is that of the simulator.

    J (x - x₀) is zero at x = x₀, the detached input, and has the derivative J there.
    """
    shapes = [(*output.shape, *value.shape[1:]) for value in inputs]
    total = torch.zeros_like(output)
    arrays = _one_each(jacobians, shapes, "the Jacobian")
    for array, value in zip(arrays, inputs, strict=True):
        if array is not None and value.requires_grad:
            change = (value - value.detach()).to(output).flatten(1).unsqueeze(2)
            jacobian = _tensor(array, output).reshape(len(output), -1, change.shape[1])
            total = total + (jacobian @ change).view_as(output)
    return total


def _first_floating(inputs: Sequence[Tensor]) -> Tensor:
    for value in inputs:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a black box takes tensors (batch, ...), got {described(value)}; bind other "
                "arguments with functools.partial"
            )
    floating = [value for value in inputs if value.is_floating_point()]
    if not floating:
        raise TypeError("a black box needs a floating-point input, got none to differentiate by")
    return floating[0]


def _pair(returned: object) -> tuple[Array, object]:
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(
            f"linearise must return (output, derivative), got {described(returned)}; the "
            "derivative is a pullback or Jacobians"
        )
    return returned


def _array(value: Tensor) -> Array:
    return value.detach().cpu().numpy()


def _refuse_batches(cotangent: Tensor) -> None:
    try:
        _array(cotangent)
    except RuntimeError as error:  # a batch of them, which no array can hold
        raise RuntimeError("a black box with a pullback takes one cotangent at a time") from error


def _tensor(array: Array, like: Tensor) -> Tensor:
    # A copy: the arrays of JAX are read-only, and those of a solver may be its workspace.
    return torch.from_numpy(np.array(array)).to(like)


def _output(values: Array, like: Tensor) -> Tensor:
    output = _tensor(values, like)
    if output.ndim == 0 or len(output) != len(like):
        raise ValueError(
            f"the simulator's output must have the {len(like)} samples of its input first, got "
            f"shape {tuple(output.shape)}"
        )
    return output


def _one_each(
    derivative: object, shapes: Sequence[tuple[int, ...]], what: str
) -> list[Array | None]:
    """Return the arrays of a derivative, one per input, after checking their shapes."""
    arrays: list[Any] = list(derivative) if isinstance(derivative, tuple | list) else [derivative]
    if len(arrays) != len(shapes):
        raise ValueError(
            f"the derivative must have one array per input, {len(shapes)}, got {len(arrays)}; "
            "None stands for zero"
        )
    for position, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        if array is not None and np.shape(array) != tuple(shape):
            raise ValueError(
                f"{what} by input {position} must have shape {tuple(shape)}, got {np.shape(array)}"
            )
    return arrays
