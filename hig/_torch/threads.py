"""Number of threads that pays off next to the other processes of the machine.

The threads of OpenMP spin while they wait for one another. If another process occupies one of their
cores, they spin until the scheduler takes them off it: a decomposition of 128 rows takes a second
on two threads that takes three milliseconds on one. The runtime reads how long it may spin before
torch is imported, so a library cannot change that; it can take fewer threads for as long as others
need the cores, and restore the number.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

try:
    import resource
except ImportError:  # Windows: the number of threads stays
    resource = None  # type: ignore[assignment]

__all__ = ["FittingThreads", "fitting_threads", "on_fitting_threads"]

Given = ParamSpec("Given")
Result = TypeVar("Result")

# A user who sets one of these has chosen how many threads there are, or how long they spin.
DECIDED_BY = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME",
)  # fmt: skip
# A process that shares no core is interrupted a few times a second, one that does a hundred times.
SWITCHES_PER_SECOND = 25.0
# Shortest time, in seconds, over which a rate is measured.
LOOKED_AT_LEAST = 0.02
# Fewer threads are taken if they need less than this share of the time.
PAYS = 0.7
# Seconds without interruption after which all threads are tried again, and the longest pause
# between two measurements.
QUIET, LONGEST_PAUSE = 1.0, 64.0
# Size of the matrix product that is timed, and how often and how long at most.
SIDE, PRODUCTS, SECONDS = 128, 20, 0.03


class FittingThreads:
    """Chooses a number of threads by how often the process is interrupted.

    Args:
        switches: returns how often the process has been taken off its core so far.
        seconds: the wall-clock.
        measure: returns the seconds that a small product takes on a number of threads.
    """

    def __init__(
        self,
        switches: Callable[[], int],
        seconds: Callable[[], float],
        measure: Callable[[int], float],
    ):
        self._switches, self._seconds, self._measure = switches, seconds, measure
        self._mark = switches(), seconds()
        self._chosen: int | None = None  # None for as many as there are
        self._quiet_since = self._next_measurement = seconds()
        self._pause = QUIET

    def choose(self, most: int) -> int:
        """Return the number of threads to use now, at most ``most``."""
        now = self._seconds()
        elapsed = now - self._mark[1]
        if elapsed >= LOOKED_AT_LEAST:
            before, self._mark = self._mark[0], (self._switches(), now)
            if self._mark[0] - before > SWITCHES_PER_SECOND * elapsed:
                self._quiet_since = self._seconds()
                if now >= self._next_measurement:
                    self._decide(most)
            elif self._chosen is not None and now - self._quiet_since > self._pause:
                self._chosen, self._next_measurement = None, now
        return most if self._chosen is None else min(self._chosen, most)

    def _decide(self, most: int) -> None:
        times = {most: self._measure(most)}
        fewer = most
        while fewer > 1:
            fewer //= 2
            times[fewer] = self._measure(fewer)
        best = min(times, key=times.__getitem__)
        self._chosen = best if times[best] < PAYS * times[most] else None
        # Doubled pauses: measuring again and again would cost more than fewer threads gain.
        self._quiet_since = self._seconds()
        self._next_measurement = self._quiet_since + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _measure(threads: int) -> float:
    before = torch.get_num_threads()
    factor = torch.ones((SIDE, SIDE), dtype=torch.float64, device="cpu")
    torch.set_num_threads(threads)
    try:
        factor @ factor  # starts the threads
        start = time.perf_counter()
        for count in range(1, PRODUCTS + 1):  # noqa: B007
            factor @ factor
            if time.perf_counter() - start > SECONDS:
                break
        return (time.perf_counter() - start) / count
    finally:
        torch.set_num_threads(before)


def _make_chooser(environment: Mapping[str, str]) -> FittingThreads | None:
    """Return a chooser of the number of threads; None if the environment sets the number."""
    if resource is None or any(name in environment for name in DECIDED_BY):
        return None
    return FittingThreads(_switches, time.perf_counter, _measure)


_DEFAULT, _FITTING = torch.get_num_threads(), _make_chooser(os.environ)


@contextmanager
def fitting_threads() -> Iterator[None]:
    """Run on as many threads as pay off at present; the number is restored, after errors too.

    Unchanged if the user has set it, by ``torch.set_num_threads`` or the environment.
    """
    most = torch.get_num_threads()
    if _FITTING is None or most == 1 or most != _DEFAULT:
        yield
        return
    threads = _FITTING.choose(most)
    if threads == most:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(most)


def on_fitting_threads(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Make a function run on as many threads as pay off, see :func:`fitting_threads`."""

    @wraps(function)
    def wrapped(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with fitting_threads():
            return function(*args, **kwargs)

    return wrapped
