"""What steps along a filtered joint Jacobian, with the manners of ``torch.optim``."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hig._jacobian.batch_split import check_reduction
from hig._jacobian.capture import Capture, LayerUse
from hig._jacobian.engine import ENGINES, InexactLayersError
from hig._spectral.decomposition import GramSpectrum, check_method
from hig._spectral.filters import SpectralFilter
from hig._spectral.lanczos import Lanczos
from hig._step.attempts import Attempts, Evaluation, Watch
from hig._step.closure import Closure, call, check_closure, explained, loss_and_prediction
from hig._step.linearisation import Formed, Linearisation, decomposed, form, form_checked, linearise
from hig._step.loss_gradient import loss_gradient
from hig._step.momentum import Carried, Momentum
from hig._step.multi_report import MultiStepReport
from hig._step.objective import Computation, checksum, digest, digest_of_filter, whole_batch
from hig._step.param_groups import (
    check_group,
    check_group_keys,
    check_group_lr,
    check_lr,
    check_one_lr,
    check_real,
    names_of,
)
from hig._step.reports import PhaseClock, StepReport
from hig._step.state_dicts import IDENTITY, copied_state, identity_of
from hig._step.step_rules import make_step_rule
from hig._step.trial_step import RandomState, Trial
from hig._torch.autocast import apart_from_autocast
from hig._torch.batched_vjp import Backward
from hig._torch.cuda_graph import Recording, check_recordable
from hig._torch.deferred_checks import Checks
from hig._torch.ranks import ProcessGroup, Ranks, check_process_group
from hig._torch.threads import on_fitting_threads
from hig.arguments import (
    check_choice,
    check_count,
    check_parameters,
)
from hig.errors import SampleDependenceError, described

__all__ = ["Closure", "JacobianOptimizer", "loss_and_prediction"]


class JacobianOptimizer(torch.optim.Optimizer):
    """Base of the steps: capture the closure, decompose its Jacobian, filter, move.

    Args:
        params: parameters, named parameters or parameter groups. All groups share one joint
            Jacobian; each may have its own ``lr``, unless the step is measured.
        lr: factor of the step.
        filter: spectral filter.
        engine: "auto", "layerwise" or "rows": how the Jacobian is obtained.
        method: "auto", "gram", "svd", "lanczos" or a `hig.Lanczos`: how it is decomposed.
        step_rule: "fixed", "trust" or "line_search".
        chunk: backward passes in one batch; None chooses by memory.
        process_group: the processes that step together, as in :class:`HIG`.
        reduction: "mean" or "sum", how their losses make one.
        momentum: what of the last direction is kept, in [0, 1).
        momentum_kind: "plain" or "projected", as in :class:`HIG`.
        cuda_graph: record a step on the GPU and replay it, as in :class:`HIG`.

    Attributes:
        report: the :class:`~hig.StepReport` of the last step, None before the first.
        filter: the filter of the next step; may be replaced between steps.
    """

    report: StepReport | MultiStepReport | None
    filter: SpectralFilter
    state: defaultdict[Any, Any]  # the memories of all parameters lie under names

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        filter: SpectralFilter,
        engine: str = "auto",
        method: str | Lanczos = "auto",
        step_rule: str = "fixed",
        chunk: int | None = None,
        process_group: ProcessGroup = "auto",
        reduction: str = "mean",
        momentum: float = 0.0,
        momentum_kind: str = "plain",
        cuda_graph: bool = False,
    ):
        params = check_parameters(params, "params")
        check_choice(engine, "engine", ENGINES)
        check_method(method)
        if chunk is not None:
            chunk = check_count(chunk, "chunk", "or None")
        check_process_group(process_group)
        check_reduction(reduction)
        self._rule = make_step_rule(step_rule)
        self._momentum = Momentum(momentum, momentum_kind)
        check_lr(lr)
        if not isinstance(cuda_graph, bool):
            raise TypeError(
                f"cuda_graph must be True or False, got {described(cuda_graph)}; True records "
                "steps on a GPU"
            )
        super().__init__(params, {"lr": lr})
        self.filter = filter
        self.report = None
        self._engine, self._method = engine, method
        self._backward, self._watch = Backward(chunk), Watch()
        self._spectra: list[GramSpectrum] = []
        self._process_group, self._reduction = process_group, reduction
        self._recording: Recording[Formed] | None = Recording() if cuda_graph else None
        self.state["step_rule"] = self._rule.state
        self.state[IDENTITY] = identity_of(self, step_rule=step_rule, momentum_kind=momentum_kind)

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
        private = (
            "filter", "report", "_rule", "_engine", "_method", "_backward", "_process_group",
            "_reduction", "_momentum", "_watch",
        )  # fmt: skip
        kept = {name: getattr(self, name) for name in private}
        # Graphs and Gram matrices stay where they are.
        recording: Recording[Formed] | None = Recording() if self._recording else None
        return {**super().__getstate__(), **kept, "_recording": recording, "_spectra": []}

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
        parameters, lrs, names = self._trainable()
        if self._measures():
            check_one_lr(lrs)
        ranks, clock = Ranks(self._process_group), PhaseClock()
        self._backward.notes.clear()
        self._spectra = []  # of the last step: the Gram matrix that they may need is large
        device = parameters[0].device
        random_state = RandomState(device) if self._measures() else None
        closure, without_autocast = apart_from_autocast(closure, device)
        with explained(), without_autocast:
            if self._recording is None:
                outcome, uses = self._run(closure, parameters, clock, ranks)
                linearisation = self._linearise(outcome, uses, parameters, names, clock, ranks)
            else:
                linearisation = self._replayed(
                    self._recording, closure, parameters, names, clock, ranks
                )
            carried = Carried(self._momentum, self.state, parameters)
            weight = linearisation.weight if ranks.size > 1 else 1.0
            evaluate = Evaluation(
                closure, self._loss, parameters, random_state, ranks, weight, self._watch
            )
            attempts = Attempts(linearisation, carried, parameters, lrs, self._measures(), evaluate)
            with torch.no_grad(), attempts:
                report, loss = self._advance(attempts, linearisation, clock), linearisation.loss
                attempts.accept(report.step_size)
        self.report = report
        self._spectra = linearisation.spectra()
        return loss

    # -- what the siblings change --------------------------------------------------------------

    def _linearise(
        self,
        outcome: Any,
        uses: Sequence[LayerUse],
        parameters: Sequence[Tensor],
        names: Sequence[str | None],
        clock: PhaseClock,
        ranks: Ranks,
    ) -> Linearisation:
        """What the closure returned, as a decomposed Jacobian."""
        computation = self._computation(outcome, uses, parameters, names, clock, ranks)
        return linearise(
            computation, self.filter, self._engine, self._method, self._backward, clock
        )

    def _computation(
        self,
        outcome: Any,
        uses: Sequence[LayerUse],
        parameters: Sequence[Tensor],
        names: Sequence[str | None],
        clock: PhaseClock,
        ranks: Ranks,
    ) -> Computation:
        """What the closure returned, with the gradient of the loss in the outputs."""
        checks, curvature = Checks(), self._measures()
        named = names_of(parameters, names)
        with ranks.agreement(), clock.phase("loss gradient"):
            loss, prediction = loss_and_prediction(outcome)
            gradient = loss_gradient(loss, prediction, parameters, curvature, checks)
            if ranks.size > 1:  # before what they compute together
                checks.settle()
        return whole_batch(
            uses, loss, prediction, gradient, parameters, named, ranks,
            self._reduction, checks, self._settings() if ranks.size > 1 else 0,
        )  # fmt: skip

    def _replayed(
        self,
        recording: Recording[Formed],
        closure: Closure,
        parameters: list[Tensor],
        names: Sequence[str | None],
        clock: PhaseClock,
        ranks: Ranks,
    ) -> Linearisation:
        """The decomposed Jacobian at the present values of all that the closure reads."""
        check_recordable(parameters, ranks.size, self._method)
        filter, backward = self.filter, self._backward

        def compute() -> Formed:
            outcome, uses = self._run(closure, parameters, clock, ranks)
            computation = self._computation(outcome, uses, parameters, names, clock, ranks)
            return form(computation, filter, self._engine, self._method, backward, clock)

        exact = getattr(filter, "rcond", 0.0), filter.needs_small_values
        key = tuple(map(id, parameters)), self._measures(), exact
        with clock.phase("replay"):
            formed = recording(key, compute)
        try:
            found = decomposed(formed, filter, self._method, backward, clock, again=True)
        except InexactLayersError as error:
            # May have been rounding: then the next record allows for it.
            computation = replace(formed.computation, checks=Checks())
            formed = form_checked(computation, filter, self._engine, self._method, backward, clock)
            if not formed.engine.layers_exact:
                raise SampleDependenceError(
                    "cuda_graph=True replays factors of layers, which are not exact here (samples "
                    "influence one another, or a weight is used where it is not seen); take "
                    "engine='rows', or leave it out"
                ) from error
            self._recording = Recording()
            found = decomposed(formed, filter, self._method, backward, clock)
        # The next replay overwrites it.
        return replace(found, computation=replace(formed.computation, loss=found.loss.clone()))

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

    def _settings(self) -> int:
        """A digest of what decides on a step beside the parameters."""
        lrs = [float(group["lr"]) for group in self.param_groups]
        rule = type(self._rule).__name__, self._rule.state, self._reduction
        flat = [parameter for group in self.param_groups for parameter in group["params"]]
        last = checksum([self.state[p]["direction"] for p in flat if p in self.state])
        return digest(
            lrs, digest_of_filter(self.filter), self._engine, self._method, rule,
            self._momentum, last,
        )  # fmt: skip

    def _run(
        self, closure: Closure, parameters: Sequence[Tensor], clock: PhaseClock, ranks: Ranks
    ) -> tuple[Any, list[LayerUse]]:
        """Result of a closure, and the uses of layers while it runs."""
        capture = Capture(parameters)
        with ranks.agreement(), clock.phase("forward"), capture:
            outcome = call(closure)
        self._watch.writes |= capture.has_written
        return outcome, capture.uses

    def _trainable(self) -> tuple[list[Tensor], list[float], list[str | None]]:
        parameters: list[Tensor] = []
        lrs: list[float] = []
        names: list[str | None] = []
        seen: set[int] = set()  # a parameter given twice has one column all the same
        for group in self.param_groups:
            check_group_lr(group)  # schedulers write here
            given = group.get("param_names", [None] * len(group["params"]))
            for parameter, name in zip(group["params"], given, strict=True):
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    check_real(parameter)
                    names.append(name)
                    parameters.append(parameter)
                    lrs.append(float(group["lr"]))
        if not parameters:
            raise ValueError(
                "none of the optimizer's parameters requires a gradient; call requires_grad_() on "
                "those that are to be trained"
            )
        return parameters, lrs, names
