"""Memory for float64 copies that is used again from call to call.

An allocator returns blocks of this size to the system, and each page that it gets back is made
when first written: that takes several times as long as the arithmetic on it.
"""

import threading

import torch
from torch import Tensor

__all__ = ["give_back", "take"]


class _Spare(threading.local):
    """The block of a thread that no one uses at the moment."""

    memory: Tensor | None = None


_spare = _Spare()


def take(entries: int) -> Tensor:
    """Take memory on the CPU, which is no one else's until it is given back.

    Args:
        entries: how many there must be at least.

    Returns:
        A float64 vector, its entries arbitrary.
    """
    memory, _spare.memory = _spare.memory, None
    if memory is not None and memory.numel() >= entries:
        return memory
    with torch.inference_mode(False):  # it may be written outside of that mode later
        return torch.empty(entries, dtype=torch.float64, device="cpu")


def give_back(memory: Tensor) -> None:
    """Give memory back that :func:`take` returned, when nothing refers to its entries any more."""
    spare = _spare.memory
    # Inside modes of torch that replace tensors it is no memory.
    if type(memory) is Tensor and (spare is None or spare.numel() < memory.numel()):
        _spare.memory = memory
