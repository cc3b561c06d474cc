r"""Sketches: few directions in the output space of each sample, in place of all outputs.

With orthonormal :math:`S_i` (k, D) per sample, the first row along the gradient :math:`g_i` of
the loss in the sample's outputs, the step is that of the rows :math:`S_i J_i` and the gradient
:math:`S_i g_i = (|g_i|, 0, \dots)`. So :math:`(S J)^T (S g) = J^T g` for every k, and k = D is the
step of all outputs; k = 1 keeps one row per sample, the gradient of its loss.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hig._step.objective import Objective
from hig._step.row_map import orthonormal_directions
from hig._torch.ranks import Ranks

__all__ = ["Sketch"]

# Seeds of steps are apart by this: an odd number, so that no two of 2 ** 63 are equal.
_STRIDE = 0x9E3779B97F4A7C15


@dataclass
class Sketch:
    """Draws new directions for every step.

    Args:
        count: k, directions of each sample.
        state: its memory, plain numbers: the seed of the run, and the number of steps.
    """

    count: int
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Of the run, and not drawn, so that what the user draws afterwards stays the same.
        self.state.setdefault("seed", torch.initial_seed() % 2**62)
        self.state.setdefault("steps", 0)

    def __call__(self, objective: Objective, ranks: Ranks | None = None) -> Objective:
        """Return the objective with the rows of a sketch; itself if that has no fewer rows.

        Args:
            objective: the objective of the samples of this process.
            ranks: the process ranks that step together, which draw what one process would.
        """
        prediction = objective.forward.prediction
        samples, outputs = len(prediction), prediction[0].numel()
        if self.count >= outputs:
            return objective
        flat = objective.gradient.detach().reshape(samples, outputs)
        random = self._random(flat, ranks)
        directions = orthonormal_directions(flat, random).to(prediction.dtype)
        with torch.enable_grad():
            rows = (directions @ prediction.reshape(samples, outputs, 1)).squeeze(-1)
        return objective.with_rows(rows, directions)

    def _random(self, like: Tensor, ranks: Ranks | None) -> Tensor:
        """Draw (B, D, k) normal numbers of the samples of this process, float64."""
        state = self.state
        before, total = 0, len(like)
        if ranks is not None:
            state["seed"] = ranks.whole_numbers(state["seed"])[0]
            counts = ranks.whole_numbers(len(like))
            before, total = sum(counts[: ranks.rank]), sum(counts)
        generator = torch.Generator(like.device)
        generator.manual_seed((state["seed"] + _STRIDE * state["steps"]) % 2**63)
        state["steps"] += 1
        shape = total, like.shape[1], self.count
        drawn = torch.randn(shape, generator=generator, device=like.device, dtype=torch.float64)
        return drawn[before : before + len(like)]
