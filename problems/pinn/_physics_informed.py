r"""Base class of the physics-informed problems.

A network is the solution itself: it maps coordinates to the unknowns of a differential equation and
is trained until it satisfies equation and conditions at random points.

Settings, and the comparison of methods, are those of Liu, Chu, Thuerey, *ConFIG: Towards
Conflict-free Training of Physics Informed Neural Networks*, ICLR 2025.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from problems._networks import dense_network
from problems._problem import Batch, parameter, require_positive_numbers, slices
from problems._several_losses import SeveralLosses
from problems.pinn._jets import Jet, jet
from problems.pinn._sampling import latin_hypercube, on_faces, weighted_choice

RESAMPLING = ("uniform", "residual")
CANDIDATES = 4  # per point chosen by residual


@dataclass(frozen=True)
class PhysicsInformed(SeveralLosses):
    r"""A differential equation on a box with conditions on its boundary.

    Points come in groups, ``"interior"`` and ``"boundary"``, with F residuals at each point, one
    per unknown. The loss of a group is the mean over its points of the sum of the squared
    residuals, and the loss of the problem the plain sum over the groups.

    A batch holds one tensor of points per group. Its size, and with it a batch size, is the number
    of *interior* points; the other groups keep their proportion to them. Every training step draws
    fresh points; the training data below serve the evaluation. The test data are the solution on a
    fixed grid, and the test loss is the mean squared error over its points and the unknowns.

    Methods of first order take `losses` or `single_loss`, which compute nothing in vain. Jacobian
    methods take `predict`: the residuals of all groups as rows of one matrix, scaled so that the
    loss is half the sum of their squares and a Gauss–Newton step of length 1 is the full step.

    Attributes:
        points_interior: Interior points of the published batch.
        points_boundary: Boundary points for so many interior ones.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        resampling: How the interior points of a step are chosen. ``"uniform"`` is a Latin
            hypercube. ``"residual"`` chooses, of four times as many, in proportion to their
            squared residual. That they are denser there is *not* made up for by weights: large
            residuals count more than in the loss of uniform points.
        time_budget: Training time in seconds; ours, the publication counts iterations.
        low: Lower corner of the domain; the coordinates of space come first.
        high: Upper corner.
        walls: Coordinates across which the domain has a boundary.
        coordinates: Names of the coordinates, the inputs of the network.
        unknowns: Names of the unknowns, the outputs of the network.
        derivatives: Along how many leading coordinates the equation has first and second
            derivatives.
    """

    points_interior: int = parameter(20000, "interior points of a published batch")
    points_boundary: int = parameter(1000, "boundary points for so many interior ones")
    width: int = parameter(50, "width of the hidden layers")
    depth: int = parameter(5, "number of hidden layers")
    resampling: str = parameter("uniform", "how interior points are chosen", RESAMPLING)
    time_budget: float = 300.0

    evaluate_by: ClassVar[Literal["epoch", "time"]] = "time"
    tested_by: ClassVar[str] = "mean squared error"
    examples: ClassVar[int] = 2**20  # the whole grid
    low: ClassVar[tuple[float, ...]]
    high: ClassVar[tuple[float, ...]]
    walls: ClassVar[tuple[int, ...]]
    coordinates: ClassVar[tuple[str, ...]]
    unknowns: ClassVar[tuple[str, ...]]
    derivatives: ClassVar[tuple[int, int]]

    def __post_init__(self):
        require_positive_numbers(self)
        if self.resampling not in RESAMPLING:
            raise ValueError(f"resampling must be one of {RESAMPLING}, got {self.resampling!r}")

    # -- what a problem adds -----------------------------------------------------------------------

    @abstractmethod
    def equation(self, at: Jet) -> Tensor:
        """Residuals (..., F) of the equation; value (..., F), derivatives as `derivatives` says."""

    @abstractmethod
    def prescribed(self, group: str, points: Tensor) -> Tensor:
        """Values of the unknowns (..., F) required at the points (..., coordinates)."""

    @abstractmethod
    def solution(self) -> tuple[Tensor, Tensor]:
        """The test grid (points, coordinates) and the solution on it (points, F), float64."""

    # -- groups of points --------------------------------------------------------------------------

    @property
    def loss_groups(self) -> Mapping[str, tuple[str, ...]]:
        """The losses by name, each with the groups of points that it adds up."""
        return {group: (group,) for group in self.group_sizes}

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses, in the order of `losses`."""
        return tuple(self.loss_groups)

    @property
    def group_sizes(self) -> Mapping[str, int]:
        """Points per group in the published batch, the interior first."""
        return {"interior": self.points_interior, "boundary": self.points_boundary}

    def draw(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random points of every group, a Latin hypercube each.

        Args:
            size: Interior points; the other groups keep their proportion, and at least one point.
            generator: CPU generator; its state alone decides the points.

        Returns:
            Points (count, ...) by group, float64 on the CPU.
        """
        share = size / self.points_interior
        return {
            group: self._draw_group(group, max(1, round(count * share)), generator)
            for group, count in self.group_sizes.items()
        }

    def _draw_group(self, group: str, count: int, generator: torch.Generator) -> Tensor:
        points = latin_hypercube(count, self.low, self.high, generator)
        if group == "boundary":
            return on_faces(points, self.low, self.high, self.walls)
        return points

    # -- residuals and losses ----------------------------------------------------------------------

    def residuals(self, network: nn.Module, group: str, points: Tensor) -> Tensor:
        """Residuals of one group, with no derivative computed that it does not need.

        Args:
            network: Maps coordinates (..., coordinates) to unknowns (..., F).
            group: A name in `group_sizes`.
            points: (count, coordinates), of the network's dtype and device.

        Returns:
            (count, F).
        """
        derivatives = self.derivatives if group == "interior" else (0, 0)
        return self._residuals_of(group, points, jet(network, points, *derivatives))

    def _residuals_of(self, group: str, points: Tensor, at: Jet) -> Tensor:
        if group == "interior":
            return self.equation(at)
        return at.value - self.prescribed(group, points)

    def losses(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        """All losses, scalars in the order of `loss_names`."""
        return [self.single_loss(network, batch, index) for index in range(len(self.loss_names))]

    def single_loss(self, network: nn.Module, batch: Batch, index: int) -> Tensor:
        """One of the losses, by its place in `loss_names`, for its own work alone."""
        groups = self.loss_groups[self.loss_names[index]]
        residuals = [self.residuals(network, group, batch[group]) for group in groups]
        return sum(found.square().sum() / len(found) for found in residuals)

    # -- rows for Jacobian methods -----------------------------------------------------------------

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Residuals (rows, F), group by group, scaled: the loss is half their sum of squares."""
        return torch.cat(self._scaled(network, batch))

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Half the sum of squares of the scaled residuals (rows, F): the sum of `losses`."""
        return 0.5 * prediction.square().sum()

    def loss_pairs(self, network: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Every loss with the rows of `predict`, which all of them are computed from.

        Returns:
            ``(loss, prediction)`` in the order of `loss_names`: a scalar and (rows, F), the same
            tensor each time.
        """
        rows = self._scaled(network, batch)
        prediction = torch.cat(rows)
        parts = dict(zip(self.group_sizes, prediction.split([len(r) for r in rows]), strict=True))
        return [
            (0.5 * sum(parts[group].square().sum() for group in groups), prediction)
            for groups in self.loss_groups.values()
        ]

    def _scaled(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        """Residuals (rows, F) of all groups; half their sum of squares is the loss."""
        found = self._jointly(network, batch)
        scales = [math.sqrt(2 / len(batch[group])) for group in self.group_sizes]
        return [scale * rows for scale, rows in zip(scales, found, strict=True)]

    def _jointly(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        """Residuals (rows, F) of all groups, propagated together: one sample axis for all.

        Conditions carry the derivatives that only the equation needs. They are few points, and
        with one axis for all rows a Jacobian can be taken layer by layer.
        """
        groups = tuple(self.group_sizes)
        points = torch.cat([batch[group] for group in groups])
        at = jet(network, points, *self.derivatives)
        parts = zip(*(part.split([len(batch[g]) for g in groups]) for part in at), strict=True)
        return [
            self._residuals_of(group, batch[group], Jet(*part))
            for group, part in zip(groups, parts, strict=True)
        ]

    # -- the interface of a problem ----------------------------------------------------------------

    def network(self) -> nn.Sequential:
        """Freshly initialised tanh network from coordinates to unknowns.

        Weights are Xavier-normal and biases 0.001, as published.
        """
        widths = [len(self.coordinates), *[self.width] * self.depth, len(self.unknowns)]
        return dense_network(widths, nn.Tanh, nn.init.xavier_normal_, bias=1e-3)

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Points for the training loss, and the solution for the test loss.

        Returns:
            Training set: the points of a published batch by group, drawn uniformly. Test set:
            ``points`` (points, coordinates) and ``solution`` (points, F). Float64.
        """
        points, solution = self.solution()
        return self.draw(self.points_interior, generator), {"points": points, "solution": solution}

    def batches(self, train: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches without end, each of points not seen before.

        Args:
            train: Training data of `data`; only dtype and device count.
            size: Interior points per batch.
            generator: CPU generator; its state alone decides the points.

        Yields:
            Points by group. For resampling by residual the interior holds four times ``size``
            candidates, and ``luck`` a random number for each; see `focus`.
        """
        while True:
            batch = self.draw(size, generator)
            if self.resampling == "residual":
                count = CANDIDATES * size
                batch["interior"] = self._draw_group("interior", count, generator)
                luck = torch.empty(count, dtype=torch.float64)
                batch["luck"] = luck.exponential_(generator=generator)
            yield {name: values.to(train["interior"]) for name, values in batch.items()}

    @torch.no_grad()
    def focus(self, network: nn.Module, batch: Batch) -> Batch:
        """Choose the interior points of a step by residual, if so wanted."""
        if "luck" not in batch:
            return batch
        points = batch["interior"]
        weights = self.residuals(network, "interior", points).square().sum(-1)
        chosen = weighted_choice(weights, batch["luck"], len(points) // CANDIDATES)
        return {group: batch[group] for group in self.group_sizes} | {"interior": points[chosen]}

    @torch.no_grad()
    def data_loss(self, network: nn.Module, data: Batch, chunk: int) -> float:
        """Sum of the losses on training data, mean squared error on test data."""
        if "solution" not in data:
            return sum(loss.double().item() for loss in self.losses(network, data))
        error = sum(
            (network(part["points"]) - part["solution"]).double().square().sum().item()
            for part in slices(data, chunk)
        )
        return error / data["solution"].numel()

    @torch.no_grad()
    def metrics(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Errors of each unknown on the test grid.

        Returns:
            ``mse``, mean squared error, and ``relative_error``, length of the error by that of
            the solution; both (F,).
        """
        solution = batch["solution"].double()
        error = (network(batch["points"]).double() - solution).square()
        relative = error.sum(0).sqrt() / solution.square().sum(0).sqrt()
        return {"mse": error.mean(0), "relative_error": relative}

    @torch.no_grad()
    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray | list[str]]:
        """Answers of the network next to the solution, for figures.

        Returns:
            ``points`` (k, coordinates), ``prediction`` and ``solution`` (k, F), float64, with the
            names of ``coordinates`` and ``unknowns``.
        """
        arrays = {
            "points": batch["points"],
            "prediction": network(batch["points"]),
            "solution": batch["solution"],
        }
        return {
            **{name: array.double().cpu().numpy() for name, array in arrays.items()},
            "coordinates": list(self.coordinates),
            "unknowns": list(self.unknowns),
        }
