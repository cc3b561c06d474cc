"""Two losses of two numbers, in whose landscape the descent of their sum gets stuck."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from problems._constants import constant
from problems._problem import Batch, Settings, parameter, require_positive_numbers
from problems._several_losses import SeveralLosses

STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
# At the bottom of a valley the logarithm has no bound; this gives it one.
SMALLEST = 5e-6
# Of steps without data an epoch is a convention: as many as there are between two evaluations.
STEPS_PER_EPOCH = 100
# Figures show these.
CORNERS, GRID = (-11.0, 11.0), 121
FRONT = 101

METHODS = ("adam", "pcgrad", "imtlg", "lra", "config", "mpcgrad", "mimtlg", "mconfig")


class Position(nn.Module):
    """A network without inputs: its two weights, from ``start`` on, are its output."""

    def __init__(self, start: tuple[float, float]):
        super().__init__()
        self.position = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        """The position (1, 2)."""
        return self.position.unsqueeze(0)


@dataclass(frozen=True)
class Toy(SeveralLosses):
    r"""Descent of :math:`s L_1 + L_2` over the position :math:`(x, y)`, from one of five starts.

    Above, where y > 0, each loss falls towards a narrow valley of its own,

    .. math::
        L_{1,2} = c_\uparrow (6 + \log |\tfrac12 (\pm x + 7) - \tanh y|),

    and below, where y < 0, towards the bottom of a wide bowl of its own,

    .. math::
        L_{1,2} = c_\downarrow (\tfrac{1}{10} ((x \mp 7)^2 + \tfrac{1}{10} (y + 8)^2) - 20),

    with :math:`c_\uparrow = \tanh \tfrac12 y` above and 0 below,
    :math:`c_\downarrow = -\tanh \tfrac12 y` below and 0 above. The Pareto front joins the bottoms
    of the bowls. On the way there lie the valleys, where one gradient is much longer than the
    other and points across.

    Liu et al., *Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS 2021. A tenth of
    the first loss is taken in Liu, Chu, Thuerey, *ConFIG: Towards Conflict-free Training of Physics
    Informed Neural Networks*, ICLR 2025, as are the five starts.

    There is nothing random and nothing to generalise to: training and test loss are equal.

    Attributes:
        start: Which start, from 1 to 5.
        scale: s.
    """

    start: int = parameter(1, "which of the five starts, 1 to 5")
    scale: float = parameter(0.1, "what the first loss is multiplied with")

    name: ClassVar[str] = "toy"
    epochs: ClassVar[int | None] = 600
    # ReLoBRaLo and MinMax weight by the size of the losses, which are negative here; half-inverses
    # of the Jacobian of the position, the identity, are plain gradients.
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        # The step size is that of CAGrad's publication, the number of steps our own choice: as many
        # as ConFIG needs from the start that takes longest. Adam gets out of its trap with steps
        # ten times as long.
        dict.fromkeys(METHODS, Settings(batch_size=1, lr=1e-3))
    )

    def __post_init__(self):
        require_positive_numbers(self)
        if self.start > len(STARTS):
            raise ValueError(f"start must be from 1 to {len(STARTS)}, got {self.start}")

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the two losses."""
        return ("first", "second")

    def landscape(self, position: Tensor) -> Tensor:
        """Both losses, the first one scaled.

        Args:
            position: (..., 2), of any dtype and device.

        Returns:
            (..., 2).
        """
        x, y = position.unsqueeze(-2).unbind(-1)  # (..., 1)
        side = constant((1.0, -1.0), position.dtype, position.device)
        above = ((0.5 * (side * x + 7) - y.tanh()).abs().clamp_min(SMALLEST)).log() + 6
        below = ((x - 7 * side).square() + 0.1 * (y + 8).square()) / 10 - 20
        share = (0.5 * y).tanh()
        losses = share.clamp_min(0) * above + (-share).clamp_min(0) * below
        return losses * constant((self.scale, 1.0), position.dtype, position.device)

    def front(self, count: int = FRONT) -> Tensor:
        """The Pareto front: positions from which no loss falls unless the other one rises.

        Where the gradients of the unscaled losses, weighted w and 1 − w, cancel, x is 14 w − 7,
        since the shares of both bowls are the same function of y; what is left is an equation for
        y, solved by Newton's method.

        Args:
            count: Number of positions, even in x.

        Returns:
            (count, 2) float64, from the bottom of the second loss to that of the first.
        """
        w = torch.linspace(0, 1, count, dtype=torch.float64)
        x = 14 * w - 7
        bowls = 19.6 * w * (1 - w) - 20  # weighted, without the part of y
        y = torch.full_like(w, -8.0)
        for _ in range(20):
            share, bowl = -(0.5 * y).tanh(), bowls + 0.01 * (y + 8).square()
            slope = -0.5 * (1 - share.square())  # of the share
            residual = slope * bowl + 0.02 * share * (y + 8)
            curvature = slope * (share * bowl + 0.04 * (y + 8)) + 0.02 * share
            y = y - residual / curvature
        return torch.stack([x, y], -1)

    # -- the interface of a problem ----------------------------------------------------------------

    def network(self) -> Position:
        """The position, at its start."""
        return Position(STARTS[self.start - 1])

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Training and test data of zeros: one per step of an epoch, and one."""
        sizes = STEPS_PER_EPOCH, 1
        train, test = ({"nothing": torch.zeros(n, 1, dtype=torch.float64)} for n in sizes)
        return train, test

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """The position (1, 2), whatever the batch."""
        return network()

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The sum of both losses at a position (1, 2), a scalar."""
        return self.landscape(prediction).sum()

    def losses(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        """Both losses, scalars."""
        return list(self.landscape(network())[0])

    def single_loss(self, network: nn.Module, batch: Batch, index: int) -> Tensor:
        """One of the losses, a scalar."""
        return self.losses(network, batch)[index]

    def loss_pairs(self, network: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Each loss with the position (1, 2)."""
        position = network()
        return [(loss, position) for loss in self.landscape(position)[0]]

    def metrics(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The trajectory: ``position`` (2,), and both ``losses`` (2,) there."""
        position = network()[0]
        return {"position": position, "losses": self.landscape(position)}

    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray | list[str]]:
        """The landscape, for figures.

        Returns:
            ``x`` (n,) and ``y`` (n,) of a grid, ``landscape`` (n, n, 2) the losses at x along the
            first and y along the second axis, ``front`` (k, 2) the Pareto front; float32, with
            ``loss_names``.
        """
        axis = torch.linspace(*CORNERS, GRID, dtype=torch.float64)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
        arrays = {"x": axis, "y": axis, "landscape": self.landscape(grid), "front": self.front()}
        # The grid is in every file of a set of forty.
        return {
            **{name: array.float().numpy() for name, array in arrays.items()},
            "loss_names": list(self.loss_names),
        }
