"""Progress of a run: how far the loss has fallen since its first steps."""

import math
from typing import Any

__all__ = ["Progress"]

# Steps whose mean is the start; of which the present mean has about as many; before a judgement.
_FIRST, _RECENT, _LEAST_STEPS = 5, 8, 20


class Progress:
    """Geometric means of the losses of the first and of recent steps.

    Args:
        state: its memory, plain numbers; empty for a new run.
    """

    def __init__(self, state: dict[str, Any]):
        self.state = state
        for name, value in (("steps", 0), ("first", 0.0), ("recent", 0.0)):
            state.setdefault(name, value)

    def add(self, loss: float) -> None:
        """Take in the loss before a step; one that is not positive says nothing."""
        if not 0 < loss < math.inf:
            return
        state, logarithm = self.state, math.log(loss)
        state["steps"] += 1
        if state["steps"] <= _FIRST:
            state["first"] += (logarithm - state["first"]) / state["steps"]
        state["recent"] += (logarithm - state["recent"]) / min(state["steps"], _RECENT)

    def restart(self, loss: float) -> None:
        """Begin again at a loss above that of the first steps, where other data are the reason."""
        if self.decades() > 0 and 0 < loss < math.inf and math.log(loss) > self.state["first"]:
            self.state.update(steps=0, first=0.0, recent=0.0)

    def decades(self) -> float:
        """Return how many powers of ten the loss has fallen by."""
        decades: float = (self.state["first"] - self.state["recent"]) / math.log(10)
        return decades

    def notes(self) -> list[str]:
        """Return a note if the loss is no lower than at the start."""
        if self.state["steps"] < _LEAST_STEPS or self.decades() > 0:
            return []
        first, recent = math.exp(self.state["first"]), math.exp(self.state["recent"])
        return [
            f"this run may be lost: the loss of recent steps is {recent:.3g}, that of the first "
            f"ones was {first:.3g}; if it does not fall soon, start again with other weights, a "
            "larger batch or, with step_rule='fixed', a smaller lr"
        ]
