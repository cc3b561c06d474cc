"""The training clock."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def seconds_of(kind: str, device: str | torch.device) -> Callable[[], float]:
    """Look up the function that reads a kind of clock; a ValueError as for `TrainingClock`."""
    if kind not in CLOCKS:
        raise ValueError(f"clock must be one of {', '.join(CLOCKS)}, got {kind!r}")
    if kind == "processor" and torch.device(device).type != "cpu":
        raise ValueError(
            f"the processor clock does not see the work of {device}; use the wall clock"
        )
    return CLOCKS[kind]


class TrainingClock:
    """Adds up the seconds spent in training steps, evaluation and progress excluded.

    Args:
        device: Device of the training; work queued on a CUDA device is waited for, so that
            it counts by default.
        kind: ``"wall"``, or ``"processor"`` for the processor time of this process. With one
            thread that is the time on a quiet machine, however busy this one is; several
            threads add up.

    Attributes:
        seconds: Training time so far.

    Raises:
        ValueError: If the kind is unknown, or ``"processor"`` on another device than the CPU.
    """

    def __init__(self, device: str | torch.device, kind: str = "wall"):
        self.seconds = 0.0
        self._device = torch.device(device)
        self._now = seconds_of(kind, self._device)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the body; counts also when it raises."""
        self._synchronize()
        start = self._now()
        try:
            yield
            self._synchronize()
        finally:
            self.seconds += self._now() - start

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
