r"""Sketches: few directions in the output space of each sample, in place of all outputs.

With orthonormal :math:`S_i` (k, D) per sample, the first row along the gradient :math:`g_i` of
the loss in the sample's outputs, the step is that of the rows :math:`S_i J_i` and the gradient
:math:`S_i g_i = (|g_i|, 0, \dots)`. So :math:`(S J)^T (S g) = J^T g` for every k, and k = D is the
step of all outputs; k = 1 keeps one row per sample, the gradient of its loss.

"auto" chooses k by the rows of the whole batch, whose cube a decomposition costs: as many as make
about 256 of them, and all outputs if those have no more than twice as many. Where a cut-off keeps
less than a quarter of the rows there are half as many from then on, down to 64; where it keeps more
than three quarters twice as many again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hig._step.objective import Objective
from hig._step.reports import StepReport
from hig._step.row_map import orthonormal_directions
from hig._torch.ranks import Ranks
from hig.errors import described

__all__ = ["Directions", "Sketch"]

# Of the gradient (B, D), float64: directions (B, k - 1, D) besides it.
Directions = Callable[[Tensor], Tensor]

# Seeds of steps are apart by this: an odd number, so that no two of 2 ** 63 are equal.
_STRIDE = 0x9E3779B97F4A7C15
# Rows of a batch with k = "auto" at first and at least, and steps from one look at the part of them
# that a cut-off keeps to the next.
_ROWS, _FEWEST, _LOOK = 256, 64, 16
# Smallest cut-off with rcond="auto": smaller singular values of few rows are those of chance.
_LEAST_CUT = 1e-4


@dataclass
class Sketch:
    """Draws new directions for every step.

    Args:
        count: k, directions of each sample; "auto" chooses; a function draws them.
        state: its memory, plain numbers: the seed of the run, and the number of steps; with "auto"
            the number of rows to choose.
    """

    count: int | Literal["auto"] | Directions
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Of the run, and not drawn, so that what the user draws afterwards stays the same.
        self.state.setdefault("seed", torch.initial_seed() % 2**62)
        self.state.setdefault("steps", 0)
        if self.count == "auto":
            self.state.setdefault("rows", _ROWS)

    def rows_of(self, samples: int, outputs: int) -> int:
        """Return k for a batch of so many samples, of all processes, and outputs of each.

        With a function, the least it can be.
        """
        if callable(self.count):
            return 1
        if self.count != "auto":
            return min(self.count, outputs)
        rows = self.state["rows"]
        if samples * outputs <= 2 * rows:
            return outputs
        return min(max(round(rows / samples), 1), outputs)

    def adapt(self, report: StepReport) -> None:
        """Adapt the number of rows of "auto" to the part that the cut-off of a step kept."""
        state = self.state
        if self.count != "auto" or not report.rcond or state["steps"] % _LOOK:
            return
        if report.fewer_rows is None or report.fewer_rows.exact:
            return
        kept = report.rank / min(report.rows, report.columns)
        if kept < 0.25 and report.fewer_rows.rows > 1:
            state["rows"] = max(state["rows"] // 2, _FEWEST)
        elif kept > 0.75:
            state["rows"] = min(state["rows"] * 2, _ROWS)

    def __call__(
        self, objective: Objective, counts: Sequence[int], ranks: Ranks | None
    ) -> Objective:
        """Return the objective with the rows of a sketch; itself if that has no fewer rows.

        Args:
            objective: the objective of the samples of this process.
            counts: samples of each process.
            ranks: the process ranks that step together, which draw what one process would.
        """
        prediction = objective.forward.prediction
        samples, outputs = len(prediction), prediction[0].numel()
        count = self.rows_of(sum(counts), outputs)
        if count >= outputs:
            return objective
        flat = objective.gradient.detach().reshape(samples, outputs)
        random = self._random(flat, count, counts, ranks)
        if callable(self.count):
            drawn = _checked(self.count(flat.double()), flat)
            random = torch.cat([random, drawn.mT], 2)
        directions = orthonormal_directions(flat, random).to(prediction.dtype)
        with torch.enable_grad():
            rows = (directions @ prediction.reshape(samples, outputs, 1)).squeeze(-1)
        return replace(objective.with_rows(rows, directions), least_cut=_LEAST_CUT)

    def _random(
        self, like: Tensor, count: int, counts: Sequence[int], ranks: Ranks | None
    ) -> Tensor:
        """Draw (B, D, k) normal numbers of the samples of this process, float64."""
        state, before = self.state, 0
        if ranks is not None:
            state["seed"] = ranks.whole_numbers(state["seed"])[0]
            before = sum(counts[: ranks.rank])
        generator = torch.Generator(like.device)
        generator.manual_seed((state["seed"] + _STRIDE * state["steps"]) % 2**63)
        state["steps"] += 1
        shape = sum(counts), like.shape[1], count
        drawn = torch.randn(shape, generator=generator, device=like.device, dtype=torch.float64)
        return drawn[before : before + len(like)]


def _checked(directions: Tensor, gradient: Tensor) -> Tensor:
    """Return the directions of a user's function, (B, m, D) float64, after checking them.

    Raises:
        ValueError: they have another shape, or are not finite.
    """
    samples, outputs = gradient.shape
    wanted = f"(batch, number, outputs) with ({samples}, at most {outputs - 1}, {outputs})"
    if not isinstance(directions, Tensor):
        raise TypeError(f"sketch must return a tensor {wanted}, got {described(directions)}")
    shape = tuple(directions.shape)
    if len(shape) != 3 or shape[::2] != (samples, outputs) or shape[1] >= outputs:
        raise ValueError(f"sketch must return {wanted}, got shape {shape}")
    if not bool(torch.isfinite(directions).all()):
        raise ValueError("sketch must return finite numbers, got NaN or Inf")
    return directions.detach().to(gradient.device, torch.float64)
