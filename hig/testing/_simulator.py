"""Simulator to be checked, with its inputs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hig.errors import described

__all__ = [
    "SimulationError",
    "Simulator",
    "cast",
    "first_line",
    "nearby",
    "same_random_numbers",
    "typical_sizes",
    "user_code",
]


class SimulationError(Exception):
    """Error raised by the simulator or by its backward pass; never leaves this package.

    Attributes:
        error: the error itself, of any class.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {first_line(error)}")
        self.error = error


@contextmanager
def user_code() -> Iterator[None]:
    """Turn every error of the simulator into a `SimulationError`, which checks report."""
    try:
        yield
    except SimulationError:
        raise
    # Solvers define their own error classes, many derived from Exception itself: all of them are
    # results of the simulator. Only its code is called in this context, so that errors of hig are
    # not caught; nor are KeyboardInterrupt and SystemExit.
    except Exception as error:
        raise SimulationError(error) from error


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Seed torch's random numbers, and restore their state afterwards."""
    with torch.random.fork_rng():
        # Not torch.manual_seed: until CUDA is used, it stores a formatted traceback per call.
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(0)
        yield


@dataclass
class Calls:
    """Counts of calls of the simulator.

    Attributes:
        simulations: number of forward passes.
        passes: number of backward passes; those in one batch count as one.
    """

    simulations: int = 0
    passes: int = 0


@dataclass(frozen=True)
class Simulator:
    """Function and its inputs (batch, ...), detached; at least one is floating-point."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    calls: Calls = field(default_factory=Calls)

    def simulate(self, *inputs: Tensor) -> Tensor:
        """Simulate the inputs themselves; the output may share the simulator's memory."""
        self.calls.simulations += 1
        with user_code():
            return self.function(*inputs)

    def run(self, *inputs: Tensor) -> Tensor:
        """Simulate copies of the inputs, with the same random numbers every time."""
        with same_random_numbers():
            output = self.simulate(*(value.clone() for value in inputs))
        # The next call may overwrite it.
        return output.clone() if isinstance(output, Tensor) else output

    def with_graph(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Simulate with a graph; return leaves for the floating-point inputs, and the output."""
        copies = [value.detach().clone() for value in inputs]
        for position in self.floating:
            copies[position].requires_grad_()
        with torch.enable_grad():
            return [copies[position] for position in self.floating], self.run(*copies)

    def pulled_back(
        self, output: Tensor, leaves: Sequence[Tensor], cotangent: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute gradients of the leaves for one cotangent, zero if unused; keep the graph."""
        self.calls.passes += 1
        with user_code():
            return torch.autograd.grad(
                output,
                list(leaves),
                cotangent,
                allow_unused=True,
                retain_graph=True,
                materialize_grads=True,
            )

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Simulate copies of the inputs without a graph, see :meth:`run`."""
        with torch.no_grad():
            return self.run(*inputs)

    @property
    def floating(self) -> list[int]:
        """Positions of the inputs that may have a derivative."""
        return [i for i, value in enumerate(self.inputs) if value.is_floating_point()]

    @property
    def samples(self) -> int:
        """Number of samples B."""
        return len(self.inputs[0])

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the floating-point inputs."""
        return self.inputs[self.floating[0]].dtype

    @property
    def device(self) -> torch.device:
        """Device of all inputs."""
        return self.inputs[0].device

    @classmethod
    def of(cls, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> "Simulator":
        """Make a simulator after checking its inputs.

        Raises:
            TypeError: the function is not callable, an input is not a tensor, or none is floating.
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
    """Return the first line of the text of an error, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cast(inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copy inputs, the floating-point ones in another precision."""
    return [
        value.to(dtype if value.is_floating_point() else value.dtype, copy=True) for value in inputs
    ]


def typical_sizes(value: Tensor) -> Tensor:
    """Typical size of each entry of (batch, ...), by which it may be moved: positive float64.

    The size of the entry itself, but not less than that of its sample and of the same entry in
    other samples, whichever is smaller: units may differ by orders of magnitude between entries
    and between samples, and single entries may be zero.
    """
    size = value.detach().double().abs()
    place = size.square().mean(0, keepdim=True).sqrt()
    sample = size.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (size.ndim - 1))
    size = torch.maximum(size, torch.minimum(place, sample))
    for larger in (place.expand_as(size), size.square().mean().sqrt(), torch.ones_like(size)):
        size = torch.where(size > 0, size, larger)
    return size


def nearby(inputs: Sequence[Tensor], seed: int = 0, distance: float = 1e-2) -> list[Tensor]:
    """Move inputs a little: at a special point, such as rest, an influence may vanish."""
    generator = torch.Generator("cpu").manual_seed(seed)
    moved = []
    for value in inputs:
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64, device="cpu")
        if value.is_floating_point():
            change = distance * noise.to(value.device) * typical_sizes(value)
            moved.append(value + change.to(value.dtype))
        else:
            moved.append(value)
    return moved
