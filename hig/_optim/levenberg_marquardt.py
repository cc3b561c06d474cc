"""Levenberg-Marquardt optimiser: damped Gauss-Newton, its damping adapted by the gain ratio."""

from typing import Any, Literal

from torch.optim.optimizer import ParamsT

from hig._jacobian.engine import Engine
from hig._spectral.filters import Damped
from hig._spectral.lanczos import Lanczos
from hig._step.damped_steps import DampedSteps
from hig._step.linearisation import Linearisation
from hig._step.optimizer import JacobianOptimizer
from hig._step.options import StepOptions
from hig._step.reports import StepReport
from hig._step.sketch import Directions
from hig._step.step_rules import StepRule
from hig._step.trial_step import Attempts
from hig._torch.ranks import ProcessGroup

__all__ = ["LevenbergMarquardt"]


class LevenbergMarquardt(JacobianOptimizer):
    r"""Levenberg-Marquardt: a damped Gauss-Newton step.

    .. math::
        \theta \leftarrow \theta - \mathrm{lr}\, V \frac{S}{S^2 + \lambda} U^T g

    After a step the same batch is evaluated again ("trust" leaves that out in most steps). The
    damping falls to a third if the quadratic model predicted the decrease well (gain ratio above
    0.75) and doubles if it predicted poorly (below 0.25); a step with a ratio of 1e-3 or less is
    undone and tried again with four times the damping, from the same decomposition. A gain that is
    lost in the rounding of the loss changes nothing, which the report notes. With a rule that
    measures ("trust", "line_search") the damping doubles where the rule has to shorten the steps by
    far.

    The filter applies to g, the gradient of the loss. "trust" suits any scale of it. With
    ``step_rule="fixed"`` the step is the full Levenberg-Marquardt step for a loss of half the sum
    of squares; for another scale (a mean over the batch, squares without the half) choose ``lr``
    accordingly. With the plain sum of squares and ``lr=1`` such a step goes twice as far as it
    should, gains nothing, and the damping stays high: the report has a note then, and ``lr=0.5`` is
    right.

    All other arguments are those of :class:`hig.HIG`.

    Args:
        params: parameters, named parameters or parameter groups, all of one ``lr``.
        damping: initial :math:`\lambda > 0`, in units of squared singular values; "auto" for a
            hundredth of the largest one in the first step with "trust", and 1e-3 with other rules.
        rcond: additional relative cut-off in [0, 1).
        momentum: coefficient in [0, 1), see :class:`hig.HIG`; a rejected step is tried again
            without momentum.
        momentum_kind: "plain", or "projected" for the step of SPRING,
            :math:`\mu d_{k-1} + J^T (J J^T + \lambda)^{-1} (g - \mu J d_{k-1})`.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if an argument lies outside its range.
    """

    report: StepReport | None
    filter: Damped

    def __init__(
        self,
        params: ParamsT,
        lr: float | None = None,
        damping: float | Literal["auto"] = "auto",
        rcond: float = 0.0,
        *,
        engine: str | Engine = "auto",
        method: str | Lanczos = "auto",
        step_rule: str | StepRule | None = None,
        momentum: float | None = None,
        momentum_kind: str | None = None,
        chunk: int | None = None,
        sketch: int | Literal["auto"] | Directions | None = None,
        process_group: ProcessGroup = "auto",
        reduction: str = "mean",
        cuda_graph: bool = False,
    ):
        automatic = isinstance(damping, str) and damping == "auto"
        filter = Damped(rcond=rcond) if automatic else Damped(damping, rcond)  # type: ignore[arg-type]
        options = StepOptions(
            engine=engine, method=method, step_rule=step_rule,
            momentum=momentum, momentum_kind=momentum_kind, chunk=chunk, sketch=sketch,
            process_group=process_group, reduction=reduction, cuda_graph=cuda_graph,
        )  # fmt: skip
        super().__init__(params, lr, filter, options)
        follows = automatic and getattr(self._rule, "damps", False)
        self.state["damping"] = {"value": None if follows else self.filter.damping}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the adapted damping too; see :meth:`HIG.load_state_dict`."""
        super().load_state_dict(state_dict)
        if (damping := self.state["damping"]["value"]) is not None:
            self.filter = Damped(damping, self.filter.rcond)

    def _check_state(self, state: dict[Any, Any]) -> None:
        if "damping" not in state:
            raise ValueError(
                "the state holds no damping: it is that of another optimizer; load a "
                "LevenbergMarquardt.state_dict()"
            )
        super()._check_state(state)

    def _measures(self) -> bool:
        return True

    def _advance(self, attempts: Attempts, linearisation: Linearisation) -> StepReport:
        state = self.state["damping"]
        if state["value"] is not None:
            state["value"] = self.filter.damping  # which may have been replaced
        steps = DampedSteps(state, self._rule, attempts.with_momentum)
        report = steps.take(attempts, linearisation, self.filter)
        self.filter = Damped(state["value"], self.filter.rcond)
        return report
