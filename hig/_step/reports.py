"""Reports of one optimisation step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hig._torch.ranks import Communication

__all__ = ["MultiStepReport", "StepReport"]

# Of a Gram matrix whose decomposition takes longer than a hundred products with the Jacobian.
LARGE_SIDE = 1024


@dataclass
class StepReport:
    """One step in numbers. Tensors stay on the device until they are asked for.

    Attributes:
        loss: the loss before the step.
        engine: "layerwise", "rows", "products", or two joined by "+".
        route: "row_gram" (J Jᵀ), "column_gram" (Jᵀ J), "svd" or "lanczos".
        rows: n, outputs of all samples together.
        columns: P, parameters the prediction depends on.
        spectrum: gives the singular values.
        rcond: relative cut-off in force, never below what the route resolves; 0 where nothing is
            cut.
        step_size: the factor of the direction that was applied, learning rate included; None
            where no step was taken (``record``).
        gain_ratio: achieved over predicted decrease of the loss, where it was measured.
        damping: damping of the next step (Levenberg-Marquardt), else None.
        error_estimate: estimated relative error of the direction, at most 1; None where it is
            exact up to rounding, as all routes but "lanczos" are.
        seconds: wall-clock per phase. On CUDA these are times of submission: kernels run on.
        notes: what was done differently and why, in words.
        dtype: precision in which the Jacobian was computed.
        communication: what this process exchanged with others that took the same step, else None.
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

    @cached_property
    def singular_values(self) -> Tensor:
        """(min(n, P),) float64, descending. Route "lanczos" has those that it found, one per step.

        A damped step computes them when they are first asked for, which can be done until the next
        step of its optimizer begins; they stay in the report from then on.

        Raises:
            ValueError: it is too late.
        """
        return self.spectrum()

    @property
    def rank(self) -> int:
        """Number of singular values strictly above the cut-off; of all where nothing is cut."""
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

    def _hints(self) -> list[str]:
        """What another setting would do better, judging by the spectrum."""
        side, rank = min(self.rows, self.columns), self.rank
        hints: list[str] = []
        if not self.rcond or self.route == "lanczos":
            return hints
        if self.route != "svd" and side >= LARGE_SIDE and 8 * rank <= side:
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
    r"""One step for several losses in numbers.

    Attributes:
        losses: (m,), before the step.
        parts: the report of each joint Jacobian: of one where the losses share their prediction,
            else one per loss; without step size and gain ratio.
        cosines: (m,) float64, between the combined direction and the half-inverse direction of
            each loss, as the operator sees them; zero where one of them is zero.
        slopes: (m,) float64, :math:`g_i \cdot J_i d`: by how much a short step lowers each
            loss, per unit of step size. Negative where it raises that loss.
        seconds: wall-clock per phase, all losses together.
        step_size: the factor of the combined direction that was applied.
        gain_ratio: achieved over predicted decrease of the sum of the losses, where measured.
    """

    losses: Tensor
    parts: list[StepReport]
    cosines: Tensor
    slopes: Tensor
    seconds: dict[str, float] = field(default_factory=dict)
    step_size: float | None = None
    gain_ratio: float | None = None

    @property
    def loss(self) -> Tensor:
        """The sum of the losses before the step."""
        return self.losses.sum()

    @property
    def smallest_cosine(self) -> float:
        """Positive where the combined direction conflicts with no loss's own."""
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
        notes = [note for part in self.parts for note in part.notes]
        return "; ".join([*text, f"ms: {phases}", *notes])
