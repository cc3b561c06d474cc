"""Steps along a damped direction: attempts with more and more damping, adapted step by step."""

import math
from dataclasses import replace
from typing import Any

from hig._spectral.filters import Damped, HalfInverse, SpectralFilter
from hig._step.damping import LEAST, LOWEST, START, Outcome, adapted_damping
from hig._step.linearisation import Linearisation
from hig._step.reports import StepReport
from hig._step.step_rules import StepRule
from hig._step.trial_step import Attempts, Trial

__all__ = ["DampedSteps"]

# A damped step has a reach of at most 1 if the learning rate suits the scale of the loss.
LONGEST_REACH = 1.1
# More attempts from one decomposition rarely help, nor more searches that find no step.
MOST_ATTEMPTS, MOST_SEARCHES = 6, 2
# Fractions of a rule below which the damping rises, and above which it may fall.
SHORT_FRACTION, WHOLE_FRACTION = 0.25, 0.9
UNSEEN_NOTE = "the gain is below the rounding of the loss: the damping stays"


class DampedSteps:
    """Takes steps with an adapted damping.

    Args:
        state: its memory, ``{"value": damping}``; None for one that follows from the first
            singular values.
        rule: the step rule.
        with_momentum: whether directions contain momentum.
    """

    def __init__(self, state: dict[str, Any], rule: StepRule, with_momentum: bool):
        self._state, self._rule, self._with_momentum = state, rule, with_momentum

    def take(
        self, attempts: Attempts, linearisation: Linearisation, given: SpectralFilter
    ) -> StepReport:
        """Move the parameters along a damped direction, and return the report.

        Args:
            attempts: returns a trial for a filter.
            linearisation: the decomposed Jacobian.
            given: the filter; its own damping is not used.
        """
        notes: list[str] = []
        filter = linearisation.resolved(given)
        if self._state["value"] is None:
            self._state["value"] = START * linearisation.largest(filter, exact=True) or START
        # No note for measured step rules (length already chosen), nor with momentum (not
        # comparable with the reach of a damped step).
        judged = not (self._rule.measures or self._with_momentum)
        for attempt in range(MOST_ATTEMPTS):
            damped, lowest = self._damped(filter, linearisation)
            trial = attempts(damped, tries=1, damped=self._state["value"] > lowest)
            if trial.lr == 0:
                return self._report(linearisation, damped, trial, None, notes)
            with linearisation.clock.phase("update"):
                outcome = self._attempt(trial)
            notes.extend(trial.notes)
            if trial.returned:
                return self._report(linearisation, damped, trial, None, notes)
            if judged and attempt == 0 and _reach(trial) > LONGEST_REACH:
                notes.append(_reach_note(trial))
            # If nothing can be gained, a first attempt is rejected because of its momentum.
            by_momentum = self._with_momentum and attempt == 0 and not outcome.can_gain
            if outcome.seen and not (outcome.rejected and by_momentum):
                self._adapt(outcome, trial, lowest)
            if not outcome.rejected:
                break
            trial.move(0)
            if outcome.ratio is None and attempt + 1 == MOST_SEARCHES:
                break
        if outcome.unseen and UNSEEN_NOTE not in notes:
            notes.append(UNSEEN_NOTE)
        return self._report(linearisation, damped, trial, outcome.ratio, notes)

    def _damped(
        self, filter: SpectralFilter, linearisation: Linearisation
    ) -> tuple[SpectralFilter, float]:
        """Return the filter with the present damping, and the lowest damping."""
        largest = linearisation.largest(filter)
        lowest = LOWEST * linearisation.decomposition.resolution**2 * largest
        least = LEAST * largest if getattr(self._rule, "batch_changes", False) else 0.0
        damping = self._state["value"] = max(self._state["value"], least)
        if isinstance(filter, Damped):
            return replace(filter, damping=damping), max(lowest, least)
        assert isinstance(filter, HalfInverse)
        # Below the cut-off the direction is that of the filter alone.
        lowest = max(lowest, filter.rcond**2 * largest)
        damped = replace(filter, damping=damping if damping > lowest else 0.0)
        return damped, max(lowest, least)

    def _attempt(self, trial: Trial) -> Outcome:
        """Let the step rule move, and return what that showed."""
        ratio = self._rule.take(trial)
        if not trial.step_size:
            return Outcome(ratio, trial.can_gain())
        measures, kept = self._rule.measures, ratio is not None
        fraction = self._rule.state.get("fraction") if measures else None
        if fraction is not None and not kept:  # "trust" measures now and then
            return Outcome(None, can_gain=not self._rule.state.get("unseen"), taken=True)
        ratio = trial.gain_ratio() if ratio is None else ratio
        if not measures or math.isnan(ratio):
            return Outcome(ratio, trial.can_gain())
        whole = trial.whole_ratio()
        if ratio == -math.inf and trial.measure(trial.step_size) < trial.loss:
            ratio = whole  # farther than the model is lower, and the loss has fallen all the same
        if fraction is None:
            return Outcome(ratio, trial.can_gain(), shortened=whole < 0, kept=kept)
        # The share of the Cauchy step may be smaller for the sake of other samples, for which more
        # damping is no remedy; the fraction falls for the present model alone.
        short, steady = fraction < SHORT_FRACTION, fraction <= WHOLE_FRACTION
        return Outcome(ratio, trial.can_gain(), short, steady, kept)

    def _adapt(self, outcome: Outcome, trial: Trial, lowest: float) -> None:
        """Change the damping after an attempt."""
        reach = None if self._rule.measures else _reach(trial)
        self._state["value"] = adapted_damping(
            self._state["value"], outcome, trial.largest, lowest, reach
        )

    def _report(
        self,
        linearisation: Linearisation,
        filter: SpectralFilter,
        trial: Trial,
        ratio: float | None,
        notes: list[str],
    ) -> StepReport:
        report = linearisation.report(filter)  # the attempts may have taken eigenvectors
        report.step_size, report.damping = trial.step_size, self._state["value"]
        report.gain_ratio = None if ratio is None or math.isnan(ratio) else ratio
        report.notes.extend(notes)
        return report


def _reach(trial: Trial) -> float:
    """Return the length of a step relative to the minimum of the quadratic model along it."""
    return trial.step_size * trial.curvature / trial.slope if trial.slope else 0.0


def _reach_note(trial: Trial) -> str:
    # Rounded up, so that the note of a sum of squares (2 without damping) is the same every step.
    times = math.ceil(min(_reach(trial), 1e9))
    return (
        f"lr is too large for the scale of this loss: the step goes up to {times} times as far as "
        f"its quadratic model is lowest; lr={trial.lr / times:.2g} suits, or step_rule='trust', or "
        "half the sum of squares as the loss with lr=1"
    )
