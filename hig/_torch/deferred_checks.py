"""Conditions on numbers that lie on the device, read together."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Checks"]


class Checks:
    """Collects conditions and reads them in one transfer: each would make the host wait.

    The first condition that does not hold is the one that is told.
    """

    def __init__(self) -> None:
        self._conditions: list[tuple[Tensor, Callable[[], None]]] = []

    def expect(self, holds: Tensor, otherwise: Callable[[], None]) -> None:
        """Remember a condition.

        Args:
            holds: one boolean.
            otherwise: raises what is to be raised where it does not hold.
        """
        self._conditions.append((holds.detach().reshape(()), otherwise))

    def settle(self, keep: bool = False) -> None:
        """Read all conditions since the last time, and raise for the first that does not hold.

        Args:
            keep: leave them here, where their tensors will hold other values another time.
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
