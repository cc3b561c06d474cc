"""The trust rule: a share of the Cauchy step, judged on this batch and on later samples."""

import math
from dataclasses import dataclass, field
from typing import Any

from hig._step.trial_step import Trial

__all__ = ["UNSEEN", "Trust"]

# A rejected step is tried again with at least this part of its size.
_LEAST_PART = 1 / 16
# With a fraction below this, four times this for damped directions, each step is measured.
_CAUTIOUS = 1 / 16
# The curvature that few directions of the outputs see is a tenth or a hundredth of that of all, and
# so is a usual fraction.
_CAUTIOUS_OF_SKETCHES = 1 / 512
# Neither bound falls below these: fourteen good steps lead from there back to the fraction below
# which each step is measured, ten to a ceiling of 1. Near the end of training most directions are
# wrong for other samples in one step, and right in many: the ceiling stays higher then.
_LEAST_FRACTION, _LEAST_CEILING, _LATE_CEILING = 2.0**-18, 0.02, 0.3
# The loss of other samples falls for as long as a step is shorter than twice the one that is best
# for them. Just below that it falls slowly in one step, and farthest in many.
_STABLE = 1.8
# The Cauchy step of a batch is no longer than this times that of the mean over recent batches, and
# so for a batch that is that of the last step, whose samples are all there are.
_REACH, _SAME = 1.0, 4.0
# After each of the first steps the loss is compared with that at the safe point.
_EARLY_STEPS = 10
# Rises by this part of the higher loss: to 4/3 of the lower one, after so many steps to its
# fivefold. Then a batch is often a third worse by chance, and going back undoes good steps.
_EARLY_RISE, _RISE, _LATE = 0.25, 0.8, 50
# The highest loss of recent batches moves by this part of the way to a lower one in each step. A
# batch that is harder, or larger if its loss is a sum, is no jump if some of the last ones were.
_FORGET = 0.2
# Beyond this gain ratio the model says little of the loss, and the next step is measured too.
_DOUBTFUL = 2.0
# A learning rate below this is one for "fixed", or the begin of a warm-up.
_SMALL_RATE = 0.1
STUCK = (
    "steps are the shortest that the rule takes, and longer ones raise the loss: the direction is "
    "mostly that of small singular values; a larger rcond, such as 1e-4, leaves them out"
)
UNSEEN = "the gain is below the rounding of the loss: the trust fraction stays"


@dataclass
class Trust:
    r"""Share of the Cauchy step, bounded by a fraction for this batch and a ceiling for all others.

    :math:`\eta = \mathrm{lr} \min(a, b)\, (g \cdot v) / |v^T H v|`, where the quotient is
    the Cauchy step, the minimiser of the quadratic model along the step. It is that of the batch,
    but no longer than :math:`\langle g \cdot v \rangle / \langle |v^T H v| \rangle`, the
    minimiser of the mean of the models of recent batches: the Cauchy step of a batch of easy
    samples may overshoot on the few hard ones in others. A model has the weight of its loss, and
    is forgotten at a rate of 1 / ``memory`` a step. If a step starts at the loss at which the
    previous one ended, the batch is assumed unchanged: the limit is four times the mean, and the
    ceiling does not apply.

    **The fraction a** follows from the batch of the step. It is evaluated again in the first
    ``warm_up`` steps, in every ``period``-th after that (where a damping follows, a third as
    many and twice as often), and for as long as a is small or gains are more than twice those
    predicted. A step that raised the loss is tried again, shorter, and with more damping if the
    direction is damped. a grows up to 1 where the model predicts well and shrinks where it does
    not; gains too small to be seen in the rounded loss say nothing, but a fraction so small that it
    hides them grows.

    **The ceiling b** follows from samples that did not make the step: those of the next batch. At
    its start their loss has a slope s and a curvature c along the last step, so that
    :math:`u (1 - s / c)` is the share which would have been best for them, where u is the share
    taken. b is 1.8 times the mean of that over the last ``memory`` batches, weighted by their
    curvatures per loss: below twice the best share a step still lowers the loss of all samples in
    the mean, and many such steps learn more than shorter ones. b begins at 0.1, changes by a factor
    of 1/2 to 3/2 at most in a step, and does not fall below 0.3 by this after fifty steps.

    **The safe point** bounds many steps together: the parameters with the lowest loss so far on
    samples of later batches. After each of the first ten steps, then every ``look_back``-th and
    each after which the loss is five times the highest of recent batches, the loss of the new batch
    is evaluated there too. If it is a third higher at the present parameters, after fifty steps
    five times as high, the step goes back to the safe point instead, and b is halved; if it is
    lower, the present parameters are the new safe point.

    **A damped direction on an unchanged batch** is that of Levenberg-Marquardt, which is taken as
    it is: :math:`\eta = \min(\mathrm{lr}, 1)\, |v|^2 / |v^T H v|`, where the quotient is one over
    the curvature of the loss by the outputs. The Cauchy step is longer, beyond where the weak
    directions were meant to go.

    A loss without curvature along the step (linear in the outputs) gives
    :math:`\eta = \mathrm{lr} \cdot a`.

    Attributes:
        data_changed: whether the loss of this batch is far above those of recent ones by no fault
            of the last steps: at the safe point too, or because the parameters were set.
    """

    warm_up: int = 50
    period: int = 6
    memory: int = 16
    look_back: int = 5
    data_changed: bool = field(default=False, init=False)
    measures = True
    looks_back = True
    damps = True
    state: dict[str, Any] = field(
        default_factory=lambda: {
            "fraction": 0.5, "steps": 0, "rejected": False, "unseen": False, "doubtful": False,
            "batches": 0, "slope": 0.0, "curvature": 0.0, "end": None, "reach": _REACH,
            "ceiling": 0.1, "share": 0.0, "judged": 0, "best": 0.0, "weight": 0.0, "unchecked": 0,
            "recent_high": None,
        }
    )  # fmt: skip

    @property
    def batch_changes(self) -> bool:
        """Whether the last step was on another batch than the one before."""
        return bool(self.state["reach"] != _SAME)

    def take(self, trial: Trial) -> float | None:
        """See :class:`~hig._step.step_rules.StepRule`."""
        state = self.state
        if trial.attempt == 0:
            self.data_changed = False
        if trial.lr == 0:  # as in the first step of some warm-ups: nothing is learned about a step
            state["share"], state["end"] = 0.0, None
            return None
        if trial.attempt == 0:
            state["steps"] += 1
            if state["steps"] == 1 and trial.lr < _SMALL_RATE:
                trial.notes.append(_rate_note(trial.lr))
            if trial.parameters_were_set():
                self._begin_again(trial)
            # Before the parameters move to another point: it may need the graph of this one.
            seen = trial.last_step() if state["share"] > 0 else None
            if self._returns(trial):
                return None
            self._judge_last_step(trial, seen)
            same = None if state["end"] is None else trial.same_initial_loss(state["end"])
            if same is not None:
                state["reach"] = _SAME if same else _REACH
        state["share"], state["end"] = 0.0, None
        cauchy = self._cauchy_step(trial)
        if not math.isfinite(cauchy):
            return None
        if self._is_measured(trial):
            state["unseen"] = not trial.can_gain()
            if not state["unseen"]:
                return self._take_measured(trial, cauchy)
        if state["unseen"]:  # when it was measured last
            trial.notes.append(UNSEEN)
        share = self._share(trial)
        trial.move(share * cauchy)
        state["share"] = share
        return None

    def _is_measured(self, trial: Trial) -> bool:
        earlier, state = self.state["steps"] - 1, self.state
        warm_up, period = self.warm_up, self.period
        if trial.damped:  # the damping follows what is measured, and must not fall too fast
            warm_up, period = warm_up // 3, (period + 1) // 2
        fraction = _CAUTIOUS_OF_SKETCHES if trial.sketched else _CAUTIOUS
        if trial.damped:
            fraction *= 4
        careful = state["rejected"] or state["doubtful"] or state["fraction"] < fraction
        return earlier < warm_up or earlier % period == 0 or careful

    def _cauchy_step(self, trial: Trial) -> float:
        """Return the Cauchy step of this batch, capped by that of the mean over recent batches."""
        if not trial.curvature > 0:
            return 1.0
        cauchy = trial.slope / trial.curvature
        if not (math.isfinite(cauchy) and cauchy > 0):
            return cauchy
        state = self.state
        if trial.attempt == 0:
            state["batches"] = count = min(state["batches"] + 1, self.memory)
            state["slope"] += (trial.slope - state["slope"]) / count
            state["curvature"] += (trial.curvature - state["curvature"]) / count
        if self._is_chosen_by_damping(trial):
            return min(cauchy, trial.damped_step)
        if not state["curvature"] > 0:
            return cauchy
        return min(cauchy, float(state["reach"] * state["slope"] / state["curvature"]))

    def _is_chosen_by_damping(self, trial: Trial) -> bool:
        """Return whether to take a damped step as it is: the batch has not changed."""
        known = trial.damped and math.isfinite(trial.damped_step)
        return known and self.state["reach"] == _SAME

    def _share(self, trial: Trial) -> float:
        """Return the part of the Cauchy step to take."""
        if self._is_chosen_by_damping(trial):
            return min(trial.lr, 1.0)
        more, less = max(trial.lr, 1.0), min(trial.lr, 1.0)
        share: float = more * self.state["fraction"]
        others = trial.curvature > 0 and self.state["reach"] != _SAME
        return less * (min(share, self.state["ceiling"]) if others else share)

    def _take_measured(self, trial: Trial, cauchy: float) -> float:
        """Take a step that does not raise the loss, shorter and shorter; return its gain ratio."""
        state = self.state
        state["rejected"] = False
        for _ in range(trial.tries):
            share = self._share(trial)
            trial.move(share * cauchy)
            ratio = trial.gain_ratio()
            if math.isnan(ratio):
                self._lengthen_hidden(trial, share)
            if not ratio < 0:
                state["doubtful"] = ratio > _DOUBTFUL
                state["share"], state["end"] = share, trial.measure(trial.step_size)
                # As if the learning rate were 1: else a schedule that lowers it would raise a.
                whole = trial.gain_ratio_at(trial.step_size / min(trial.lr, 1.0))
                self._adapt_fraction(share / trial.lr, ratio if math.isnan(whole) else whole)
                self._note_shortest(trial)
                return ratio
            state["rejected"] = True
            # As a part of the share that was tried: the ceiling may have been the lower bound.
            fraction = min(state["fraction"], share / trial.lr)
            part = _part(trial) if trial.tries > 1 else 0.5  # with more damping it may be longer
            state["fraction"] = max(part * fraction, _LEAST_FRACTION)
        trial.move(0)
        state["end"] = trial.loss
        self._note_shortest(trial)
        return ratio

    def _note_shortest(self, trial: Trial) -> None:
        if self.state["fraction"] <= _LEAST_FRACTION:
            trial.notes.append(STUCK)

    def _lengthen_hidden(self, trial: Trial, share: float) -> None:
        """Increase the fraction if it alone hides the gain, which a longer step would show."""
        fraction = self.state["fraction"]
        if fraction < 1 and not share < trial.lr * fraction:
            self.state["fraction"] = min(2 * fraction, 1.0)
        else:  # the learning rate or the ceiling does
            self.state["unseen"] = True
            trial.notes.append(UNSEEN)

    def _adapt_fraction(self, taken: float, ratio: float) -> None:
        """Adapt the fraction after a step of the fraction ``taken`` with this gain ratio."""
        fraction = self.state["fraction"]
        if ratio > 0.75:
            fraction = min((2 if fraction < 0.25 else 1.25) * fraction, 1.0)
        elif ratio < 0.5:
            fraction = min(fraction, taken) * (0.8 if ratio >= 0.25 else 0.5)
        self.state["fraction"] = max(fraction, _LEAST_FRACTION)

    def _judge_last_step(self, trial: Trial, seen: tuple[float, float] | None) -> None:
        """Adapt the ceiling by slope and curvature of this batch at the end of the last step."""
        state = self.state
        share = state["share"]
        size = abs(trial.loss)  # an energy may be negative
        if seen is None or not size > 0:
            return
        slope, curvature = seen
        weight = curvature / share / share / size
        best = weight * share - slope / share / size
        if not (weight > 0 and math.isfinite(weight) and math.isfinite(best)):
            return
        state["judged"] = count = min(state["judged"] + 1, self.memory)
        state["best"] += (best - state["best"]) / count
        state["weight"] += (weight - state["weight"]) / count
        ceiling = _STABLE * state["best"] / state["weight"]
        least = _LEAST_CEILING if state["steps"] <= _LATE else _LATE_CEILING
        most = 1.5 * state["ceiling"]
        state["ceiling"] = min(max(ceiling, 0.5 * state["ceiling"], least), most, 1.0)

    def _begin_again(self, trial: Trial) -> None:
        """Be as careful as in a new run: the parameters were loaded or set since the last step."""
        state = self.state
        # Another optimiser that trains the same parameters raises no loss.
        if _far_above(trial.loss, state["recent_high"]):
            state.update(type(self)().state)
            self.data_changed = True
        state.update(steps=1, unchecked=0, share=0.0, end=None, recent_high=None)
        trial.notes.append(
            "the parameters were set since the last step, farther away than it went: the step rule "
            "begins again from them"
        )

    def _returns(self, trial: Trial) -> bool:
        """Go back to the safe point if this batch is much better there; return whether it is."""
        state = self.state
        state["unchecked"] += 1
        high = self._recent_high(trial.loss)
        jumped = _far_above(trial.loss, high)
        period = 1 if jumped or state["steps"] <= _EARLY_STEPS else self.look_back
        if state["unchecked"] < period:
            return False
        state["unchecked"] = 0
        there = trial.loss_at_safe_point()
        if jumped and there is not None and _far_above(there, high):
            self.data_changed = True
        if there is None or not trial.loss > there:
            trial.keep_safe_point()
            return False
        rise, part = trial.loss - there, _EARLY_RISE if state["steps"] <= _LATE else _RISE
        if rise <= max(part * max(abs(trial.loss), abs(there)), trial.unseen):
            return False
        trial.return_to_safe_point()
        state["recent_high"] = there  # the loss of the steps that are given up is no measure
        self.retreat()
        trial.notes.append(
            f"the last steps raised the loss of this batch from {there:.3g} to "
            f"{trial.loss:.3g}: back to the parameters before them, and shorter steps"
        )
        return True

    def _recent_high(self, loss: float) -> float | None:
        """Return the highest loss of recent batches, None at first, and take in a new one."""
        high = self.state["recent_high"]
        lower = high is not None and loss < high
        self.state["recent_high"] = high + _FORGET * (loss - high) if lower else loss
        return high

    def retreat(self) -> None:
        """Take shorter steps, after a return to the safe point."""
        state = self.state
        state["ceiling"] = max(0.5 * state["ceiling"], _LEAST_CEILING)
        state["judged"] //= 2
        state["share"], state["unchecked"], state["end"] = 0.0, 0, None
        state["reach"] = _REACH  # it was on other batches that the last steps went wrong


def _far_above(loss: float, high: float | None) -> bool:
    return high is not None and loss - high > _RISE * max(abs(loss), abs(high))


def _rate_note(lr: float) -> str:
    return (
        f"lr={lr:.2g} takes that part of the steps that the rule finds: leave it at 1 with "
        "step_rule='trust'; a learning rate in units of the loss is one for step_rule='fixed'"
    )


def _part(trial: Trial) -> float:
    """Return the part of a rejected step to try next: the minimum of a parabola by its loss."""
    fall = trial.step_size * trial.slope
    excess = 2 * (trial.measure(trial.step_size) - trial.loss + fall)
    return min(max(fall / excess, _LEAST_PART), 0.5) if 0 < excess < math.inf else _LEAST_PART
