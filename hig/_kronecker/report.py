"""Report of one step with Kronecker factors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["KroneckerReport", "grouped", "listed"]

# How many names are written out.
SHOWN = 6


@dataclass
class KroneckerReport:
    """One step in numbers.

    Attributes:
        loss: the loss before the step.
        layers: number of layers that were preconditioned.
        others: number of parameters that Adam's step moved, next to those of the layers.
        step_norm: norm of the whole step per unit of learning rate.
        graft: factor from the preconditioned direction to the step, one per layer; all are equal
            where layers share their norm, and 1 without grafting.
        probed: whether the factors were updated.
        refreshed: whether their powers were.
        seconds: wall-clock per phase. On CUDA these are times of submission: kernels run on.
        left_to_adam: why each of the ``others`` is not part of a preconditioned layer, by the
            name of the parameter.
        remarks: layers whose factors describe a part of what their parameters do, and why.
    """

    loss: Tensor
    layers: int
    others: int
    step_norm: float
    graft: list[float]
    probed: bool
    refreshed: bool
    seconds: dict[str, float] = field(default_factory=dict)
    left_to_adam: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Sentences: parameters that Adam moved, with the reasons, then the remarks."""
        sentences = [*grouped(self.left_to_adam), *self.remarks]
        return (
            sentences
            if self.layers
            else ["no layer is preconditioned, the whole step is Adam's", *sentences]
        )

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
        return "; ".join([*parts, f"ms: {phases}", *self.notes])


def listed(names: Sequence[str]) -> str:
    """Some names in one line; of many the first few and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def grouped(left_to_adam: Mapping[str, str]) -> list[str]:
    """One sentence for each reason, with the names of all parameters that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_to_adam.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{listed(names)} left to Adam: {reason}" for reason, names in by_reason.items()]
