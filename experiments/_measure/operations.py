"""Operations of a computation, and the rates of the machine."""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_ENTER, _EXIT = "profiler._record_function_enter_new", "profiler._record_function_exit"


@dataclass
class Operations:
    """Operations of one phase.

    Attributes:
        calls: tensor operations that were started, views excluded.
        flops: floating-point operations of matrix products and convolutions, by real dtype; those
            elementwise operations are limited by memory instead.
        bytes: read and written, as if there were no caches.
    """

    calls: int = 0
    flops: dict[torch.dtype, int] = field(default_factory=lambda: defaultdict(int))
    bytes: int = 0


class OperationCounter(TorchDispatchMode):
    """Counts operations by phase, as ``torch.profiler`` marks them.

    Attributes:
        phases: by the name of the phase; "" outside of any.
    """

    def __init__(self, prefix: str):
        super().__init__()
        self.phases: dict[str, Operations] = defaultdict(Operations)
        self._prefix = prefix
        self._names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """See ``TorchDispatchMode``."""
        name = str(function)
        if name.startswith(_ENTER):
            self._names.append(args[0])
        elif name.startswith(_EXIT):
            self._names.pop()
        result = function(*args, **(kwargs or {}))
        if not name.startswith("profiler.") and not function.is_view:
            self._count(function, args, kwargs or {}, result)
        return result

    def _count(self, function, args, kwargs, result) -> None:
        inner = [name for name in self._names if name.startswith(self._prefix)]
        found = self.phases[inner[-1].removeprefix(self._prefix) if inner else ""]
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        found.calls += 1
        found.bytes += sum(t.numel() * t.element_size() for t in tensors)
        count = flop_registry.get(function.overloadpacket)
        if count is not None:
            real = _REAL.get(result.dtype, result.dtype)
            # A product of complex numbers is four of real ones.
            times = 1 if real == result.dtype else 4
            found.flops[real] += times * count(*args, **kwargs, out_val=result)


@dataclass(frozen=True)
class Rates:
    """Measured rates of the machine.

    Attributes:
        flops: per second, of large matrix products, by dtype.
        bytes: per second, of a large copy, read and written.
        launch: seconds to start a small operation.
    """

    flops: dict[torch.dtype, float]
    bytes: float
    launch: float

    def floor(self, operations: Operations) -> float:
        """Lower bound of the seconds of the operations, at the measured rates."""
        compute = sum(n / self.flops[dtype] for dtype, n in operations.flops.items())
        return max(compute, operations.bytes / self.bytes)


def measure_rates(device: str, size: int = 1024, repeats: int = 5) -> Rates:
    """Measure the machine: the best of some tries.

    Matrices of ``size`` are multiplied; the copy is of 64 times as many numbers.
    """
    flops = {}
    for dtype in (torch.float32, torch.float64):
        matrix = torch.randn(size, size, dtype=dtype, device=device)
        flops[dtype] = 2 * size**3 / min(_seconds(lambda m=matrix: m @ m, device, repeats))
    source = torch.zeros(64 * size**2, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    copy = min(_seconds(lambda: target.copy_(source), device, repeats))
    small = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(1000):
            small.add_(1.0)

    return Rates(flops, moved / copy, min(_seconds(launches, device, repeats)) / 1000)


def _seconds(function, device: str, repeats: int) -> Iterator[float]:
    function()
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        yield time.perf_counter() - start


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
