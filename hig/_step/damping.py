"""Adaptation of the damping of Levenberg-Marquardt: numbers in, numbers out."""

import math
from dataclasses import dataclass

__all__ = ["LEAST", "LOWEST", "START", "Outcome", "adapted_damping"]

# A step with a gain ratio of at most this is rejected.
LEAST_RATIO = 1e-3
# Highest damping, relative to the largest squared singular value: a step of negligible length, from
# which twenty steps lead back. For a rule that chooses the length, more only does the same.
HIGHEST, HIGHEST_MEASURED = 1e6, 1e1
# Damping of the first step, relative to the largest squared singular value. Directions that the
# physics scales by less than a tenth wait until the others are learned: from one batch of an
# untrained network they generalise badly to the samples of others.
START = 1e-2
# Least damping where every batch is another, in the same units: directions that the physics scales
# by less than 1e-4 are learned from many batches, of which each shows little of them.
LEAST = 1e-8
# Lowest damping, relative to the one that is lost in the rounding of the largest singular value.
LOWEST = 4.0


@dataclass(frozen=True)
class Outcome:
    """Measurements of one attempt at a step.

    Attributes:
        ratio: achieved over predicted decrease of the loss; NaN if both are lost in its rounding,
            None if the step rule took no step.
        can_gain: whether the lowest point of the quadratic model is visibly below the loss.
        shortened: whether a rule that measures has to shorten steps by more than half.
        steady: whether it has to shorten them at all.
        kept: whether a rule that measures keeps the step whatever the ratio is.
        taken: whether a rule took a step without measuring it.
    """

    ratio: float | None
    can_gain: bool
    shortened: bool = False
    steady: bool = False
    kept: bool = False
    taken: bool = False

    @property
    def seen(self) -> bool:
        """Whether the attempt shows anything about the damping."""
        return not (self.taken or (self.unseen and not self.can_gain))

    @property
    def unseen(self) -> bool:
        """Whether the rounding of the loss hides whether the step is good."""
        return not self.can_gain if self.ratio is None else math.isnan(self.ratio)

    @property
    def rejected(self) -> bool:
        """Whether the step gained visibly too little."""
        if self.unseen or self.kept or self.taken:
            return False
        return self.ratio is None or self.ratio <= LEAST_RATIO

    def factor(self, dominant: bool) -> float:
        """Return the factor of the damping.

        Args:
            dominant: whether the damping exceeds all squared singular values.
        """
        if self.unseen:
            # If a longer step would be seen, it is the damping that hides the gain.
            return 1 / 3 if self.can_gain and dominant else 1.0
        if self.rejected or self.ratio is None:
            return 4.0
        # A rule that shortens the step far enough finds it as good as predicted; with more damping
        # only those directions are shortened that need it.
        if self.shortened or self.ratio < 0.25:
            return 2.0
        return 1 / 3 if self.ratio > 0.75 and not self.steady else 1.0


def adapted_damping(
    damping: float, outcome: Outcome, largest: float, lowest: float, reach: float | None
) -> float:
    r"""Return the damping after an attempt.

    It falls to a third if the quadratic model predicted the decrease well. It doubles if it
    predicted poorly, or if a rule that measures has to shorten steps by more than half, and rises
    fourfold if the step was rejected. It stays if the rounding of the loss hides the
    gain. It is kept between the rounding of the largest squared singular value and 1e6 times that
    value: more for a loss so curved in the outputs that such steps still reach far, 10 times for a
    rule that chooses the length of the step.

    Args:
        damping: the damping of the attempt.
        outcome: what the attempt showed.
        largest: square of the largest singular value.
        lowest: damping below which it makes no difference.
        reach: length of the step relative to the minimum of the quadratic model along it; None if
            the step rule chooses it.
    """
    if not outcome.seen:
        return damping
    # Beyond the singular values the reach is inversely proportional to the damping.
    undamped = 0.0 if reach is None else damping * reach
    damping *= outcome.factor(dominant=damping > largest)
    if not 0 < largest < math.inf:
        return damping
    highest = HIGHEST_MEASURED * largest if reach is None else HIGHEST * max(largest, undamped)
    return min(max(damping, lowest, 1e-300), highest, 1e300)
