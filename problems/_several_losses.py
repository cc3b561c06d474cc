"""Base class of a problem with several losses."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from problems._problem import Batch, Problem


class SeveralLosses(Problem):
    """A problem whose loss is the plain sum of several, which may be in one another's way."""

    @property
    @abstractmethod
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses, in the order of `losses`."""

    @abstractmethod
    def losses(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        """All losses, scalars in the order of `loss_names`."""

    @abstractmethod
    def single_loss(self, network: nn.Module, batch: Batch, index: int) -> Tensor:
        """The loss at a place in `loss_names`, a scalar, for its own work alone."""

    @abstractmethod
    def loss_pairs(self, network: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Every loss with the outputs (rows, ...) that it was computed from.

        One tensor of outputs for all losses, where that can be: see `hig.MultiHIG`.
        """

    def batch_loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The sum of `losses`, computed as they are."""
        return torch.stack(self.losses(network, batch)).sum()
