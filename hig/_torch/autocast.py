"""A step inside of ``torch.autocast``: the closure runs as it would there, the step does not."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

__all__ = ["apart_from_autocast"]

T = TypeVar("T")


def apart_from_autocast(
    closure: Callable[[], T], device: torch.device
) -> tuple[Callable[[], T], AbstractContextManager[object]]:
    """A closure that runs under the present autocast settings, and a context for all else.

    Args:
        closure: the closure of a step.
        device: that of the parameters.

    Returns:
        The closure and a context without autocast, in which it can be called too.
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return closure, nullcontext()
    dtype = torch.get_autocast_dtype(kind)

    def under_autocast() -> T:
        # What it has cast are the parameters of before they were moved.
        torch.clear_autocast_cache()
        with torch.autocast(kind, dtype=dtype):
            return closure()

    return under_autocast, torch.autocast(kind, enabled=False)
