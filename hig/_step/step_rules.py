r"""Step-size rules: ``fixed``, ``trust``, ``line_search``.

A rule receives a :class:`~hig._step.trial_step.Trial`, moves the parameters and leaves them at the
end of the step. Its memory is a dict of plain numbers, so that it is part of ``state_dict``.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from hig._step.trial_step import Trial
from hig._step.trust import Trust
from hig.arguments import STEP_RULES, check_choice
from hig.errors import described

__all__ = ["Fixed", "LineSearch", "StepRule", "Trust", "make_step_rule", "name_of_rule"]


class StepRule(Protocol):
    """Interface of a step-size rule.

    A rule with a true attribute ``looks_back`` may also use the points of earlier steps, see
    :class:`~hig._step.trial_step.Trial`, and has ``retreat()``, which is called where parameters
    had to go back because the loss was not finite. One with ``data_changed`` says whether a high
    loss is due to other data. One with ``damps`` expects a damping that follows the ``fraction`` in
    its state.

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
