"""What a step with Kronecker factors tells about itself."""

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["KroneckerReport"]


@dataclass
class KroneckerReport:
    """One step in numbers.

    Attributes:
        loss: the loss before the step.
        layers: number of layers that were preconditioned.
        others: number of parameters that Adam's step moved, beside those of the layers.
        step_norm: norm of the whole step per unit of learning rate.
        graft: factor from the preconditioned direction to the step, one per layer; all are equal
            where layers share their norm, and 1 without grafting.
        probed: whether the factors were updated.
        refreshed: whether their powers were.
        seconds: wall-clock per phase. On CUDA these are times of submission: kernels run on.
    """

    loss: Tensor
    layers: int
    others: int
    step_norm: float
    graft: list[float]
    probed: bool
    refreshed: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [
            f"loss {float(self.loss):.4g}",
            f"{self.layers} layers, {self.others} other parameters",
            f"step norm {self.step_norm:.3g} times the learning rate",
        ]
        if self.graft:
            least, most = min(self.graft), max(self.graft)
            several = f" to {most:.3g}" if most != least else ""
            parts.append(f"grafted by {least:.3g}{several}")
        if self.probed:
            parts.append("factors updated" + (", powers refreshed" if self.refreshed else ""))
        phases = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in self.seconds.items())
        return "; ".join([*parts, f"ms: {phases}"])
