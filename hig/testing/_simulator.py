"""A simulator with the inputs that it is checked at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hig.errors import described

__all__ = ["Simulator", "cast", "first_line", "nearby"]


@dataclass(frozen=True)
class Simulator:
    """A function and its inputs (batch, ...), detached; at least one is floating-point."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]

    def run(self, *inputs: Tensor) -> Tensor:
        """Simulate copies of the inputs, with the same random numbers every time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.function(*(value.clone() for value in inputs))

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The same without a graph."""
        with torch.no_grad():
            return self.run(*inputs)

    @property
    def floating(self) -> list[int]:
        """Positions of the inputs that may have a derivative."""
        return [i for i, value in enumerate(self.inputs) if value.is_floating_point()]

    @property
    def samples(self) -> int:
        """B."""
        return len(self.inputs[0])

    @property
    def dtype(self) -> torch.dtype:
        """That of the floating-point inputs."""
        return self.inputs[self.floating[0]].dtype

    @property
    def device(self) -> torch.device:
        """That of all inputs."""
        return self.inputs[0].device

    @classmethod
    def of(cls, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> "Simulator":
        """Check the arguments.

        Raises:
            TypeError: the function is not callable, an input is no tensor, or none is floating.
            ValueError: fewer than two samples, or inputs that differ in samples, dtype or device.
        """
        if not callable(function):
            raise TypeError(f"simulate must be a function of tensors, got {described(function)}")
        for value in inputs:
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"inputs must be tensors (batch, ...), got {described(value)}; bind other "
                    "arguments with functools.partial"
                )
        floating = [value for value in inputs if value.is_floating_point()]
        if not floating:
            raise TypeError("give at least one floating-point input, such as the controls")
        for position, value in enumerate(inputs):
            if not value.ndim:
                raise ValueError(
                    f"input {position} must be (batch, ...), got shape (); bind what has no batch, "
                    "such as a time step, with functools.partial"
                )
        lengths = {len(value) for value in inputs}
        if len(lengths) > 1 or min(lengths) < 2:
            raise ValueError(
                "inputs must share a batch of at least 2 samples as first axis, got "
                f"{', '.join(map(str, sorted(lengths)))} samples; bind what has no batch with "
                "functools.partial"
            )
        kinds = {(value.dtype, value.device) for value in floating}
        devices = {value.device for value in inputs}
        if len(kinds) > 1 or len(devices) > 1:
            raise ValueError(
                f"inputs must share one dtype and device, got "
                f"{', '.join(sorted(f'{dtype} on {device}' for dtype, device in kinds))}"
            )
        return cls(function, tuple(value.detach() for value in inputs))


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cast(inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The floating-point inputs in another precision, copies of all."""
    return [
        value.to(dtype if value.is_floating_point() else value.dtype, copy=True) for value in inputs
    ]


def nearby(inputs: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """Inputs a little moved: at a special point, such as rest, an influence may vanish."""
    generator = torch.Generator("cpu").manual_seed(seed)
    moved = []
    for value in inputs:
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64, device="cpu")
        change = 1e-2 * noise.to(value) * (1 + value.abs()) if value.is_floating_point() else None
        moved.append(value if change is None else value + change)
    return moved
