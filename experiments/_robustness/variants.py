"""Methods with the step rule and the cut-off under test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from experiments._methods import METHODS
from experiments._methods.table import Optimizer
from hig.arguments import STEP_RULES
from problems import Problem, Settings

DEFAULT, PUBLISHED, FIXED = "default", "published", "fixed"
RULES = (*STEP_RULES, DEFAULT, PUBLISHED)

#: Methods with step rules, whose closure returns loss and prediction.
TESTED = tuple(
    name
    for name, method in METHODS.items()
    if method.closure == "outputs" and "step_rule" in method.options
)


@dataclass(frozen=True)
class Variant:
    """A method with the settings under test, written ``METHOD:RULE:RCOND:LR`` or less of it.

    Attributes:
        method: Name of the method, one of `TESTED`.
        rule: A step rule; ``"default"`` for the defaults of the optimiser, ``"published"`` for
            the settings of the problem.
        rcond: Relative cut-off or ``"auto"``; None for the problem's, with the rule ``"default"``
            for the optimiser's.
        lr: Learning rate; None for that of the rule.
    """

    method: str
    rule: str = "trust"
    rcond: float | str | None = None
    lr: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a variant as on a command line; a `ValueError` has the reason and the remedy."""
        method, _, rest = text.partition(":")
        rule, cutoff, lr = [*rest.split(":", 2), "", ""][:3]
        if method not in TESTED:
            raise ValueError(
                f"the method must be one of {', '.join(TESTED)}, got {method!r}; give such as "
                "hig or hig:trust:1e-6"
            )
        if rest and rule not in RULES:
            raise ValueError(
                f"the rule must be one of {', '.join(RULES)}, got {rule!r}; give such as "
                f"{method}:trust"
            )
        if cutoff and rule in (FIXED, PUBLISHED) and "rcond" not in METHODS[method].options:
            raise ValueError(
                f"{method} has no cut-off with the rule {rule}, got {cutoff!r}; give such as "
                f"{method}:trust:{cutoff}"
            )
        if cutoff == "auto" and method == "lm":  # its damping takes the place of a cut-off
            raise ValueError(
                "lm has no automatic cut-off, got 'auto'; give such as lm:trust or lm:trust:1e-6"
            )
        return cls(
            method, rule or cls.rule, _cutoff(cutoff) if cutoff else None, _rate(lr) if lr else None
        )

    def __str__(self) -> str:
        cutoff = "" if self.rcond is None else cutoff_text(self.rcond)
        lr = "" if self.lr is None else f"{self.lr:.12g}"
        return f"{self.method}:{self.rule}:{cutoff}:{lr}".rstrip(":")

    def optimizer(self, problem: Problem, parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
        """Make the optimiser.

        The rules that measure the step take a learning rate of 1 and the initial damping of the
        optimiser; cut-off, exponent and decomposition are the problem's. ``"fixed"`` and
        ``"published"`` take the learning rate and damping of the problem as well.
        """
        method, published = METHODS[self.method], problem.settings[self.method]
        own = {"rcond": self.rcond, "lr": self.lr}
        given = {name: value for name, value in own.items() if value is not None}
        if self.rule == DEFAULT:
            return method.build(parameters, **given)
        if self.rule in (FIXED, PUBLISHED):
            changes = {"step_rule": FIXED} if self.rule == FIXED else {}
            settings = Settings(**{**vars(published), **changes, **given})
            return method.optimizer(parameters, settings, problem.loss_reduction)
        options = {name: getattr(published, name) for name in ("rcond", "kappa", "method")}
        chosen = {name: value for name, value in options.items() if value is not None}
        return method.build(parameters, step_rule=self.rule, **{**chosen, **given})


def cutoff_text(rcond: float | str) -> str:
    """Write a cut-off as on a command line, small ones as 1e-4."""
    if isinstance(rcond, str) or not 0 < rcond < 0.01:
        return f"{rcond}" if isinstance(rcond, str) else f"{rcond:.12g}"
    mantissa, _, exponent = f"{rcond:.12e}".partition("e")
    return f"{float(mantissa):.12g}e{int(exponent)}"


def _cutoff(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ValueError(
            f"the cut-off must be a number in [0, 1) or auto, got {text!r}; give such as 1e-6"
        )
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(
            f"the learning rate must be a positive number, got {text!r}; give such as 0.5"
        )
    return value
