"""Levenberg-Marquardt optimiser: damped Gauss-Newton, its damping adapted by the gain ratio."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim.optimizer import ParamsT

from hig._jacobian.engine import Engine
from hig._spectral.filters import Damped, SpectralFilter
from hig._spectral.lanczos import Lanczos
from hig._step.damping import Outcome, adapted_damping
from hig._step.linearisation import Linearisation
from hig._step.optimizer import JacobianOptimizer
from hig._step.options import StepOptions
from hig._step.reports import StepReport
from hig._step.step_rules import StepRule
from hig._step.trial_step import Trial
from hig._torch.host import PhaseClock
from hig._torch.ranks import ProcessGroup

__all__ = ["LevenbergMarquardt"]

# A damped step has a reach of at most 1 if the learning rate suits the scale of the loss.
LONGEST_REACH = 1.1
# Fraction of the Cauchy step below which the rule "trust" has had to shorten the steps by far.
SHORT_FRACTION = 0.05
UNSEEN_NOTE = "the gain is below the rounding of the loss: the damping stays"


class LevenbergMarquardt(JacobianOptimizer):
    r"""Levenberg-Marquardt: a damped Gauss-Newton step.

    .. math::
        \theta \leftarrow \theta - \mathrm{lr}\, V \frac{S}{S^2 + \lambda} U^T g

    After each step the same batch is evaluated again. The damping falls to a third if the
    quadratic model predicted the decrease well (gain ratio above 0.75) and doubles if it predicted
    poorly (below 0.25); a step with a ratio of 1e-3 or less is undone and tried again with four
    times the damping, from the same decomposition. A gain that is lost in the rounding of the loss
    changes nothing, which the report notes. A rule that measures ("trust", "line_search")
    chooses the length: if it has to shorten the steps by far, the damping doubles where the loss is
    lowest before half of the way to the lowest point of the quadratic model.

    The filter applies to g, the gradient of the loss: with ``step_rule="fixed"`` the step is the
    full Levenberg-Marquardt step for a loss of half the sum of squares. For another scale (a mean
    over the batch, squares without the half) use ``step_rule="trust"``, which measures it, or
    choose ``lr`` accordingly. With the plain sum of squares and ``lr=1`` a step goes twice as far
    as it should, gains nothing, and the damping stays high: the report has a note then, and
    ``lr=0.5`` is right.

    All other arguments are those of :class:`hig.HIG`.

    Args:
        params: parameters, named parameters or parameter groups, all of one ``lr``.
        damping: initial :math:`\lambda > 0`, in units of squared singular values.
        rcond: additional relative cut-off in [0, 1).
        momentum: coefficient in [0, 1), see :class:`hig.HIG`; a rejected step is tried again
            without momentum.
        momentum_kind: "plain", or "projected" for the step of SPRING,
            :math:`\mu d_{k-1} + J^T (J J^T + \lambda)^{-1} (g - \mu J d_{k-1})`.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if an argument lies outside its range.
    """

    # More attempts from one decomposition rarely help; nor do more searches that found no step.
    MOST_ATTEMPTS, MOST_SEARCHES = 5, 2

    report: StepReport | None
    filter: Damped

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        damping: float = 1e-3,
        rcond: float = 0.0,
        *,
        engine: str | Engine = "auto",
        method: str | Lanczos = "auto",
        step_rule: str | StepRule = "fixed",
        momentum: float = 0.0,
        momentum_kind: str = "plain",
        chunk: int | None = None,
        process_group: ProcessGroup = "auto",
        reduction: str = "mean",
        cuda_graph: bool = False,
    ):
        filter = Damped(damping=damping, rcond=rcond)
        options = StepOptions(
            engine=engine, method=method, step_rule=step_rule,
            momentum=momentum, momentum_kind=momentum_kind, chunk=chunk,
            process_group=process_group, reduction=reduction, cuda_graph=cuda_graph,
        )  # fmt: skip
        super().__init__(params, lr, filter, options)
        self.state["damping"] = {"value": damping}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the adapted damping too; see :meth:`HIG.load_state_dict`."""
        super().load_state_dict(state_dict)
        self.filter = Damped(self.state["damping"]["value"], self.filter.rcond)

    def _check_state(self, state: dict[Any, Any]) -> None:
        if "damping" not in state:
            raise ValueError(
                "the state holds no damping: it is that of another optimizer; load a "
                "LevenbergMarquardt.state_dict()"
            )
        Damped(state["damping"]["value"], self.filter.rcond)  # raises where it is out of range
        super()._check_state(state)

    def _measures(self) -> bool:
        return True

    def _advance(
        self,
        trial_of: Callable[[SpectralFilter], Trial],
        linearisation: Linearisation,
        clock: PhaseClock,
    ) -> StepReport:
        notes: list[str] = []
        measures = self._rule.measures
        # No note for measured step rules (length already chosen), nor with momentum (not
        # comparable with the reach of a damped step).
        judged = not (measures or self._momentum.factor)
        for attempt in range(self.MOST_ATTEMPTS):
            trial = trial_of(self.filter)
            if trial.lr == 0:
                return self._report(linearisation, trial, None, notes)
            with clock.phase("update"):
                outcome = self._attempt(trial)
            notes.extend(trial.notes)
            if trial.returned:
                return self._report(linearisation, trial, None, notes)
            if judged and attempt == 0 and _reach(trial) > LONGEST_REACH:
                notes.append(_reach_note(trial))
            # Where nothing can be gained, a first attempt is rejected because of its momentum.
            by_momentum = self._momentum.factor and attempt == 0 and not outcome.can_gain
            if not (outcome.rejected and by_momentum):
                self._adapt(outcome, trial, linearisation.decomposition.resolution)
            if not outcome.rejected:
                break
            trial.move(0)
            if outcome.ratio is None and attempt + 1 == self.MOST_SEARCHES:
                break
        if outcome.unseen:
            notes.append(UNSEEN_NOTE)
        return self._report(linearisation, trial, outcome.ratio, notes)

    def _attempt(self, trial: Trial) -> Outcome:
        """Let the step rule move, and return what that showed."""
        ratio = self._rule.take(trial)
        if not trial.step_size:
            return Outcome(ratio, trial.can_gain())
        kept = ratio is not None
        ratio = trial.gain_ratio() if ratio is None else ratio
        if not self._rule.measures or math.isnan(ratio):
            return Outcome(ratio, trial.can_gain())
        whole = trial.whole_ratio()
        if ratio == -math.inf and trial.measure(trial.step_size) < trial.loss:
            ratio = whole  # farther than the model is lower, and the loss has fallen all the same
        # The mean over batches shortens a step of "trust" too, for which more damping is no remedy;
        # its fraction falls for the present model alone.
        shortened = self._rule.state.get("fraction", 0.0) < SHORT_FRACTION
        return Outcome(ratio, trial.can_gain(), whole if shortened else None, kept)

    def _adapt(self, outcome: Outcome, trial: Trial, resolution: float) -> None:
        """Change the damping after an attempt."""
        reach = None if self._rule.measures else _reach(trial)
        damping = adapted_damping(self.filter.damping, outcome, trial.largest, resolution, reach)
        self.filter = Damped(damping, self.filter.rcond)
        self.state["damping"]["value"] = damping

    def _report(
        self,
        linearisation: Linearisation,
        trial: Trial,
        ratio: float | None,
        notes: Sequence[str],
    ) -> StepReport:
        report = linearisation.report(self.filter)  # the attempts may have taken eigenvectors
        report.step_size, report.damping = trial.step_size, self.filter.damping
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
