"""Base class of the Jacobian-based optimisers (``torch.optim`` interface)."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hig._jacobian.capture import Capture, Captured
from hig._spectral.decomposition import GramSpectrum
from hig._spectral.filters import Damped, SpectralFilter
from hig._step.closure import (
    Closure,
    apart_from_autocast,
    as_one,
    call,
    check_closure,
    explained,
    loss_prediction_and_weights,
)
from hig._step.distributed import agreed_split, digest_of_filter, whole_batch
from hig._step.earlier_points import EarlierPoints, Point, values_at, were_set
from hig._step.evaluation import Evaluation, Watch
from hig._step.fewer_rows import with_fewer_rows
from hig._step.last_change import LastChange
from hig._step.linearisation import Linearisation, Lineariser
from hig._step.micro_batches import Part, each_part, joined, replayed
from hig._step.momentum import PreviousDirection
from hig._step.objective import Objective, StepContext, objective_of, ranks_of
from hig._step.options import StepOptions
from hig._step.param_groups import (
    IN_EVERY_DTYPE,
    check_group,
    check_group_keys,
    check_group_lr,
    check_lr,
    check_one_lr,
    has_lr,
)
from hig._step.progress import Progress
from hig._step.recorded import RecordedLinearisation
from hig._step.reports import MultiStepReport, StepReport
from hig._step.sketch import Sketch
from hig._step.state_dicts import IDENTITY, copied_state, identity_of
from hig._step.step_rules import make_step_rule, name_of_rule
from hig._step.trial_step import Attempts, restore_parameters
from hig._torch.autograd_graph import plain
from hig._torch.checksums import checksum, digest
from hig._torch.cuda_graph import check_recordable
from hig._torch.host import PhaseClock
from hig._torch.random_state import RandomState
from hig._torch.threads import on_fitting_threads
from hig.arguments import check_parameters
from hig.errors import NonFiniteError

__all__ = ["JacobianOptimizer"]


class JacobianOptimizer(torch.optim.Optimizer):
    """Base of the optimisers: capture the closure, decompose its Jacobian, filter, move.

    Args:
        params: parameters, named parameters or parameter groups. All groups share one joint
            Jacobian; each may have its own ``lr``, unless the step is measured.
        lr: factor of the step; None for 1.
        filter: spectral filter.
        options: options of engine, decomposition and step size.

    Attributes:
        report: the :class:`~hig.StepReport` of the last step, None before the first.
        filter: the filter of the next step; may be replaced between steps.
    """

    report: StepReport | MultiStepReport | None
    filter: SpectralFilter
    state: defaultdict[Any, Any]  # keys are parameters, or names for state of the whole step

    def __init__(
        self, params: ParamsT, lr: float | None, filter: SpectralFilter, options: StepOptions
    ):
        params = check_parameters(params, "params")
        step_rule = options.step_rule
        if step_rule is None:
            step_rule = "trust" if lr is None and not has_lr(params) else "fixed"
        lr = 1.0 if lr is None else lr
        check_lr(lr)
        super().__init__(params, {"lr": lr})
        self.filter = filter
        self.report = None
        self._options = options
        self._rule = make_step_rule(step_rule)
        self._first_rule_state = dict(self._rule.state)
        self._momenta = {sketched: options.momentum_of(sketched) for sketched in (True, False)}
        self._lineariser = Lineariser(options.engine, options.method, options.chunk)
        self._watch = Watch()
        self._spectra: list[GramSpectrum] = []
        self._recorded = self._new_record()
        self.state["step_rule"] = self._rule.state
        self.state["progress"], self.state["points"] = {}, {}
        self._sketch = None if options.sketch is None else Sketch(options.sketch)
        if self._sketch is not None:
            self.state["sketch"] = self._sketch.state
        self.state[IDENTITY] = identity_of(
            self,
            step_rule=name_of_rule(step_rule),
            momentum_kind=self._momenta[options.sketch is not None].kind,
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
        """Return all attributes, for copies and pickles; torch's own has its public part alone."""
        private = (
            "filter", "report", "_options", "_rule", "_first_rule_state", "_momenta",
            "_lineariser", "_watch", "_sketch",
        )  # fmt: skip
        kept = {name: getattr(self, name) for name in private}
        # CUDA graphs and Gram matrices are not copied.
        return {**super().__getstate__(), **kept, "_recorded": None, "_spectra": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the attributes of :meth:`__getstate__`; a CUDA graph is recorded again."""
        super().__setstate__(state)
        self._recorded = self._new_record()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load copies of learning rates and all state; see ``torch.optim.Optimizer``.

        Raises:
            ValueError: the state is that of another optimizer; nothing has been changed.
        """
        identity = self.state[IDENTITY]
        state_dict = copied_state(state_dict, identity, self.param_groups)
        self._check_state(state_dict["state"])
        super().load_state_dict(state_dict)
        self.state[IDENTITY] = identity
        # Parts that an earlier version did not keep are as in a new run.
        self._rule.state.update(self._first_rule_state)
        self._rule.state.update(self.state["step_rule"])
        self.state["step_rule"] = self._rule.state
        if self._sketch is not None:
            self._sketch.state.update(self.state.get("sketch", {}))
            self.state["sketch"] = self._sketch.state
        for name in ("progress", "points"):
            self.state.setdefault(name, {})

    def _check_state(self, state: dict[Any, Any]) -> None:
        """Raise a `ValueError` for a state without the parts that this optimizer reads."""
        memory = state.get("step_rule")
        known = self._rule.state.keys()
        # Earlier versions keep less; a rule without memory keeps nothing.
        if not isinstance(memory, dict) or not memory.keys() <= known or (known and not memory):
            raise ValueError(
                f"the state holds {'no' if memory is None else 'another'} step rule: it is that of "
                f"another optimizer; load a {self.state[IDENTITY]['class']}.state_dict() with the "
                "same step_rule"
            )
        damping = state.get("damping", {}).get("value")
        if damping is not None:
            Damped(damping)  # raises where it is out of range
        for name in state.keys() - self.state.keys():
            if isinstance(name, str):
                raise ValueError(
                    f"the state holds {name!r}, which this optimizer does not have: it is that of "
                    f"another; load a {self.state[IDENTITY]['class']}.state_dict()"
                )

    @on_fitting_threads
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step.

        Args:
            closure: returns ``(loss, prediction)``: a scalar and the (batch, ...) outputs it was
                computed from. The loss may depend on the parameters through ``prediction`` alone.
                With ``(loss, prediction, weights)``, (batch,) or (batch, ...), the rows of J are
                those of ``weights.sqrt() * prediction``, the outputs of a loss whose terms have
                these weights; 0 leaves missing observations out.
                Or yields such pairs, one for each part of the batch, whose graphs then never exist
                at one time: the step is that of the whole batch, with losses joined by
                ``reduction`` of the optimizer.
                Rules that evaluate the loss again call it again, without a graph unless it needs
                one, and with the same numbers of the global generators of torch, NumPy and Python;
                tensors that it then changes in place are restored. None is refused.

        Returns:
            The loss before the step, detached; with several processes that of the whole batch.

        Raises:
            DecompositionError: no decomposition of the Jacobian converges.
            NonFiniteError: loss, prediction or Jacobian hold NaN or Inf; or the parameters would,
                after a step that is too large for their dtype.
            RankError: another process rank failed or was lost.
            SampleDependenceError: engine "layerwise", and samples influence one another.
            TypeError: the closure is not callable, or does not return real tensors.
            ValueError: the closure does not return ``(loss, prediction)``, process ranks differ in
                parameters or settings, or parameter groups in the ``lr`` of a measured step.

        After any error, parameters and momentum are unchanged.
        """
        closure = check_closure(closure)
        step = self._context()
        device = step.parameters[0].device
        self._lineariser.backward.notes.clear()
        self._spectra = []  # of the last step: the Gram matrix that they may need is large
        random_state = self._watch.random_state(device) if self._measures() else None
        closure, without_autocast = apart_from_autocast(closure, device)
        with explained(), without_autocast:
            linearisation, recovered = self._linearise_or_return(closure, step, random_state)
            closure = as_one(closure, self._options.reduction)
            share = self._share(linearisation.objectives)
            evaluate = Evaluation(
                closure, share, self._predictions, step, random_state, self._watch
            )
            if self._measures():
                with step.clock.phase("update"):
                    evaluate.check(linearisation.loss, linearisation.objectives)
            previous = self._previous_direction(step, linearisation)
            earlier = None
            if getattr(self._rule, "looks_back", False):
                last_change = self._last_change(linearisation, step, evaluate)
                earlier = EarlierPoints(self.state, step.parameters, linearisation, last_change)
            attempts = Attempts(linearisation, previous, step, self._measures(), evaluate, earlier)
            with torch.no_grad(), attempts:
                report = self._advance(attempts, linearisation)
                loss = linearisation.loss
                number = float(loss) if self._measures() else math.nan  # on the host already
                attempts.accept(report.step_size)
        progress = Progress(self.state["progress"])
        if getattr(self._rule, "data_changed", False):
            progress.restart(number)
        progress.add(number)
        if self._sketch is not None and isinstance(report, StepReport):
            self._sketch.adapt(report)
        report.notes.extend([*recovered, *self._watch.notes, *progress.notes()])
        self.report = report
        self._spectra = linearisation.spectra()
        return loss

    # -- hooks for subclasses --------------------------------------------------------------------

    def _linearise(self, outcome: Any, captured: Captured, step: StepContext) -> Linearisation:
        """Linearise the result of the closure."""
        if isinstance(outcome, Iterator):
            return self._linearise_parts(outcome, step)
        objective = self._objective(outcome, captured, step)
        return self._lineariser.linearise(objective, self.filter, step.clock)

    def _loss(self, outcome: Any) -> Tensor:
        """Return the loss in the result of the closure."""
        return outcome[0]

    def _share(self, objectives: Sequence[Objective]) -> Callable[[Any], Tensor]:
        """Return what finds the share of this process in the loss of the whole batch."""
        weight = objectives[0].weight
        if weight == 1:
            return self._loss
        return lambda outcome: weight * plain(self._loss(outcome), "the loss").detach().double()

    def _predictions(self, outcome: Any) -> list[Tensor]:
        """Return the prediction of each objective in the result of the closure."""
        return [plain(outcome[1], "the prediction")]

    def _advance(self, attempts: Attempts, linearisation: Linearisation) -> StepReport:
        """Move the parameters along the filtered direction and return the report."""
        trial = attempts(self.filter)
        with linearisation.clock.phase("update"):
            ratio = self._rule.take(trial)
        report = linearisation.report(self.filter)
        report.step_size = trial.step_size
        report.gain_ratio = None if ratio is None or math.isnan(ratio) else ratio
        report.notes.extend(trial.notes)
        return report

    def _measures(self) -> bool:
        """Return whether steps use the quadratic model or evaluate the closure again."""
        return self._rule.measures

    # -- details ---------------------------------------------------------------------------------

    def _linearise_or_return(
        self, closure: Closure, step: StepContext, random_state: RandomState | None
    ) -> tuple[Linearisation, list[str]]:
        """Linearise the closure; where it is not finite, at the safe point of the step rule.

        Returns:
            The linearisation, and notes.

        Raises:
            NonFiniteError: it is not finite at the safe point either, or there is none; parameters
                are unchanged.
        """
        # Of several processes the others have not failed.
        looks_back = getattr(self._rule, "looks_back", False) and step.ranks is None
        safe = None
        if looks_back and not were_set(self.state, step.parameters):
            safe = values_at(Point.SAFE, self.state, step.parameters)
        try:
            return self._linearise_closure(closure, step), []
        except NonFiniteError as error:
            if safe is None or random_state is None:
                raise
            # Not the error itself: with this frame it would be a cycle, and keep the graph alive.
            message = str(error)
        reason = message.partition("; parameters are unchanged")[0]
        linearisation = self._linearise_at(safe, partial(replayed, closure, random_state), step)
        if linearisation is None:
            raise NonFiniteError(message)
        for parameter in step.parameters:  # momentum of the steps that are given up
            self.state.get(parameter, {}).pop("direction", None)
        self._rule.retreat()  # type: ignore[attr-defined]  # of rules that look back
        return linearisation, [f"back to the parameters before the last steps: {reason}"]

    def _linearise_at(
        self, values: Sequence[Tensor], closure: Closure, step: StepContext
    ) -> Linearisation | None:
        """Set the parameters and linearise; return None, and set them back, if not finite."""
        present = [parameter.detach().clone() for parameter in step.parameters]
        finished = False
        restore_parameters(step.parameters, values)
        try:
            linearisation = self._linearise_closure(closure, step)
            finished = True
        except NonFiniteError:
            return None
        finally:
            if not finished:
                restore_parameters(step.parameters, present)
        return linearisation

    def _linearise_parts(self, stream: Iterator[Any], step: StepContext) -> Linearisation:
        """Linearise a closure that yields its batch in parts."""
        lineariser = self._lineariser
        if step.ranks is not None:
            raise ValueError(
                f"micro-batches step in one process, and torch.distributed has {step.ranks.size}; "
                "return (loss, prediction) for the samples of each process, or pass "
                "process_group=None to step in each process alone"
            )
        if lineariser.needs_graph:
            raise ValueError(
                "micro-batches are freed one after the other, and method='lanczos' differentiates "
                "all of them again and again: use method='gram', or return (loss, prediction)"
            )

        def take(compute: Callable[[], Any]) -> Part:
            capture = Capture(step.parameters)
            with step.clock.phase("forward"), capture, torch.enable_grad():
                outcome = compute()
            self._watch.writes |= capture.has_written
            captured = capture.captured
            if self._sketch is not None:  # of the outputs in all parts, or in none
                captured = Captured(captured.uses)
            objective = self._objective(outcome, captured, step)
            objective.checks.settle()
            return Part(objective, lineariser.build(objective, step.clock))

        parts = each_part(stream, take)
        names = parts[0].objective.forward.names
        objective, result = joined(parts, self._options.reduction, step.parameters, names)
        assembled = lineariser.assemble(objective, self.filter, step.clock, result)
        return lineariser.decompose(assembled, self.filter, step.clock)

    def _linearise_closure(self, closure: Closure, step: StepContext) -> Linearisation:
        """Run the closure, or replay a record of it, and linearise its result."""
        if self._recorded is None:
            return self._linearise(*self._run(closure, step), step)
        processes = 1 if step.ranks is None else step.ranks.size
        check_recordable(step.parameters, processes, self._options.method)
        route_settings = getattr(self.filter, "rcond", 0.0), self.filter.needs_small_values
        return self._recorded.linearise(
            lambda: self._objective(*self._run(closure, step), step),
            (tuple(map(id, step.parameters)), self._measures(), route_settings),
            self.filter,
            step.clock,
        )

    def _run(self, closure: Closure, step: StepContext) -> tuple[Any, Captured]:
        """Return the result of a closure, and what was captured while it ran."""
        capture = Capture(step.parameters)
        with step.agreement(), step.clock.phase("forward"), capture:
            outcome = call(closure)
        self._watch.writes |= capture.has_written
        return outcome, capture.captured

    def _objective(self, outcome: Any, captured: Captured, step: StepContext) -> Objective:
        """Return the objective of the result of a closure."""
        ranks, options = step.ranks, self._options
        with step.agreement(), step.clock.phase("loss gradient"):
            loss, prediction, weights = loss_prediction_and_weights(outcome)
            objective = objective_of(loss, prediction, captured, step, self._measures())
            if weights is not None:
                objective = objective.weighted(weights)
            if ranks is not None:  # before the first collective
                objective.checks.settle()
        split = None
        if ranks is not None:
            prediction, parameters = objective.forward.prediction, objective.forward.parameters
            split = agreed_split(prediction, parameters, ranks, self._settings())
        # What is recorded decides nothing.
        if self._recorded is None and (self._sketch or objective.forward.has_controls):
            objective = with_fewer_rows(objective, self._lineariser, self._sketch, step, split)
        return objective if split is None else whole_batch(objective, split, options.reduction)

    def _last_change(
        self, linearisation: Linearisation, step: StepContext, evaluate: Evaluation
    ) -> LastChange | None:
        """Return what finds the change by the last step; None if the Jacobian has all rows."""
        objective = linearisation.objectives[0]
        if self._sketch is None or not objective.sketched:
            return None
        return LastChange(objective, step.parameters, evaluate, self._sketch)

    def _previous_direction(
        self, step: StepContext, linearisation: Linearisation
    ) -> PreviousDirection | None:
        """Return the previous direction; None without momentum."""
        sketched = linearisation.objectives[0].sketched
        momentum = self._momenta[sketched]
        if sketched and self._sketch is not None:
            momentum = momentum.after(self._sketch.state["steps"])
        if not momentum.factor:
            return None
        return PreviousDirection(momentum, self.state, step.parameters)

    def _settings(self) -> int:
        """Return a digest of all settings of a step, to be equal on all process ranks."""
        options, engine = self._options, self._options.engine
        lrs = [float(group["lr"]) for group in self.param_groups]
        damping = self.state.get("damping", {}).get("value")
        rule = type(self._rule).__name__, self._rule.state, damping, options.reduction
        # The seed of the first process serves all.
        drawn = None if self._sketch is None else self._sketch.state | {"seed": 0}
        engine = engine if isinstance(engine, str) else type(engine).__name__
        flat = [parameter for group in self.param_groups for parameter in group["params"]]
        # Missing after steps without a direction to keep, on all ranks alike.
        stored = [value for p in flat for value in self.state.get(p, {}).values()]
        last = checksum(stored)
        return digest(
            lrs, digest_of_filter(self.filter), engine, options.method, rule, last,
            list(self._momenta.values()),
            "a function" if callable(options.sketch) else options.sketch, drawn,
        )  # fmt: skip

    def _context(self) -> StepContext:
        """Return the trained parameters and their learning rates, after checking them."""
        step = StepContext([], [], [], ranks_of(self._options.process_group), PhaseClock())
        seen: set[int] = set()  # a parameter given twice has its columns once
        for group in self.param_groups:
            lr = group["lr"]  # schedulers write here
            if type(lr) is not float or not 0 <= lr <= IN_EVERY_DTYPE:
                check_group_lr(group)
            names = group.get("param_names", [None] * len(group["params"]))
            for parameter, name in zip(group["params"], names, strict=True):
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
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
