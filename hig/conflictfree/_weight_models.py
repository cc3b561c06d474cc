"""Weight models: ratios of the cosines between a direction and the gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hig.arguments import check_tensor

__all__ = ["EqualWeight", "WeightModel"]


class WeightModel:
    """Base class of the weight models: derived classes define ``get_weights``."""

    def get_weights(
        self,
        gradients: Tensor | None = None,
        losses: Sequence[Any] | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Weights of the losses, to which the cosines with their gradients will be proportional.

        Args:
            gradients: (m, P).
            losses: the m losses, if the operator was called with them.
            device: device of the gradients.

        Returns:
            (m,), any floating-point dtype, any device.

        Raises:
            NotImplementedError: in this base class.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define get_weights(gradients, losses, device); or use "
            "EqualWeight()"
        )


class EqualWeight(WeightModel):
    """Weight model with the same weight for every loss: the direction favours none."""

    def get_weights(
        self,
        gradients: Tensor | None = None,
        losses: Sequence[Any] | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return ones.

        Args:
            gradients: (m, P).
            losses: not used.
            device: device of the weights; that of the gradients if None.

        Returns:
            (m,), dtype of the gradients.

        Raises:
            TypeError: the gradients are not a real floating-point tensor.
            ValueError: there are no gradients, or they do not have two axes.
        """
        if gradients is None:
            raise ValueError("EqualWeight needs the gradients, got None; pass gradients=")
        check_tensor(gradients, "gradients", 2)
        return torch.ones(len(gradients), dtype=gradients.dtype, device=device or gradients.device)
