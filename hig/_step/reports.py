"""Reports of one optimisation step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hig._step.row_map import FewerRows
from hig._torch.ranks import Communication

__all__ = ["MultiStepReport", "StepReport"]

# Side of a Gram matrix whose decomposition takes longer than a hundred products with the Jacobian.
LARGE_SIDE = 1024
# Rows of a batch, and of each sample, from which on a sketch costs far less.
MANY_ROWS, MANY_OUTPUTS = 512, 4


@dataclass
class StepReport:
    """Report of one step. Tensors stay on the device until they are accessed.

    Attributes:
        loss: the loss before the step.
        engine: "layerwise", "rows", "products", or two joined by "+".
        route: "row_gram" (J Jᵀ), "column_gram" (Jᵀ J), "svd" or "lanczos".
        rows: n, outputs of all samples together, unless there are fewer rows.
        columns: P, parameters the prediction depends on.
        spectrum: function that returns the singular values.
        rcond: relative cut-off in force, never below the resolution of the route; 0 if nothing is
            cut.
        step_size: the factor of the direction that was applied, learning rate included; None
            if no step was taken (``record``).
        gain_ratio: achieved over predicted decrease of the loss, if it was measured.
        damping: damping of the next step (Levenberg-Marquardt, Gauss-Newton with "trust"), else
            None.
        error_estimate: estimated relative error of the direction, at most 1; None if it is exact
            up to rounding, as with all routes but "lanczos".
        seconds: wall-clock per phase. On CUDA these are times of submission: kernels run on.
        notes: deviations and their reasons, in words.
        dtype: precision in which the Jacobian was computed.
        communication: communication of this process rank in a distributed step, else None.
        fewer_rows: counts of samples, rows of each and its outputs, if there are fewer rows than
            outputs: those of the controls, or of a sketch; else None.
        samples: B, of all processes together; 0 if it is not known.
    """

    loss: Tensor
    engine: str
    route: str
    rows: int
    columns: int
    spectrum: Callable[[], Tensor]
    rcond: float
    step_size: float | None = None
    gain_ratio: float | None = None
    damping: float | None = None
    error_estimate: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    dtype: torch.dtype = torch.float64
    communication: Communication | None = None
    fewer_rows: FewerRows | None = None
    samples: int = 0

    @cached_property
    def singular_values(self) -> Tensor:
        """Singular values (min(n, P),) float64, descending; route "lanczos" has one per step.

        A damped step computes them on first access, which is possible until the next step of its
        optimizer begins; they stay in the report from then on.

        Raises:
            ValueError: the next step has begun.
        """
        return self.spectrum()

    @property
    def rank(self) -> int:
        """Number of singular values strictly above the cut-off; all of them if nothing is cut."""
        if not self.rcond:
            return min(self.rows, self.columns)
        return int((self.singular_values > self.rcond * self.singular_values.max()).sum())

    def __str__(self) -> str:
        parts = [
            f"loss {float(self.loss):.4g}",
            f"rank {self.rank} of {min(self.rows, self.columns)} "
            f"(J {self.rows} x {self.columns}, rcond {self.rcond:.1e})",
            f"engine {self.engine}, route {self.route}",
        ]
        if self.fewer_rows is not None:
            parts.append(f"rows {self.rows} = {self.fewer_rows}")
        if self.step_size is not None:
            parts.append(f"step size {self.step_size:.3g}")
        if self.gain_ratio is not None:
            parts.append(f"gain ratio {self.gain_ratio:.2f}")
        if self.damping is not None:
            parts.append(f"damping {self.damping:.2e}")
        if self.error_estimate is not None:
            parts.append(f"error about {self.error_estimate:.1e}")
        phases = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in self.seconds.items())
        parts.append(f"ms: {phases}")
        if self.communication is not None:
            parts.append(str(self.communication))
        return "; ".join(parts + self.notes + self._hints())

    def _part_of(self, phase: str) -> float:
        """Return the part of a phase in the time of the step."""
        return self.seconds.get(phase, 0.0) / (sum(self.seconds.values()) or 1.0)

    def _hints(self) -> list[str]:
        """Return advice on settings, judging by the spectrum and by where the time went."""
        side, rank = min(self.rows, self.columns), self.rank
        hints: list[str] = []
        if self.fewer_rows is None and self.rows > max(MANY_ROWS, MANY_OUTPUTS * self.samples):
            part = (
                self._part_of("jacobian") + self._part_of("gram") + self._part_of("decomposition")
            )
            if part > 0.5 and self.samples:
                hints.append(
                    f"{part:.0%} of the time went into {self.rows // self.samples} rows of each "
                    "sample: sketch='auto' takes few of them, and hig.recommend compares"
                )
        if not self.rcond or self.route == "lanczos":
            return hints
        long = self._part_of("decomposition") > 0.5
        if self.route != "svd" and side >= LARGE_SIDE and 8 * rank <= side and long:
            hints.append("few singular values of many are kept: method='lanczos' finds them faster")
        values = self.singular_values
        if rank <= 1 < side and bool(values[0] > 0):
            hints.append("nearly everything is cut: try a smaller rcond, or rcond='auto'")
        eps = torch.finfo(self.dtype).eps
        kept = values[max(rank, 1) - 1]
        if self.rcond < eps and bool(kept < eps * values[0]):
            hints.append(
                "singular values are kept that may be rounding alone: rcond='auto' cuts them"
            )
        return hints


@dataclass
class MultiStepReport:
    r"""Report of one step for several losses.

    Attributes:
        losses: (m,), before the step.
        parts: the report of each joint Jacobian: a single one if the losses share their
            prediction, else one per loss; without step size and gain ratio.
        cosines: (m,) float64, between the combined direction and the half-inverse direction of
            each loss, in the inner product of the operator; zero if one of them is zero.
        slopes: (m,) float64, :math:`g_i \cdot J_i d`: decrease of each loss in a short step, per
            unit of step size. Negative if it raises that loss.
        seconds: wall-clock per phase, all losses together.
        step_size: the factor of the combined direction that was applied.
        gain_ratio: achieved over predicted decrease of the sum of the losses, if measured.
        notes: deviations of the step; those of each Jacobian are in ``parts``.
    """

    losses: Tensor
    parts: list[StepReport]
    cosines: Tensor
    slopes: Tensor
    seconds: dict[str, float] = field(default_factory=dict)
    step_size: float | None = None
    gain_ratio: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def loss(self) -> Tensor:
        """Sum of the losses before the step."""
        return self.losses.sum()

    @property
    def communication(self) -> Communication | None:
        """Communication of this process rank in a distributed step, else None."""
        return self.parts[0].communication

    @property
    def smallest_cosine(self) -> float:
        """Smallest cosine; positive if the combined direction conflicts with no loss."""
        return float(self.cosines.min())

    def __str__(self) -> str:
        losses = ", ".join(f"{loss:.4g}" for loss in self.losses.tolist())
        ranks = ", ".join(f"{part.rank} of {min(part.rows, part.columns)}" for part in self.parts)
        text = [
            f"losses {losses}",
            f"ranks {ranks}",
            f"smallest cosine {self.smallest_cosine:.3g}",
            f"smallest slope {float(self.slopes.min()):.3g}",
        ]
        raised = [str(index) for index, slope in enumerate(self.slopes.tolist()) if slope < 0]
        if raised:
            text.append(f"a short step raises loss {', '.join(raised)}")
        if self.step_size is not None:
            text.append(f"step size {self.step_size:.3g}")
        if self.gain_ratio is not None:
            text.append(f"gain ratio {self.gain_ratio:.2f}")
        phases = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in self.seconds.items())
        text.append(f"ms: {phases}")
        if self.communication is not None:
            text.append(str(self.communication))
        notes = [note for part in self.parts for note in part.notes]
        return "; ".join([*text, *notes, *self.notes])
