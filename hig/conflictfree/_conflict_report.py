"""Report of a conflict-free direction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from hig.conflictfree._gradient_matrix import Combination

__all__ = ["ConflictReport"]


@dataclass(frozen=True)
class ConflictReport:
    """Cosines and lengths of a direction and of the gradients that it combines.

    Attributes:
        cosines: between the direction and the gradient of each loss; 0 if either is zero. All
            numbers are NaN if a gradient holds NaN or Inf.
        norm: length of the direction.
        gradient_norms: length of the gradient of each loss.
    """

    cosines: tuple[float, ...]
    norm: float
    gradient_norms: tuple[float, ...]

    @classmethod
    def of(cls, combination: Combination, factor: float, lengths: Sequence[float]) -> Self:
        """Report on ``factor`` times a combination of gradients of these lengths."""
        sign = (factor > 0) - (factor < 0)
        scale = sign / combination.norm if combination.norm else 0.0
        norm = abs(factor) * combination.norm
        cosines = tuple(scale * product for product in combination.products)
        return cls(cosines, norm, tuple(lengths))

    @classmethod
    def of_nothing(cls, losses: int) -> Self:
        """Report of gradients that are not finite, of so many losses: NaN for everything."""
        unknown = (float("nan"),) * losses
        return cls(unknown, float("nan"), unknown)

    @property
    def smallest_cosine(self) -> float:
        """The smallest cosine with a gradient that is not zero; negative means conflict.

        Zero if the direction, or every gradient, is zero.
        """
        cosines = [c for c, n in zip(self.cosines, self.gradient_norms, strict=True) if n]
        return min(cosines, default=0.0)

    def __str__(self) -> str:
        cosines = " ".join(f"{cosine:.3f}" for cosine in self.cosines)
        norms = " ".join(f"{norm:.3g}" for norm in self.gradient_norms)
        return f"cosines {cosines}; norm {self.norm:.3g}, of the gradients {norms}"
