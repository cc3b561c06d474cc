"""Derivatives of a function in the ways that steps ask for, against differences in float64."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., Tensor]
Tensors = Sequence[Tensor]

# Relative error above which a derivative is wrong; differences are right to some 1e-9.
TOLERANCE = 1e-5
STEP = 1e-3

WAYS = {
    "backward": "one backward pass",
    "batched": "many backward passes at once (engines)",
    "vmapped": "backward passes vectorised over samples (rollout)",
    "forward": "forward mode (LinearStep)",
    "double": "backward of the backward pass (curvature, Lanczos, jet)",
    "forward twice": "forward mode of forward mode (not used)",
}


def examine(function: Function, inputs: Tensors) -> dict[str, float | str]:
    """Compute the relative error of each way in `WAYS`, or torch's message if it is missing.

    Args:
        function: Of real float64 tensors; returns a tensor, or some of them, real or complex.
        inputs: At which it is differentiated, each at once along a random direction.

    Returns:
        An error, or a text, for each way. Infinite if it is not finite.
    """
    point = _Point(function, inputs)
    found: dict[str, float | str] = {}
    for way in WAYS:
        try:
            found[way] = getattr(point, way.replace(" ", "_"))()
        except (RuntimeError, NotImplementedError) as error:
            found[way] = (str(error) or type(error).__name__).splitlines()[0]
    return found


class _Point:
    """A function near its inputs, along a random direction, for a random cotangent."""

    def __init__(self, function: Function, inputs: Tensors):
        self._function, self._inputs = function, [tensor.detach().clone() for tensor in inputs]
        generator = torch.Generator().manual_seed(1)
        self._direction = [_like(tensor, generator) for tensor in self._inputs]
        self._other = [_like(tensor, generator) for tensor in self._inputs]
        value = self._value(*self._inputs)
        self._cotangents = torch.stack([_like(value, generator) for _ in range(3)])

    def backward(self) -> float:
        """cᵀ J d, by cᵀ J."""
        cotangent = self._cotangents[0]
        gradients = self._gradients(self._inputs, cotangent)
        expected = cotangent * _difference(self._along)
        return _error(_dot(gradients, self._direction), expected.sum(), expected.norm())

    def batched(self) -> float:
        """Error of batched gradients against those one by one."""
        leaves = _leaves(self._inputs)
        value = self._value(*leaves)
        found = torch.autograd.grad(
            value, leaves, self._cotangents, is_grads_batched=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        errors = []
        for row, cotangent in enumerate(self._cotangents):
            expected = self._gradients(self._inputs, cotangent)
            own = [gradients[row] for gradients in found]
            errors.append(_error(_dot(own, self._other), _dot(expected, self._other)))
        return max(errors)

    def vmapped(self) -> float:
        """The gradients of three samples and cotangents, as in a rollout, against one by one."""
        samples = [[t + i * STEP * d for t, d in self._pairs()] for i in range(3)]
        stacked = [torch.stack(own) for own in zip(*samples, strict=True)]

        def rows(*inputs: Tensor) -> tuple[Tensor, ...]:
            _, pull = torch.func.vjp(self._value, *inputs)
            return torch.func.vmap(pull)(self._cotangents)

        found = torch.func.vmap(rows)(*stacked)
        errors = []
        for index, inputs in enumerate(samples):
            for row, cotangent in enumerate(self._cotangents):
                expected = self._gradients(inputs, cotangent)
                own = [gradients[index, row] for gradients in found]
                errors.append(_error(_dot(own, self._other), _dot(expected, self._other)))
        return max(errors)

    def forward(self) -> float:
        """J d."""
        tangent = torch.func.jvp(self._value, tuple(self._inputs), tuple(self._direction))[1]
        return _error(tangent, _difference(self._along))

    def double(self) -> float:
        """The change of cᵀ J e along d."""
        leaves = _leaves(self._inputs)
        gradients = self._gradients(leaves, self._cotangents[0], create_graph=True)
        slope = _dot(gradients, self._other)
        second: Tensors = [torch.zeros_like(tensor) for tensor in leaves]
        if slope.requires_grad:
            second = torch.autograd.grad(slope, leaves, allow_unused=True, materialize_grads=True)
        expected = _difference(
            lambda size: _dot(self._gradients(self._at(size), self._cotangents[0]), self._other)
        )
        return _error(_dot(second, self._direction), expected, slope.detach().abs())

    def forward_twice(self) -> float:
        """The change of J d along d, against the second difference of the function itself."""

        def along(*inputs: Tensor) -> Tensor:
            return torch.func.jvp(self._value, inputs, tuple(self._direction))[1]

        second = torch.func.jvp(along, tuple(self._inputs), tuple(self._direction))[1]
        expected = _second_difference(self._along)
        return _error(second, expected, 1.0)

    def _at(self, size: float) -> list[Tensor]:
        return [tensor + size * direction for tensor, direction in self._pairs()]

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self._inputs, self._direction, strict=True))

    def _along(self, size: float) -> Tensor:
        return self._value(*self._at(size))

    def _value(self, *inputs: Tensor) -> Tensor:
        """All outputs in one vector."""
        found = self._function(*inputs)
        parts = [found] if isinstance(found, Tensor) else list(found)
        real = [torch.view_as_real(p.resolve_conj()) if p.is_complex() else p for p in parts]
        return torch.cat([part.reshape(-1) for part in real])

    def _gradients(self, inputs: Tensors, cotangent: Tensor, create_graph: bool = False) -> Tensors:
        leaves = inputs if create_graph else _leaves(inputs)
        return torch.autograd.grad(
            self._value(*leaves), leaves, cotangent, create_graph=create_graph,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip


def _like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)


def _leaves(tensors: Tensors) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def _dot(left: Tensors, right: Tensors) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def _difference(along: Callable[[float], Tensor]) -> Tensor:
    """The derivative at 0, of fourth order."""
    coarse = (along(STEP) - along(-STEP)) / (2 * STEP)
    fine = (along(STEP / 2) - along(-STEP / 2)) / STEP
    return ((4 * fine - coarse) / 3).detach()


def _second_difference(along: Callable[[float], Tensor]) -> Tensor:
    """The second derivative at 0, of fourth order, right to some 1e-7."""
    h, middle = 3 * STEP, along(0.0)
    coarse = (along(h) - 2 * middle + along(-h)) / h**2
    fine = (along(h / 2) - 2 * middle + along(-h / 2)) / (h / 2) ** 2
    return ((4 * fine - coarse) / 3).detach()


def _error(found: Tensor, expected: Tensor, scale: Tensor | float = 0.0) -> float:
    """The difference, relative to the size of the expected value, or a larger scale."""
    size = max(float(expected.norm()), float(scale), 1e-8)
    error = float((found.detach() - expected.detach()).norm()) / size
    return error if error == error else float("inf")
