"""Physics-informed problems in time."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from problems._problem import parameter
from problems.pinn._physics_informed import PhysicsInformed


@dataclass(frozen=True)
class Evolution(PhysicsInformed):
    """A physics-informed problem with time as its last coordinate, and initial conditions.

    Attributes:
        points_initial: Initial points for so many interior ones.
        loss_count: 3 for a loss per group; 2 for the interior and the sum of the two conditions.
    """

    points_initial: int = parameter(500, "initial points for so many interior ones")
    loss_count: int = parameter(3, "losses: 3, or 2 with boundary and initial ones added up")

    def __post_init__(self):
        super().__post_init__()
        if self.loss_count not in (2, 3):
            raise ValueError(
                f"loss_count must be 2 or 3, got {self.loss_count}; 3 is a loss per group"
            )

    @property
    def group_sizes(self) -> Mapping[str, int]:
        """Points per group in the published batch, the interior first."""
        return {**super().group_sizes, "initial": self.points_initial}

    @property
    def loss_groups(self) -> Mapping[str, tuple[str, ...]]:
        """The losses by name, each with the groups of points that it adds up."""
        if self.loss_count == 3:
            return super().loss_groups
        return {"interior": ("interior",), "conditions": ("boundary", "initial")}

    def _draw_group(self, group: str, count: int, generator: torch.Generator) -> Tensor:
        points = super()._draw_group(group, count, generator)
        if group == "initial":
            points[:, -1] = self.low[-1]
        return points
