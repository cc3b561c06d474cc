r"""Length models: the length of a direction, given its angles with the gradients.

Each model here is a sum over the losses of some length times the cosine between the direction and
the gradient of that loss. Zero gradients are left out.
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
    """Base class of the length models: derived classes define ``get_length``."""

    def get_length(
        self,
        target_vector: Tensor | None = None,
        unit_target_vector: Tensor | None = None,
        gradients: Tensor | None = None,
        losses: Sequence[Any] | None = None,
    ) -> Tensor | float:
        """Compute the length of the direction.

        Args:
            target_vector: the direction, (P,), of any length; from ConFIG, :math:`U^+ w`, whose
                products with the unit gradients are the weights.
            unit_target_vector: the direction, (P,), of length 1.
            gradients: (m, P).
            losses: the m losses, if the operator was called with them.

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
        """Return the direction with the length from ``get_length``.

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
    """Base class of lengths that depend only on the lengths of the gradients and their cosines.

    Derived classes define ``length``. An operator calls it on m numbers, without forming a
    vector of P entries.
    """

    def length(self, norms: Tensor, cosines: Tensor) -> Tensor:
        """Compute the length of the direction.

        Args:
            norms: lengths of the gradients, (m,) float64.
            cosines: cosines between the direction and the gradients, (m,) float64.

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
        """Compute the length of the direction, see :meth:`LengthModel.get_length`.

        One of ``target_vector`` and ``unit_target_vector`` suffices; ``losses`` are not used.

        Returns:
            A scalar, dtype and device of the gradients.

        Raises:
            ValueError: the gradients or the direction are missing.
        """
        norms, cosines = self._measured(target_vector, unit_target_vector, gradients)
        length = self.length(norms, cosines)
        return length if gradients is None else length.to(gradients.dtype)

    def depends_on_length(self) -> bool:
        """Return whether ``get_length`` is the one of this class, computed by ``length``."""
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
    r"""Length model :math:`\sum_i g_i \cdot u`, the sum of the projections; u is the direction.

    Liu, Chu, Thuerey, ICLR 2025, arXiv 2408.11104, equation 3.
    """

    def length(self, norms: Tensor, cosines: Tensor) -> Tensor:
        """See :meth:`CosineLength.length`."""
        return norms @ cosines


class TrackedLength(CosineLength):
    """Base class of length models that scale all gradients to one length and sum the projections.

    Derived classes define ``_tracked_value``, the common length.
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
        # A user-defined `_tracked_value` may combine them with tensors of the gradients' dtype.
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
        """Compute the common length from those of all gradients, of which one is positive."""
        raise NotImplementedError(f"{type(self).__name__} must define _tracked_value(grad_norms)")


class TrackMinimum(TrackedLength):
    """Length model with the length of the shortest gradient as common length."""

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        return _positive(grad_norms).min()


class TrackMaximum(TrackedLength):
    """Length model with the length of the longest gradient as common length."""

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        return grad_norms.max()


class TrackHarmonicAverage(TrackedLength):
    """Length model with the harmonic mean as common length: long gradients hardly count."""

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        return 1 / _positive(grad_norms).reciprocal().mean()


class TrackArithmeticAverage(TrackedLength):
    """Length model with the arithmetic mean as common length."""

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        return _positive(grad_norms).mean()


class TrackGeometricAverage(TrackedLength):
    """Length model with the geometric mean as common length."""

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        # By logarithms: the product of many lengths over- or underflows.
        return _positive(grad_norms).log().mean().exp()


class TrackSpecific(TrackedLength):
    """Length model with the length of one gradient as common length; zero if that one is zero.

    Args:
        track_id: number of its loss; negative numbers count from the last.

    Raises:
        TypeError: it is not an integer.
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
