"""Schedules of evaluations."""

from collections.abc import Callable
from typing import Protocol

from experiments._run.options import Options
from problems import Problem

# Evaluations by time are 5 % of the training time apart, and never closer than this many seconds.
GROWTH, SHORTEST = 1.05, 0.05


class Schedule(Protocol):
    """Schedule of evaluations after steps; start and end of a run are evaluated in any case."""

    def due(self, step: int, seconds: float) -> bool:
        """Decide whether to evaluate now; called once after each step."""

    def state_dict(self) -> dict:
        """Return the state that later decisions depend on."""

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore a state."""


class EpochSchedule:
    """Evaluation after each pass through the training data."""

    def __init__(self, steps_per_epoch: int):
        self._steps_per_epoch = steps_per_epoch

    def due(self, step: int, seconds: float) -> bool:
        """Return whether a pass ends with this step."""
        return step % self._steps_per_epoch == 0

    def state_dict(self) -> dict:
        """Return no state."""
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Ignore the empty state."""


class TimeSchedule:
    """Evaluation at training times: the first, and those that ``following`` makes of the last."""

    def __init__(self, first: float, following: Callable[[float], float]):
        self._next, self._following = first, following

    def due(self, step: int, seconds: float) -> bool:
        """Return whether the next time is reached; a slow step may pass several, counted as one."""
        if seconds < self._next:
            return False
        self._next = self._following(seconds)
        return True

    def state_dict(self) -> dict:
        """Return the training time of the next evaluation."""
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore a state."""
        self._next = state_dict["next"]


def growing() -> TimeSchedule:
    """Make a schedule of times that are evenly spaced on a logarithmic axis."""
    return TimeSchedule(SHORTEST, lambda seconds: max(GROWTH * seconds, seconds + SHORTEST))


def schedule(problem: Problem, steps_per_epoch: int, options: Options) -> Schedule:
    """Choose the schedule of the options, or else of the problem by ``evaluate_by``."""
    if (every := options.evaluate_every) is not None:
        return TimeSchedule(every, lambda seconds: (seconds // every + 1) * every)
    return growing() if problem.evaluate_by == "time" else EpochSchedule(steps_per_epoch)
