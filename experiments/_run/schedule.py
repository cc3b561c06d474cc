"""When a run is evaluated."""

from typing import Protocol

from experiments._run.options import Options
from problems import Problem

# Evaluations by time are 5 % of the training time apart, and never closer than this many seconds.
GROWTH, SHORTEST = 1.05, 0.05


class Schedule(Protocol):
    """Decides after each step; the start and the end of a run are evaluated in any case."""

    def due(self, step: int, seconds: float) -> bool:
        """Whether to evaluate now, to be asked once after each step.

        Args:
            step: Steps so far.
            seconds: Training time so far.
        """

    def state_dict(self) -> dict:
        """What the next answers depend on beside their questions."""

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on where another one was."""


class EpochSchedule:
    """After each pass through the training data.

    Args:
        steps_per_epoch: Steps of one pass.
    """

    def __init__(self, steps_per_epoch: int):
        self._steps_per_epoch = steps_per_epoch

    def due(self, step: int, seconds: float) -> bool:
        """Whether a pass ends with this step."""
        return step % self._steps_per_epoch == 0

    def state_dict(self) -> dict:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Nothing to do."""


class _ByTime:
    """The part of a schedule that knows the next time."""

    _next: float

    def state_dict(self) -> dict:
        """The training time of the next evaluation."""
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on where another one was."""
        self._next = state_dict["next"]


class TimeSchedule(_ByTime):
    """At training times that grow by a constant factor, evenly spaced on a logarithmic axis."""

    def __init__(self):
        self._next = SHORTEST

    def due(self, step: int, seconds: float) -> bool:
        """Whether the next time is reached; a slow step may pass several, which count as one."""
        if seconds < self._next:
            return False
        self._next = max(GROWTH * seconds, seconds + SHORTEST)
        return True


class EvenSchedule(_ByTime):
    """At even training times.

    Args:
        seconds: From one evaluation to the next.
    """

    def __init__(self, seconds: float):
        self._seconds, self._next = seconds, seconds

    def due(self, step: int, seconds: float) -> bool:
        """Whether the next time is reached; a slow step may pass several, which count as one."""
        if seconds < self._next:
            return False
        self._next = (seconds // self._seconds + 1) * self._seconds
        return True


def schedule(problem: Problem, steps_per_epoch: int, options: Options) -> Schedule:
    """The schedule that the options ask for, or else the problem by ``evaluate_by``."""
    if options.evaluate_every is not None:
        return EvenSchedule(options.evaluate_every)
    return TimeSchedule() if problem.evaluate_by == "time" else EpochSchedule(steps_per_epoch)
