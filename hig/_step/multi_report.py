"""What a step for several losses tells about itself."""

from dataclasses import dataclass, field

from torch import Tensor

from hig._step.reports import StepReport

__all__ = ["MultiStepReport"]


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
