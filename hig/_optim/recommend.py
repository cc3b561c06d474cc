"""Recommendation of a step, from one batch: its spectrum, and what steps of each kind cost."""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hig._kronecker.optimizer import KroneckerHIG
from hig._spectral.filters import HalfInverse
from hig._step.closure import Closure, check_closure
from hig._step.linearisation import Linearisation
from hig._step.optimizer import JacobianOptimizer
from hig._step.options import StepOptions
from hig._step.reports import StepReport
from hig._step.trial_step import Attempts, restore_parameters
from hig._torch.buffers import Buffers
from hig._torch.random_state import RandomState
from hig._torch.threads import on_fitting_threads

__all__ = ["Cost", "Recommendation", "recommend"]

# Singular values below this part of the largest are those that gradients hardly train.
_WEAK = 0.01
# With fewer weak ones than this part Adam sees the directions that matter.
_FEW_WEAK = 0.1
_EXACT = "hig.HIG(...)"
# Evaluations of which the fastest counts.
_ROUNDS = 3


@dataclass(frozen=True)
class Cost:
    """Cost of a step.

    Attributes:
        step: the step as a call.
        gradients: its time over that of a gradient of the loss.
        about: what it computes, in words.
        measured: whether it was taken; an estimate otherwise.
    """

    step: str
    gradients: float
    about: str
    measured: bool = True

    def __str__(self) -> str:
        number = f"{self.gradients:.{1 if self.gradients < 10 else 0}f}"
        number = number if self.measured else f"about {number}"
        return f"  {self.step:<28}{number:>12}  {self.about}"


@dataclass(frozen=True)
class Recommendation:
    """Recommendation for one batch; prints as a table.

    Attributes:
        first: the step to try first, as a call.
        reason: why.
        costs: cost of each kind of step, the least first.
        weak: part of the singular values below a hundredth of the largest.
        seconds: time of one gradient.
    """

    first: str
    reason: str
    costs: list[Cost]
    weak: float
    seconds: float

    def __str__(self) -> str:
        return "\n".join(
            [
                f"a step, in gradients of the loss ({1e3 * self.seconds:.3g} ms):",
                *map(str, self.costs),
                f"{self.weak:.0%} of the singular values are below a hundredth of the largest",
                f"try first: {self.first}",
                f"because {self.reason}",
            ]
        )


@on_fitting_threads
def recommend(params: ParamsT, closure: Closure) -> Recommendation:
    """Recommend a step for one batch: exact, exact by controls, sketched, or in Kronecker factors.

    Some gradients, two steps of a sketch (or the exact one, if it has few rows) and two of
    :class:`hig.KroneckerHIG` are computed and timed; the cost of an exact step with many rows is
    extrapolated. Parameters, random state, and the buffers that the closure changes in place are
    restored. Times are wall-clock: on a busy machine they scatter.

    Example::

        print(hig.recommend(network.parameters(), closure))

    Args:
        params: see :class:`hig.HIG`.
        closure: returns ``(loss, prediction)``, see ``hig.HIG.step``.

    Returns:
        The step to try first and why, and the cost of each kind of step.

    Raises:
        NonFiniteError: loss, prediction or Jacobian hold NaN or Inf.
        ValueError: see ``hig.HIG.step``.
    """
    check_closure(closure)
    # Optimisers write to the groups that they are given.
    params = [dict(one) if isinstance(one, dict) else one for one in params]  # type: ignore[assignment]
    looking = _OneBatch(params)
    parameters = [p for group in looking.param_groups for p in group["params"]]
    start = [parameter.detach().clone() for parameter in parameters]
    buffers = Buffers(parameters)

    def watched() -> tuple[Tensor, Tensor]:
        with buffers:
            return closure()

    def measured() -> Recommendation:
        seconds = _gradient_seconds(parameters, watched)
        for _ in range(2):  # the first one looks at the graph and allocates
            looking.step(watched)
        report = looking.report
        assert isinstance(report, StepReport)
        kronecker = _kronecker_cost(params, watched, seconds)
        return _chosen(report, _jacobian_costs(report, seconds), kronecker, seconds)

    try:
        return RandomState(parameters[0].device).replay(measured)
    finally:
        with torch.no_grad():
            restore_parameters(parameters, start)
        buffers.restore()


class _OneBatch(JacobianOptimizer):
    """Optimiser that decomposes a Jacobian and takes no step."""

    def __init__(self, params: ParamsT):
        options = StepOptions(step_rule="fixed", momentum=0.0, sketch="auto", process_group=None)
        super().__init__(params, 1.0, HalfInverse(rcond="auto"), options)

    def _advance(self, attempts: Attempts, linearisation: Linearisation) -> StepReport:
        linearisation.step(self.filter)
        return linearisation.report(self.filter)


def _seconds(compute: Callable[[], object]) -> float:
    start = time.perf_counter()
    compute()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _gradient_seconds(parameters: Iterable[Tensor], closure: Closure) -> float:
    """Return the time of a gradient of the loss, the least of a few."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]

    def gradient() -> object:
        with torch.enable_grad():
            loss = closure()[0]
            return torch.autograd.grad(loss, wanted, allow_unused=True)

    return min(_seconds(gradient) for _ in range(_ROUNDS))


def _jacobian_costs(report: StepReport, gradient: float) -> list[Cost]:
    """Return the cost of the step that was taken, and of the exact one if it is another."""
    taken = sum(report.seconds.values()) / gradient
    fewer = report.fewer_rows
    if fewer is None:
        return [Cost(_EXACT, taken, f"{report.rows} rows, exact")]
    if fewer.exact:
        return [Cost(_EXACT, taken, f"{report.rows} rows, exact: {fewer}")]
    many = fewer.outputs / fewer.rows
    # The side of the matrix that is decomposed, rows or columns, before and after.
    side = min(fewer.samples * fewer.outputs, report.columns) / min(report.rows, report.columns)
    growth = {"jacobian": many, "gram": many * side, "decomposition": side**3, "direction": many}
    exact = sum(growth.get(name, 1) * spent for name, spent in report.seconds.items()) / gradient
    rows = fewer.samples * fewer.outputs
    return [
        Cost(f"hig.HIG(..., sketch={fewer.rows})", taken, f"{report.rows} rows: {fewer}"),
        Cost(_EXACT, exact, f"{rows} rows, exact", measured=False),
    ]


def _kronecker_cost(params: ParamsT, closure: Closure, gradient: float) -> Cost | None:
    """Return the cost of a step in Kronecker factors; None if it has no layers."""
    optimizer = KroneckerHIG(params, lr=0.0, process_group=None)
    with warnings.catch_warnings():  # that it has no layers is part of the answer
        warnings.filterwarnings("ignore", "KroneckerHIG found no")
        optimizer.step(closure)  # with the first factors
    spent = min(_seconds(lambda: optimizer.step(closure)) for _ in range(_ROUNDS))
    report = optimizer.report
    if report is None or not report.layers:
        return None
    about = f"{report.layers} layers, {report.others} other parameters"
    return Cost("hig.KroneckerHIG(...)", spent / gradient, about)


def _chosen(
    report: StepReport, jacobian: Sequence[Cost], kronecker: Cost | None, gradient: float
) -> Recommendation:
    """Choose the step to try first."""
    values = report.singular_values
    weak = float((values < _WEAK * values[0]).double().mean())
    step, exact = jacobian[0], jacobian[-1]
    if weak < _FEW_WEAK:
        first = "torch.optim.Adam(...)" if kronecker is None else kronecker.step
        reason = "gradients see nearly all directions, and cheap steps win"
    else:
        first, reason = step.step, "gradients hardly train the weak directions"
        if step is not exact:
            reason += f", and an exact step takes the time of {exact.gradients:.0f} of them"
    costs = [Cost("torch.optim.Adam(...)", 1.0, "one gradient"), *jacobian]
    costs += [] if kronecker is None else [kronecker]
    return Recommendation(first, reason, sorted(costs, key=_gradients), weak, gradient)


def _gradients(cost: Cost) -> float:
    return cost.gradients
