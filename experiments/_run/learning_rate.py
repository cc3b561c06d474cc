"""Step sizes that change during a run."""

import math
from typing import Any

SCHEDULES = ("constant", "cosine")
# The cosine schedule ends at this share of the step size. It begins with a warm-up of so many
# steps, or of this share of the run if that is shorter.
LAST, WARM_UP_STEPS, WARM_UP_SHARE = 0.1, 100, 0.01


def factor(schedule: str, step: int, done: float, warms_up: bool = True) -> float:
    """Factor of the step size, above 0 and up to 1, when a share ``done`` of the run is over.

    The schedule ``"cosine"`` is half a cosine from 1 to a tenth, after a linear warm-up over 100
    steps or 1 % of the run. Steps whose rule begins short by itself need no warm-up.
    """
    if schedule == "constant":
        return 1.0
    warm = min(1.0, max((step + 1) / WARM_UP_STEPS, done / WARM_UP_SHARE)) if warms_up else 1.0
    return warm * (LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def set_learning_rate(optimizer: Any, lr: float) -> None:
    """Set the step size of all parameter groups of an optimiser."""
    for group in optimizer.param_groups:
        group["lr"] = lr
