"""Base class of the Jacobian-based optimisers (``torch.optim`` interface)."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hig._jacobian.capture import Capture, LayerUse
from hig._spectral.decomposition import GramSpectrum
from hig._spectral.filters import SpectralFilter
from hig._step.closure import (
    Closure,
    apart_from_autocast,
    call,
    check_closure,
    explained,
    loss_and_prediction,
)
from hig._step.distributed import digest_of_filter, whole_batch
from hig._step.linearisation import Linearisation, Lineariser
from hig._step.momentum import Momentum, PreviousDirection
from hig._step.objective import Objective, objective_of, ranks_of
from hig._step.options import StepOptions
from hig._step.param_groups import (
    IN_EVERY_DTYPE,
    check_group,
    check_group_keys,
    check_group_lr,
    check_lr,
    check_one_lr,
    check_real,
)
from hig._step.recorded import RecordedLinearisation
from hig._step.reports import MultiStepReport, StepReport
from hig._step.state_dicts import IDENTITY, copied_state, identity_of
from hig._step.step_rules import make_step_rule, name_of_rule
from hig._step.trial_step import Attempts, Evaluation, RandomState, Trial, Watch
from hig._torch.checksums import checksum, digest
from hig._torch.cuda_graph import check_recordable
from hig._torch.host import PhaseClock
from hig._torch.ranks import Ranks
from hig._torch.threads import on_fitting_threads
from hig.arguments import check_parameters

__all__ = ["JacobianOptimizer", "StepContext"]


@dataclass(frozen=True)
class StepContext:
    """One step: the parameters that it moves, and who takes it.

    Attributes:
        parameters: the trained parameters of all groups.
        lrs: the learning rate of each.
        names: the name of each, where it has one.
        ranks: the process ranks that take the step together; None where this process steps alone.
        clock: takes the times.
    """

    parameters: list[Tensor]
    lrs: list[float]
    names: list[str | None]
    ranks: Ranks | None
    clock: PhaseClock


class JacobianOptimizer(torch.optim.Optimizer):
    """Base of the steps: capture the closure, decompose its Jacobian, filter, move.

    Args:
        params: parameters, named parameters or parameter groups. All groups share one joint
            Jacobian; each may have its own ``lr``, unless the step is measured.
        lr: factor of the step.
        filter: spectral filter.
        options: how the Jacobian is obtained and decomposed, and how far the step goes.

    Attributes:
        report: the :class:`~hig.StepReport` of the last step, None before the first.
        filter: the filter of the next step; may be replaced between steps.
    """

    report: StepReport | MultiStepReport | None
    filter: SpectralFilter
    state: defaultdict[Any, Any]  # the memories of all parameters lie under names

    def __init__(self, params: ParamsT, lr: float, filter: SpectralFilter, options: StepOptions):
        params = check_parameters(params, "params")
        check_lr(lr)
        super().__init__(params, {"lr": lr})
        self.filter = filter
        self.report = None
        self._options = options
        self._rule = make_step_rule(options.step_rule)
        self._momentum = Momentum(options.momentum, options.momentum_kind)
        self._lineariser = Lineariser(options.engine, options.method, options.chunk)
        self._watch = Watch()
        self._spectra: list[GramSpectrum] = []
        self._recorded = self._new_record()
        self.state["step_rule"] = self._rule.state
        self.state[IDENTITY] = identity_of(
            self, step_rule=name_of_rule(options.step_rule), momentum_kind=options.momentum_kind
        )

    def _new_record(self) -> RecordedLinearisation | None:
        return RecordedLinearisation(self._lineariser) if self._options.cuda_graph else None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the joint Jacobian; see ``torch.optim.Optimizer``.

        Raises:
            TypeError: for complex parameters.
            ValueError: for a setting that groups do not have.
        """
        check_group_keys(param_group, self.defaults)
        super().add_param_group(param_group)
        check_group(self.param_groups[-1])

    def __getstate__(self) -> dict[str, Any]:
        """Everything, for copies and pickles; torch's own keeps its public part alone."""
        private = ("filter", "report", "_options", "_rule", "_momentum", "_lineariser", "_watch")
        kept = {name: getattr(self, name) for name in private}
        # Graphs and Gram matrices stay where they are.
        return {**super().__getstate__(), **kept, "_recorded": None, "_spectra": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`__getstate__` gave; a record is made again."""
        super().__setstate__(state)
        self._recorded = self._new_record()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load copies of learning rates and all memories; see ``torch.optim.Optimizer``.

        Raises:
            ValueError: the state is that of another optimizer; nothing has been changed.
        """
        own = self.state[IDENTITY]
        state_dict = copied_state(state_dict, own, self.param_groups)
        self._check_state(state_dict["state"])
        super().load_state_dict(state_dict)
        self.state[IDENTITY] = own
        self._rule.state.update(self.state["step_rule"])
        self.state["step_rule"] = self._rule.state

    def _check_state(self, state: dict[Any, Any]) -> None:
        """Raise a `ValueError` for a state without the parts that this optimizer reads."""
        found = state.get("step_rule")
        if not isinstance(found, dict) or found.keys() != self._rule.state.keys():
            raise ValueError(
                f"the state holds {'another' if found is not None else 'no'} step rule: it is that "
                f"of another optimizer; load what {self.state[IDENTITY]['class']}.state_dict() "
                "gave, with the same step_rule"
            )
        for name in state.keys() - self.state.keys():
            if isinstance(name, str):
                raise ValueError(
                    f"the state holds {name!r}, which this optimizer has not: it is that of "
                    f"another; load what {self.state[IDENTITY]['class']}.state_dict() gave"
                )

    @on_fitting_threads
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step.

        Args:
            closure: returns ``(loss, prediction)``: a scalar and the (batch, ...) outputs it was
                computed from. The loss may depend on the parameters through ``prediction`` alone.
                Rules that evaluate the loss again call it again, from the same random state;
                tensors that it then changes in place are put back. None is refused.

        Returns:
            The loss before the step, detached; with several processes that of the whole batch.

        Raises:
            DecompositionError: no decomposition of the Jacobian converges.
            NonFiniteError: loss, prediction or Jacobian hold NaN or Inf; or the parameters would,
                after a step that is too large for their dtype.
            RankError: another of several processes failed or was lost.
            SampleDependenceError: engine "layerwise" where samples influence one another.
            ValueError: the closure does not return what it should, several processes differ in
                what must be equal, or parameter groups in their ``lr`` where the step is measured.

        Whatever is raised, neither parameters nor the last direction have been changed.
        """
        closure = check_closure(closure)
        step = self._context()
        device = step.parameters[0].device
        self._lineariser.backward.notes.clear()
        self._spectra = []  # of the last step: the Gram matrix that they may need is large
        random_state = RandomState(device) if self._measures() else None
        closure, without_autocast = apart_from_autocast(closure, device)
        with explained(), without_autocast:
            linearisation = self._linearise_closure(closure, step)
            evaluate = Evaluation(
                closure, self._loss, step.parameters, random_state, step.ranks,
                1.0 if step.ranks is None else linearisation.objective.weight, self._watch,
            )  # fmt: skip
            attempts = Attempts(
                linearisation, self._carried(step), step.parameters, step.lrs, self._measures(),
                evaluate,
            )  # fmt: skip
            with torch.no_grad(), attempts:
                report, loss = (
                    self._advance(attempts, linearisation, step.clock),
                    linearisation.loss,
                )
                attempts.accept(report.step_size)
        self.report = report
        self._spectra = linearisation.spectra()
        return loss

    # -- what the siblings change --------------------------------------------------------------

    def _linearise(
        self, outcome: Any, uses: Sequence[LayerUse], step: StepContext
    ) -> Linearisation:
        """Linearise what the closure returned."""
        objective = self._objective(outcome, uses, step)
        return self._lineariser.linearise(objective, self.filter, step.clock)

    def _loss(self, outcome: Any) -> Tensor:
        """The loss in what the closure returned."""
        return outcome[0]

    def _advance(
        self,
        trial_of: Callable[[SpectralFilter], Trial],
        linearisation: Linearisation,
        clock: PhaseClock,
    ) -> StepReport:
        """Move the parameters along the filtered direction and report."""
        trial = trial_of(self.filter)
        with clock.phase("update"):
            ratio = self._rule.take(trial)
        report = linearisation.report(self.filter)
        report.step_size, report.gain_ratio = trial.step_size, ratio
        return report

    def _measures(self) -> bool:
        """Whether steps are measured: the quadratic model is made, the closure called again."""
        return self._rule.measures

    # -- details ---------------------------------------------------------------------------------

    def _linearise_closure(self, closure: Closure, step: StepContext) -> Linearisation:
        """Run the closure, or replay a record of it, and linearise what it returns."""
        if self._recorded is None:
            return self._linearise(*self._run(closure, step), step)
        processes = 1 if step.ranks is None else step.ranks.size
        check_recordable(step.parameters, processes, self._options.method)
        exact = getattr(self.filter, "rcond", 0.0), self.filter.needs_small_values
        return self._recorded.linearise(
            lambda: self._objective(*self._run(closure, step), step),
            (tuple(map(id, step.parameters)), self._measures(), exact),
            self.filter,
            step.clock,
        )

    def _run(self, closure: Closure, step: StepContext) -> tuple[Any, list[LayerUse]]:
        """Result of a closure, and the uses of layers while it runs."""
        capture = Capture(step.parameters)
        together = nullcontext() if step.ranks is None else step.ranks.agreement()
        with together, step.clock.phase("forward"), capture:
            outcome = call(closure)
        self._watch.writes |= capture.has_written
        return outcome, capture.uses

    def _objective(self, outcome: Any, uses: Sequence[LayerUse], step: StepContext) -> Objective:
        """What the closure returned, with the gradient of the loss in the outputs."""
        ranks = step.ranks
        together = nullcontext() if ranks is None else ranks.agreement()
        with together, step.clock.phase("loss gradient"):
            loss, prediction = loss_and_prediction(outcome)
            objective = objective_of(
                loss, prediction, uses, step.parameters, step.names, self._measures()
            )
            if ranks is not None:  # before what they compute together
                objective.checks.settle()
        if ranks is None:
            return objective
        return whole_batch(objective, ranks, self._options.reduction, self._settings())

    def _carried(self, step: StepContext) -> PreviousDirection | None:
        """The last direction, where momentum keeps a part of it."""
        if not self._momentum.factor:
            return None
        return PreviousDirection(self._momentum, self.state, step.parameters)

    def _settings(self) -> int:
        """A digest of what decides on a step next to the parameters."""
        options = self._options
        lrs = [float(group["lr"]) for group in self.param_groups]
        rule = type(self._rule).__name__, self._rule.state, options.reduction
        engine = (
            options.engine if isinstance(options.engine, str) else type(options.engine).__name__
        )
        flat = [parameter for group in self.param_groups for parameter in group["params"]]
        last = checksum([self.state[p]["direction"] for p in flat if p in self.state])
        return digest(
            lrs, digest_of_filter(self.filter), engine, options.method, rule, self._momentum, last
        )

    def _context(self) -> StepContext:
        """The parameters that are trained, and their learning rates, checked."""
        step = StepContext([], [], [], ranks_of(self._options.process_group), PhaseClock())
        seen: set[int] = set()  # a parameter given twice has one column all the same
        for group in self.param_groups:
            lr = group["lr"]  # schedulers write here
            if type(lr) is not float or not 0 <= lr <= IN_EVERY_DTYPE:
                check_group_lr(group)
            given = group.get("param_names", [None] * len(group["params"]))
            for parameter, name in zip(group["params"], given, strict=True):
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    if not parameter.is_floating_point():
                        check_real(parameter)
                    step.names.append(name)
                    step.parameters.append(parameter)
                    step.lrs.append(float(lr))
        if not step.parameters:
            raise ValueError(
                "none of the optimizer's parameters requires a gradient; call requires_grad_() on "
                "those that are to be trained"
            )
        if self._measures() and len(set(step.lrs)) > 1:
            check_one_lr(step.lrs)
        return step
