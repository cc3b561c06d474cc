"""Deferred checks of device tensors, evaluated in one host synchronisation, and a phase clock."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.profiler import record_function

__all__ = ["DeferredChecks", "PhaseClock"]


class DeferredChecks:
    """Collects conditions and evaluates them in one transfer: each would make the host wait.

    The first failing check is raised.
    """

    def __init__(self) -> None:
        self._conditions: list[tuple[Tensor, Callable[[], None]]] = []

    def expect(self, holds: Tensor, otherwise: Callable[[], None]) -> None:
        """Add a condition.

        Args:
            holds: one boolean.
            otherwise: raises the error of a condition that does not hold.
        """
        self._conditions.append((holds.detach().reshape(()), otherwise))

    def settle(self, keep: bool = False) -> None:
        """Evaluate all conditions added since the last call; raise for the first that fails.

        Args:
            keep: keep them for the next call: a replay will write other values to their tensors.
        """
        conditions = self._conditions
        if not keep:
            self._conditions = []
        if not conditions:
            return
        device = conditions[-1][0].device
        flags = torch.stack([holds.to(device) for holds, _ in conditions]).tolist()
        for holds, (_, otherwise) in zip(flags, conditions, strict=True):
            if not holds:
                otherwise()


class PhaseClock:
    """Adds up seconds per named phase; under ``torch.profiler`` phases show as "hig: name"."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the context under ``name``."""
        # Outside of the profiler its marks would cost more than the clock.
        profiled = torch.autograd._profiler_enabled()
        mark = record_function(f"hig: {name}") if profiled else nullcontext()
        start = time.perf_counter()
        try:
            with mark:
                yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
