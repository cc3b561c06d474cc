"""Adaptation of the damping of Levenberg-Marquardt: numbers in, numbers out."""

import math
from dataclasses import dataclass

__all__ = ["Outcome", "adapted_damping"]

# A step with a gain ratio of at most this is rejected.
LEAST_RATIO = 1e-3
# Highest damping, relative to the largest squared singular value: a step of negligible length, from
# which twenty steps lead back.
HIGHEST = 1e6
# Lowest damping, relative to the one that is lost in the rounding of the largest singular value.
LOWEST = 4.0


@dataclass(frozen=True)
class Outcome:
    """Measurements of one attempt at a step.

    Attributes:
        ratio: achieved over predicted decrease of the loss, NaN if it is below the rounding of the
            loss; None if the step rule took no step.
        share: the part that a step rule took of the step to the lowest point of the quadratic
            model along it; 1 for rules that do not measure.
        can_gain: whether that point is visibly below the loss.
        lowered: whether the rule lowered the loss by a step for which the model predicts a rise.
    """

    ratio: float | None
    share: float
    can_gain: bool
    lowered: bool = False

    @property
    def unseen(self) -> bool:
        """Whether the rounding of the loss hides whether the step is good."""
        return not self.can_gain if self.ratio is None else math.isnan(self.ratio)

    @property
    def rejected(self) -> bool:
        """Whether the step gained visibly too little."""
        if self.unseen or self.lowered:
            return False
        return self.ratio is None or self.ratio <= LEAST_RATIO

    def factor(self, dominant: bool) -> float:
        """Return the factor of the damping.

        Args:
            dominant: whether the damping exceeds all squared singular values.
        """
        if self.unseen:
            # Where a longer step would be seen, it is the damping that hides the gain.
            return 1 / 3 if self.can_gain and dominant else 1.0
        if self.rejected:
            return 4.0
        # The gain of a shortened step says nothing about the whole one, which is too long: with
        # more damping the small singular values are shortened alone.
        if self.share < 0.5:
            return 2.0
        if self.ratio is None or self.lowered:
            return 1.0
        if self.ratio > 0.75:
            return 1 / 3
        return 2.0 if self.ratio < 0.25 else 1.0


def adapted_damping(
    damping: float, outcome: Outcome, largest: float, resolution: float, reach: float = 0.0
) -> float:
    r"""Return the damping after an attempt.

    It falls to a third if the quadratic model predicted the decrease well, doubles if it predicted
    poorly or the step had to be shortened, and rises fourfold if the step was rejected; it stays
    if the rounding of the loss hides the gain. It is kept between the rounding of the largest
    squared singular value and 1e6 times that value (more for a loss so curved in the outputs that
    such steps still reach far).

    Args:
        damping: the damping of the attempt.
        outcome: what the attempt showed.
        largest: square of the largest singular value.
        resolution: relative size of singular values that are lost in rounding.
        reach: length of the step relative to the minimum of the quadratic model along it; 0 if the
            step rule chose it.
    """
    damping *= outcome.factor(dominant=damping > largest)
    if not 0 < largest < math.inf:
        return damping
    # Beyond the singular values the reach is inversely proportional to the damping.
    highest = HIGHEST * max(largest, damping * reach)
    lowest = max(LOWEST * resolution**2 * largest, 1e-300)
    return min(max(damping, lowest), highest, 1e300)
