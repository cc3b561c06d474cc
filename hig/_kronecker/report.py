"""Report of a Kronecker step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hig._torch.ranks import Communication

__all__ = ["KroneckerReport", "grouped", "listed"]

# Number of names that are written out.
SHOWN = 6


@dataclass
class KroneckerReport:
    """Numbers and reasons of one step of :class:`hig.KroneckerHIG`.

    Attributes:
        loss: the loss before the step.
        layers: number of layers that were preconditioned.
        others: number of remaining parameters, updated by Adam.
        step_norm: norm of the whole step per unit of learning rate.
        graft: factor from the preconditioned direction to the step, one per layer; all are equal
            with global grafting, and 1 without grafting.
        probed: whether the factors were updated.
        refreshed: whether their powers were updated.
        seconds: wall-clock time per phase. On CUDA this is the time of submission: kernels may
            still be running.
        left_to_adam: why each of the ``others`` is not part of a preconditioned layer, by the
            name of the parameter.
        remarks: layers on whose parameters the prediction also depends in other ways.
        communication: communication of this process rank in a distributed step, else None.
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
    communication: Communication | None = None

    @property
    def notes(self) -> list[str]:
        """Sentences on the parameters that Adam updated, with the reasons, then the remarks."""
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
        parts.append(f"ms: {phases}")
        if self.communication is not None:
            parts.append(str(self.communication))
        return "; ".join([*parts, *self.notes])


def listed(names: Sequence[str]) -> str:
    """Join names in one line; of many, the first few and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def grouped(left_to_adam: Mapping[str, str]) -> list[str]:
    """Return one sentence for each reason, with the names of its parameters."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_to_adam.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{listed(names)} left to Adam: {reason}" for reason, names in by_reason.items()]
