r"""Step-size rules: ``fixed``, ``trust``, ``line_search``.

A rule receives a :class:`~hig._step.trial_step.Trial`, moves the parameters and leaves them at the
end of the step. Its memory is a dict of plain numbers, so that it is part of ``state_dict``.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from hig._step.trial_step import Trial
from hig.arguments import STEP_RULES, check_choice
from hig.errors import described

__all__ = ["Fixed", "LineSearch", "StepRule", "Trust", "make_step_rule", "name_of_rule"]


class StepRule(Protocol):
    """Interface of a step-size rule.

    Attributes:
        measures: whether the rule uses the quadratic model or evaluates the closure again.
        state: its memory, plain numbers.
    """

    measures: bool
    state: dict[str, Any]

    def take(self, trial: Trial) -> float | None:
        """Move the parameters; return the gain ratio if it was measured."""
        ...


@dataclass
class Fixed:
    """Step size equal to the learning rate."""

    measures = False
    state: dict[str, Any] = field(default_factory=dict)

    def take(self, trial: Trial) -> None:
        """See :class:`StepRule`."""
        trial.move(trial.lr)


@dataclass
class Trust:
    r"""Fraction a of the Cauchy step, adapted by the gain ratio.

    :math:`\eta = \mathrm{lr} \cdot a \, (g \cdot v) / |v^T H v|`, the minimiser of the quadratic
    model along the step times a. The same batch is evaluated again in the first ``warm_up`` steps
    and in every ``period``-th after that: a step that raised the loss is undone, a grows up to 1
    where the model predicts well and shrinks where it does not; gains too small to be seen in the
    rounded loss, as on a plateau, say nothing. A loss without curvature along the step (linear in
    the outputs) gives :math:`\eta = \mathrm{lr} \cdot a`.

    The Cauchy step is that of the batch, but no longer than
    :math:`\langle g \cdot v \rangle / \langle |v^T H v| \rangle`, the minimiser of the mean of the
    models of recent batches: the Cauchy step of a batch of easy samples may overshoot on the few
    hard ones in others, and so raise the loss from step to step. A model has the weight of its
    loss, and is forgotten at a rate of 1 / ``memory`` a step. If a step starts at the loss at which
    the previous one ended, the batch is assumed unchanged and the cap is raised fourfold.
    """

    warm_up: int = 8
    period: int = 6
    memory: int = 16
    measures = True
    state: dict[str, Any] = field(
        default_factory=lambda: {
            "fraction": 0.5, "steps": 0, "batches": 0, "slope": 0.0, "curvature": 0.0,
            "end": None, "reach": 1.0,
        }
    )  # fmt: skip

    def take(self, trial: Trial) -> float | None:
        """See :class:`StepRule`."""
        fraction, steps = self.state["fraction"], self.state["steps"]
        self.state["steps"] = steps + 1
        if self.state["end"] is not None:
            self.state["reach"] = 4.0 if trial.same_initial_loss(self.state["end"]) else 1.0
        cauchy = self._cauchy_step(trial)
        step_size = trial.lr * fraction * cauchy
        if not math.isfinite(step_size):
            step_size = 0.0
        trial.move(step_size)
        self.state["end"] = None
        if step_size == 0 or (steps >= self.warm_up and steps % self.period):
            return None
        ratio = trial.gain_ratio()
        if math.isnan(ratio):
            return None
        self.state["fraction"] = _adapt_fraction(fraction, ratio)
        if ratio < 0:
            trial.move(0)
        self.state["end"] = trial.loss if ratio < 0 else trial.measure(step_size)
        return ratio

    def _cauchy_step(self, trial: Trial) -> float:
        """Return the Cauchy step of this batch, capped by that of the mean over recent batches."""
        if not trial.curvature > 0:
            return 1.0
        cauchy = trial.slope / trial.curvature
        if not (math.isfinite(cauchy) and cauchy > 0):
            return cauchy
        average = self.state
        average["batches"] = count = min(average["batches"] + 1, self.memory)
        average["slope"] += (trial.slope - average["slope"]) / count
        average["curvature"] += (trial.curvature - average["curvature"]) / count
        return min(cauchy, average["reach"] * average["slope"] / average["curvature"])


def _adapt_fraction(fraction: float, ratio: float) -> float:
    if ratio > 0.75:
        return min(1.25 * fraction, 1.0)
    if ratio < 0.25:
        return fraction / 2
    return 0.8 * fraction if ratio < 0.5 else fraction


@dataclass
class LineSearch:
    r"""Best of the step sizes :math:`\mathrm{lr} \cdot 2^k` on the same batch.

    Starts at the k of the last step and doubles or halves for as long as the loss falls; no step
    is taken if none lowers it.
    """

    most_evaluations: int = 24
    measures = True
    state: dict[str, Any] = field(default_factory=lambda: {"exponent": 0})

    def take(self, trial: Trial) -> None:
        """See :class:`StepRule`."""
        exponent = self.state["exponent"]

        def loss(k: int) -> float:
            return trial.measure(_scale_by_power(trial.lr, k))

        best, lowest = exponent, loss(exponent)
        # Upwards only pays where the present size already lowers the loss.
        upwards = lowest < trial.loss and loss(exponent + 1) < lowest
        direction = 1 if upwards else -1
        for k in range(1, self.most_evaluations):
            trial_loss = loss(exponent + direction * k)
            if trial_loss < lowest:
                best, lowest = exponent + direction * k, trial_loss
            elif lowest < trial.loss:
                break
        if lowest < trial.loss:
            self.state["exponent"] = best
            trial.move(_scale_by_power(trial.lr, best))
        else:
            self.state["exponent"] = 0
            trial.move(0)


def _scale_by_power(lr: float, times: int) -> float:
    try:
        return math.ldexp(lr, times)
    except OverflowError:
        return math.inf


_RULES: dict[str, type[Fixed] | type[Trust] | type[LineSearch]] = {
    "fixed": Fixed, "trust": Trust, "line_search": LineSearch,
}  # fmt: skip


def make_step_rule(rule: str | StepRule) -> StepRule:
    """Return a fresh rule of the given name; a custom rule unchanged.

    Raises:
        TypeError: an object that is not a rule.
        ValueError: there is no rule of that name.
    """
    if isinstance(rule, str | None):
        check_choice(rule, "step_rule", STEP_RULES, " or a rule of your own")
        return _RULES[str(rule)]()
    state = getattr(rule, "state", None)
    if (
        not callable(getattr(rule, "take", None))
        or not isinstance(getattr(rule, "measures", None), bool)
        or not isinstance(state, dict)
    ):
        raise TypeError(
            f"step_rule must be one of {STEP_RULES}, or an object with take(trial), a dictionary "
            f"state, and measures, True or False; got {described(rule)}; see the recipe in "
            "CONTRIBUTING.md"
        )
    return rule


def name_of_rule(rule: str | StepRule) -> str:
    """Return the name of a rule in a state; for a custom rule that of its class."""
    return rule if isinstance(rule, str) else type(rule).__name__
