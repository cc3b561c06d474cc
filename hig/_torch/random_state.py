"""State of the global random generators, so that a function sees the same numbers again."""

import random
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

__all__ = ["RandomState"]

Result = TypeVar("Result")


class RandomState:
    """State of the global random generators of torch, NumPy and Python at one moment.

    Args:
        device: the device of the parameters; on CUDA its generator is remembered too.
        host: whether to remember those of NumPy and Python, which takes fifty times as long as
            torch's.
    """

    def __init__(self, device: torch.device, host: bool = True):
        self._cpu = torch.get_rng_state()
        self._device = device
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._host = _host_state() if host else None

    def keep_used(self) -> bool:
        """Forget the generators of NumPy and Python if none has been used since.

        Returns:
            Whether they are known to have been used.
        """
        if self._host is not None and _equal(self._host, _host_state()):
            self._host = None
        return self._host is not None

    def replay(self, function: Callable[[], Result]) -> Result:
        """Call ``function`` from the remembered state, and restore the present state."""
        if self._host is None:
            return self._replay_torch(function)
        present = _host_state()
        try:
            _restore_host(self._host)
            return self._replay_torch(function)
        finally:
            _restore_host(present)

    def restore(self) -> None:
        """Set the generators to the remembered state."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        if self._host is not None:
            _restore_host(self._host)

    def _replay_torch(self, function: Callable[[], Result]) -> Result:
        devices = [self._device] if self._cuda is not None else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            return function()


def _host_state() -> dict[str, Any]:
    """Return the states of the global generators of NumPy and Python."""
    # Not NumPy's legacy form, which warns about other bit generators than the default one.
    of_numpy = np.random.get_state(legacy=False)  # noqa: NPY002 (closures draw from it)
    return {"numpy": of_numpy, "python": random.getstate()}


def _restore_host(state: dict[str, Any]) -> None:
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


def _equal(first: Any, second: Any) -> bool:
    """Return whether two states, nested dictionaries of arrays and tuples, are the same."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    return bool(first == second)
