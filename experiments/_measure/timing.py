"""Timing and peak memory of functions, side by side in one run."""

import gc
import math
import resource
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from experiments._run.clock import seconds_of

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def interleaved_seconds(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int,
    device: str,
    patience: float = math.inf,
    clock: str = "wall",
) -> dict[str, list[float]]:
    """Seconds of each function in each round, A B C A B C …, so that drift hits all alike.

    After ``warm_up`` calls ``rounds`` are counted; a function that has taken ``patience`` seconds
    has no further turn. CUDA kernels are waited for.

    Raises:
        ValueError: If the clock is unknown or cannot be used on the device.
    """
    read = seconds_of(clock, device)
    spent = dict.fromkeys(functions, 0.0)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + rounds):
        for name, function in functions.items():
            if spent[name] > patience and (seconds[name] or turn < warm_up):
                continue
            _synchronize(device)
            start = read()
            function()
            _synchronize(device)
            elapsed = read() - start
            spent[name] += elapsed
            if turn >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratio within a round, over the rounds in which both had a turn."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=False))


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """Memory that a call of ``function`` needs at its peak, above the memory in use before.

    On a GPU the memory that torch allocated there. On Linux the resident memory of the process,
    whose peak is reset first; elsewhere the peak cannot be reset, and each measurement needs a
    process of its own.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()  # memory freed meanwhile would be missed from the peak
    before = _resident("VmRSS")
    if _RESET.exists():
        _RESET.write_text("5")
    function()
    return _resident("VmHWM") - before


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _resident(key: str) -> int:
    if _STATUS.exists():
        lines = _STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
