"""Memory for float64 copies, reused from call to call.

The allocator returns blocks of this size to the system, and pages of new blocks are created when
first written: that takes several times as long as the arithmetic on them.
"""

import threading

import torch
from torch import Tensor

__all__ = ["give_back", "take"]


class _Spare(threading.local):
    """Block of a thread that is not in use."""

    memory: Tensor | None = None


_spare = _Spare()


def take(entries: int) -> Tensor:
    """Take at least so many float64 entries on the CPU until :func:`give_back`."""
    memory, _spare.memory = _spare.memory, None
    if memory is not None and memory.numel() >= entries:
        return memory
    with torch.inference_mode(False):  # later calls may write it outside of inference mode
        return torch.empty(entries, dtype=torch.float64, device="cpu")


def give_back(memory: Tensor) -> None:
    """Return memory from :func:`take`; nothing may refer to its entries any more."""
    spare = _spare.memory
    # Modes of torch that replace tensors, such as fake tensors, have no memory behind them.
    if type(memory) is Tensor and (spare is None or spare.numel() < memory.numel()):
        _spare.memory = memory
