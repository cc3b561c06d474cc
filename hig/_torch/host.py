"""Deferred checks of device tensors, evaluated in one host synchronisation, and a phase clock."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

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

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Return a context that counts the time inside it under ``name``."""
        return _Phase(self.seconds, name)


class _Phase:
    """Context of one phase; a class, as generators cost several times as much in each step."""

    __slots__ = ("_mark", "_name", "_seconds", "_start")

    def __init__(self, seconds: dict[str, float], name: str):
        self._seconds, self._name = seconds, name
        self._mark: record_function | None = None

    def __enter__(self) -> None:
        # Outside of the profiler its marks would cost more than the clock.
        if torch.autograd._profiler_enabled():
            self._mark = record_function(f"hig: {self._name}")
            self._mark.__enter__()
        self._start = time.perf_counter()

    def __exit__(self, *exception: Any) -> None:
        elapsed = time.perf_counter() - self._start
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + elapsed
        if self._mark is not None:
            self._mark.__exit__(*exception)
