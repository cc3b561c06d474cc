"""Diagnosis of one batch: its spectrum, the cut-off, and the validity of the quadratic model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hig._jacobian.engine import Engine
from hig._spectral.filters import HalfInverse, noise_level
from hig._step.closure import Closure, check_closure
from hig._step.linearisation import Linearisation
from hig._step.optimizer import JacobianOptimizer
from hig._step.options import StepOptions
from hig._step.reports import StepReport
from hig._step.row_map import FewerRows
from hig._step.sketch import Directions
from hig._step.trial_step import Attempts
from hig._torch.buffers import Buffers
from hig._torch.random_state import RandomState
from hig._torch.threads import on_fitting_threads

__all__ = ["Diagnosis", "Direction", "diagnose"]

Array = np.ndarray[Any, np.dtype[Any]]

# Step sizes of the trials, in Cauchy steps.
RELATIVE_STEPS = np.geomspace(1e-3, 10, 25)

_NAMES = {-1.0: "Gauss-Newton", -0.5: "half-inverse", 1.0: "gradient"}


@dataclass(frozen=True)
class Direction:
    """Loss of the batch along one direction.

    Attributes:
        kappa: exponent of the singular values.
        rcond: relative cut-off in force.
        rank: number of singular values kept.
        cauchy: step size at which the quadratic model of the loss is lowest.
        step_sizes: (25,) from a thousandth to ten times that, float64.
        predicted: (25,) change of the loss by the quadratic model.
        achieved: (25,) measured change; infinite if the loss is not finite.
    """

    kappa: float
    rcond: float
    rank: int
    cauchy: float
    step_sizes: Array
    predicted: Array
    achieved: Array

    @property
    def name(self) -> str:
        """Name of the direction, such as "half-inverse"."""
        return _NAMES.get(self.kappa, f"kappa {self.kappa:g}")

    @property
    def best(self) -> int:
        """Index of the step size with the lowest measured loss."""
        return int(np.argmin(self.achieved))

    def __str__(self) -> str:
        size, change = self.step_sizes[self.best], self.achieved[self.best]
        return (
            f"{self.name:<14} rank {self.rank:>5}, rcond {self.rcond:.1e}, Cauchy step "
            f"{self.cauchy:.3g}; lowest loss at step size {size:.3g} (change {change:+.3e})"
        )


@dataclass(frozen=True)
class Diagnosis:
    """Diagnosis of one batch; prints as a table.

    Attributes:
        loss: its loss.
        rows: n, outputs of all samples.
        columns: P, parameters.
        engine: the engine of the Jacobian.
        singular_values: (min(n, P),) float64, descending.
        noise: size up to which singular values may be rounding alone, in the same unit.
        directions: one for each exponent, in the order of ``kappas``.
        notes: deviations of the evaluations, in words.
        fewer_rows: see :class:`hig.StepReport`.
    """

    loss: float
    rows: int
    columns: int
    engine: str | Engine
    singular_values: Array
    noise: float
    directions: list[Direction]
    notes: list[str] = field(default_factory=list)
    fewer_rows: FewerRows | None = None

    def results(self) -> dict[str, object]:
        """Return all of it for `hig.save_results`; ``python -m plots.diagnosis FILE`` draws it."""
        directions = [asdict(d) | {"name": d.name} for d in self.directions]
        fewer = None if self.fewer_rows is None else self.fewer_rows._asdict()
        return asdict(self) | {"directions": directions, "fewer_rows": fewer}

    def __str__(self) -> str:
        values = self.singular_values
        noisy = int((values <= self.noise).sum())
        rows = "" if self.fewer_rows is None else f" ({self.fewer_rows})"
        lines = [
            f"loss {self.loss:.4g}; J {self.rows} x {self.columns}{rows}, engine {self.engine}",
            f"singular values {values[0]:.2e} to {values[-1]:.2e}; {noisy} of {len(values)} may be "
            "rounding alone",
        ]
        return "\n".join([*lines, *map(str, self.directions), *self.notes])


@on_fitting_threads
def diagnose(
    params: ParamsT,
    closure: Closure,
    kappas: Sequence[float] = (-0.5, -1.0, 1.0),
    rcond: float | Literal["auto"] = "auto",
    engine: str | Engine = "auto",
    chunk: int | None = None,
    sketch: int | Literal["auto"] | Directions | None = None,
) -> Diagnosis:
    """Diagnose one batch: which ``rcond``, step size and direction would suit it?

    One Jacobian and its decomposition, then 25 evaluations of the loss per direction. Parameters,
    random state, and the buffers that the closure changes in place are restored.

    Example::

        diagnosis = hig.diagnose(network.parameters(), closure)
        print(diagnosis)
        hig.save_results("batch.pickle", diagnosis.results())
        # python -m plots.diagnosis batch.pickle --out batch.png

    ``params``, ``engine``, ``chunk`` and ``sketch`` are those of :class:`hig.HIG`.

    Args:
        closure: returns ``(loss, prediction)``, see ``hig.HIG.step``.
        kappas: exponents of the directions that are compared, each in [-1, 1].
        rcond: relative cut-off of all of them, or "auto".

    Returns:
        The spectrum, and the loss along each direction.

    Raises:
        NonFiniteError: loss, prediction or Jacobian hold NaN or Inf.
        TypeError: an argument is of another type.
        ValueError: see ``hig.HIG.step``; or there is no exponent.
    """
    check_closure(closure)
    filters = [HalfInverse(kappa=kappa, rcond=rcond) for kappa in kappas]
    if not filters:
        raise ValueError("kappas must name at least one exponent, got none; -0.5 is half-inverse")
    diagnosing = _BatchDiagnosis(params, filters, engine, chunk, sketch)
    parameters = [p for group in diagnosing.param_groups for p in group["params"]]
    buffers = Buffers(parameters)

    def watched() -> tuple[Tensor, Tensor]:
        with buffers:
            return closure()

    try:
        RandomState(parameters[0].device).replay(lambda: diagnosing.step(watched))
    finally:
        buffers.restore()
    return diagnosing.diagnosis


class _BatchDiagnosis(JacobianOptimizer):
    """Optimiser that tries many steps and takes none."""

    diagnosis: Diagnosis

    def __init__(
        self,
        params: ParamsT,
        filters: Sequence[HalfInverse],
        engine: str | Engine,
        chunk: int | None,
        sketch: int | Literal["auto"] | Directions | None,
    ):
        # The most demanding filter determines the accuracy of small singular values.
        first = min(filters, key=lambda filter: filter.kappa)
        options = StepOptions(
            engine=engine, chunk=chunk, step_rule="fixed", momentum=0.0, sketch=sketch
        )
        super().__init__(params, 1.0, first, options)
        self._filters = filters

    def _measures(self) -> bool:
        return True

    def _advance(self, attempts: Attempts, linearisation: Linearisation) -> StepReport:
        directions = [
            self._try_direction(filter, attempts, linearisation) for filter in self._filters
        ]
        report = linearisation.report(self.filter)
        values = report.singular_values
        self.diagnosis = Diagnosis(
            float(report.loss),
            report.rows,
            report.columns,
            report.engine,
            values.detach().cpu().numpy(),
            float(noise_level(values, report.dtype)),
            directions,
            self._watch.notes,
            report.fewer_rows,
        )
        return report

    def _try_direction(
        self,
        filter: HalfInverse,
        attempts: Attempts,
        linearisation: Linearisation,
    ) -> Direction:
        trial, report = attempts(filter), linearisation.report(filter)
        flat = not trial.curvature > 0  # a loss that is linear in the outputs has no best step
        cauchy = 1.0 if flat else trial.slope / trial.curvature
        sizes = cauchy * RELATIVE_STEPS
        achieved = [trial.measure(float(size)) - trial.loss for size in sizes]
        trial.undo()
        predicted = 0.5 * sizes**2 * trial.curvature - sizes * trial.slope
        return Direction(
            filter.kappa, report.rcond, report.rank, cauchy, sizes, predicted, np.array(achieved)
        )
