r"""Length models: how long a direction becomes, once it is found.

All that are defined here are sums over the losses of some length times the cosine between the
direction and the gradient of that loss. A gradient that is zero is left out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hig.arguments import check_count
from hig.conflictfree._angles import unit_vector

__all__ = [
    "CosineLength",
    "LengthModel",
    "ProjectionLength",
    "TrackArithmeticAverage",
    "TrackGeometricAverage",
    "TrackHarmonicAverage",
    "TrackMaximum",
    "TrackMinimum",
    "TrackSpecific",
]


class LengthModel:
    """Base of the length models: derive and write ``get_length``, or ``rescale_length``."""

    def get_length(
        self,
        target_vector: Tensor | None = None,
        unit_target_vector: Tensor | None = None,
        gradients: Tensor | None = None,
        losses: Sequence[Any] | None = None,
    ) -> Tensor | float:
        """Length that the direction is to have.

        Args:
            target_vector: the direction, (P,), of any length; from ConFIG, :math:`U^+ w`, whose
                products with the unit gradients are the weights.
            unit_target_vector: the direction, (P,), of length 1.
            gradients: (m, P).
            losses: the m losses, where the operator was given them.

        Raises:
            NotImplementedError: in this base class.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define get_length(target_vector, unit_target_vector, "
            "gradients, losses); or use ProjectionLength()"
        )

    def rescale_length(
        self,
        target_vector: Tensor,
        gradients: Tensor | None = None,
        losses: Sequence[Any] | None = None,
    ) -> Tensor:
        """The direction with the length that ``get_length`` gives it.

        Args:
            target_vector: the direction, (P,), of any length.
            gradients: (m, P).
            losses: the m losses.

        Returns:
            (P,); zero for a zero vector.
        """
        unit = unit_vector(target_vector)
        length = self.get_length(
            target_vector=target_vector,
            unit_target_vector=unit,
            gradients=gradients,
            losses=losses,
        )
        return length * unit


class CosineLength(LengthModel):
    """A length that depends on the lengths of the gradients and their cosines alone.

    Derive and write ``length``: an operator calls that, on m numbers, and no vector of P entries
    is touched.
    """

    def length(self, norms: Tensor, cosines: Tensor) -> Tensor:
        """Length of the direction.

        Args:
            norms: lengths of the gradients, (m,) float64.
            cosines: between the direction and the gradients, (m,) float64.

        Raises:
            NotImplementedError: in this base class.
        """
        raise NotImplementedError(f"{type(self).__name__} must define length(norms, cosines)")

    def get_length(
        self,
        target_vector: Tensor | None = None,
        unit_target_vector: Tensor | None = None,
        gradients: Tensor | None = None,
        losses: Sequence[Any] | None = None,
    ) -> Tensor:
        """Length that the direction is to have.

        Args:
            target_vector: the direction, (P,), of any length; or
            unit_target_vector: the same of length 1.
            gradients: (m, P).
            losses: not used.

        Returns:
            A scalar, dtype and device of the gradients.

        Raises:
            ValueError: without gradients, or without a direction.
        """
        norms, cosines = self._measured(target_vector, unit_target_vector, gradients)
        length = self.length(norms, cosines)
        return length if gradients is None else length.to(gradients.dtype)

    def depends_on_length(self) -> bool:
        """Whether ``get_length`` computes nothing but ``length`` does."""
        return type(self).get_length is CosineLength.get_length

    def _measured(
        self, target_vector: Tensor | None, unit: Tensor | None, gradients: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Lengths of the gradients and their cosines with the direction, (m,) float64 each."""
        if gradients is None:
            raise ValueError(f"{type(self).__name__} needs the gradients, got None")
        if unit is None:
            if target_vector is None:
                raise ValueError(
                    f"{type(self).__name__} needs target_vector or unit_target_vector, got neither"
                )
            unit = unit_vector(target_vector)
        rows = gradients.detach().double()
        norms = torch.linalg.vector_norm(rows, dim=1)
        safe = torch.where(norms > 0, norms, 1.0)
        return norms, (rows / safe.unsqueeze(1)) @ unit.double()


class ProjectionLength(CosineLength):
    r"""Sum of the projections: :math:`\sum_i g_i \cdot u`, u the unit direction.

    Liu, Chu, Thuerey, ICLR 2025, arXiv 2408.11104, equation 3.
    """

    def length(self, norms: Tensor, cosines: Tensor) -> Tensor:
        """See :meth:`CosineLength.length`."""
        return norms @ cosines


class TrackedLength(CosineLength):
    """Sum of the projections of gradients that were given one common length before.

    Derive and write ``_tracked_value``.
    """

    def length(self, norms: Tensor, cosines: Tensor) -> Tensor:
        """See :meth:`CosineLength.length`."""
        if not bool((norms > 0).any()):
            return norms.new_zeros(())
        return cosines.sum() * self._tracked_value(norms)

    def get_length(
        self,
        target_vector: Tensor | None = None,
        unit_target_vector: Tensor | None = None,
        gradients: Tensor | None = None,
        losses: Sequence[Any] | None = None,
    ) -> Tensor:
        """See :meth:`CosineLength.get_length`."""
        if self.depends_on_length() or gradients is None:
            return super().get_length(target_vector, unit_target_vector, gradients, losses)
        norms, cosines = self._measured(target_vector, unit_target_vector, gradients)
        # One that a user has written combines them with tensors of the type of the gradients.
        tracked = self._tracked_value(norms.to(gradients.dtype))
        return (cosines.sum() * tracked).to(gradients.dtype)

    def depends_on_length(self) -> bool:
        """See :meth:`CosineLength.depends_on_length`."""
        model = type(self)
        standard = (
            model._tracked_value.__module__ == __name__ or model.length is not TrackedLength.length
        )
        return model.get_length is TrackedLength.get_length and standard

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        """The common length, from those of all gradients; at least one is positive."""
        raise NotImplementedError(f"{type(self).__name__} must define _tracked_value(grad_norms)")


class TrackMinimum(TrackedLength):
    """The common length is that of the shortest gradient."""

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        return _positive(grad_norms).min()


class TrackMaximum(TrackedLength):
    """The common length is that of the longest gradient."""

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        return grad_norms.max()


class TrackHarmonicAverage(TrackedLength):
    """The common length is the harmonic mean: long gradients hardly count."""

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        return 1 / _positive(grad_norms).reciprocal().mean()


class TrackArithmeticAverage(TrackedLength):
    """The common length is the mean."""

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        return _positive(grad_norms).mean()


class TrackGeometricAverage(TrackedLength):
    """The common length is the geometric mean."""

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        # Through logarithms: the product of many lengths leaves the range of floating point.
        return _positive(grad_norms).log().mean().exp()


class TrackSpecific(TrackedLength):
    """The common length is that of one gradient; zero where that one is zero.

    Args:
        track_id: number of its loss; negative numbers count from the last.

    Raises:
        TypeError: it is no whole number.
    """

    def __init__(self, track_id: int):
        self.track_id = check_count(track_id, "track_id", "give that of a loss", least=None)

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        if not -len(grad_norms) <= self.track_id < len(grad_norms):
            raise ValueError(
                f"losses count from 0 to {len(grad_norms) - 1}, got TrackSpecific({self.track_id});"
                " give the number of one of them"
            )
        return grad_norms[self.track_id]


def _positive(norms: Tensor) -> Tensor:
    return norms[norms > 0]
