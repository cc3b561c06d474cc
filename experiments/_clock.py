"""The training clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class TrainingClock:
    """Adds up the seconds spent in training steps, evaluation and progress excluded.

    Args:
        device: Device of the training; work queued on a CUDA device is waited for, so that
            it counts where it was asked for.

    Attributes:
        seconds: Training time so far.
    """

    def __init__(self, device: str | torch.device):
        self.seconds = 0.0
        self._device = torch.device(device)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the body; counts also when it raises."""
        self._synchronize()
        start = time.perf_counter()
        try:
            yield
            self._synchronize()
        finally:
            self.seconds += time.perf_counter() - start

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
