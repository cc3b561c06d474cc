"""Control of smoke in a closed box by forces on the incompressible air that carries it.

A puff of smoke rises by its buoyancy; a few large eddies of force, chosen for each time step,
shall make its density at the end that of a target. The air follows the incompressible Euler
equations. A force moves the smoke through the air alone, the last ones hardly any more, and small
eddies undo one another, which makes the problem badly conditioned.

Schnell, Holl, Thuerey, *Half-Inverse Gradients for Physical Deep Learning*, ICLR 2022, name
Navier–Stokes as what should come next; nothing is published on it. Controlled smoke is a task of
Holl, Koltun, Thuerey, *Learning to Control PDEs with Differentiable Physics*, ICLR 2020.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from problems._fields import (
    Box,
    CenteredGrid,
    Field,
    StaggeredGrid,
    advect,
    extrapolation,
    fluid,
    math,
    phiflow_like,
)
from problems._folded import folded
from problems._incompressible import (
    Projection,
    Velocity,
    advect_density,
    advect_velocity,
    at_faces,
    curl,
)
from problems._networks import dense_network
from problems._problem import Batch, Problem, Settings, parameter, require_positive_numbers

# Of the residual of the pressure.
TOLERANCE = 1e-12
# Samples simulated at a time without a graph: the fields of more do not stay in the cache.
CHUNK = 256
# Puffs start there, in both directions.
NEAREST, FARTHEST = 0.3, 0.7


@dataclass(frozen=True)
class SmokeControl(Problem):
    r"""Smoke of density d, carried by air of velocity v in the unit square.

    .. math::
        \partial_t v + (v \cdot \nabla) v = -\nabla p + b\, d\, e_y + f, \qquad
        \nabla \cdot v = 0, \qquad \partial_t d + (v \cdot \nabla) d = 0,

    with walls around and air at rest to begin with. A time step carries the velocity along itself,
    adds buoyancy and force, removes the divergence and then carries the smoke; both by
    semi-Lagrangian steps. Their interpolation is all the viscosity there is. The force is

    .. math::
        f = F \sum_{k,l=1}^{K} c_{kl}(t)\, \mathrm{curl}\,
            \frac{\sin(k \pi x) \sin(l \pi y)}{\pi \max(k, l)},

    free of divergence and, for a single eddy, at most F per unit of control c.

    The network sees start and target as coarse images, the means over square blocks of cells, and
    returns the controls of all time steps; the loss compares coarse images. Targets can be
    reached: each is what the simulation makes of the start under controls that are uniform in
    (-1, 1) and constant in time, which the network does not see.

    Attributes:
        size: Cells N per side of the grid.
        observed: Pixels n per side of what is seen and compared; divides ``size``.
        time_steps: Number T of time steps.
        dt: Length of a time step.
        eddies: Eddies K of the force in each direction; K² controls in each time step.
        force: Largest force F of one eddy per unit of control.
        buoyancy: Upward force b per density.
        radius: Of a puff: where its density has fallen to 1/e.
        hidden: Widths of the hidden layers.
        train_size: Number of training samples.
        test_size: Number of test samples.
        time_budget: Training time in seconds; ours, there is no publication.
        fast_steps: True takes steps of plain torch, whose backward passes go in batches; False
            those of PhiFlow, in double precision, with pressures by conjugate gradients. Same
            numbers.
    """

    size: int = parameter(32, "cells per side of the grid")
    observed: int = parameter(4, "pixels per side of what is seen and compared")
    time_steps: int = parameter(8, "time steps of a simulation")
    dt: float = parameter(0.125, "length of a time step")
    eddies: int = parameter(2, "eddies of the force per direction; squared, controls per step")
    force: float = parameter(0.4, "largest force of one eddy per unit of control")
    buoyancy: float = parameter(0.5, "upward force per density")
    radius: float = parameter(0.12, "radius of a puff of smoke; the box has sides of 1")
    hidden: tuple[int, ...] = (64, 64)
    train_size: int = parameter(2048, "training samples")
    test_size: int = parameter(512, "test samples")
    time_budget: float = 600.0
    fast_steps: bool = parameter(True, "steps of plain torch instead of PhiFlow's")

    name: ClassVar[str] = "smoke_control"
    traceable: ClassVar[bool] = False  # PhiFlow looks at values
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        {
            # All of it our own choice, from short trials.
            "hig": Settings(batch_size=64, lr=1.0, rcond=1e-4, step_rule="trust"),
            "gn": Settings(batch_size=64, lr=1.0, rcond=1e-3, step_rule="trust"),
            "adam": Settings(batch_size=16, lr=1e-2),
            "soap": Settings(batch_size=16, lr=1e-2),
            "khig": Settings(batch_size=16, lr=3e-3, schedule="cosine"),
            "muon": Settings(batch_size=16, lr=1e-2),
            "lbfgs": Settings(batch_size=256, lr=1.0),
        }
    )

    def __post_init__(self):
        require_positive_numbers(self)
        if self.size % self.observed:
            raise ValueError(
                f"observed must divide size, got {self.observed} and {self.size}; the default is 4 "
                "of 32"
            )
        if self.size < 2 * self.eddies:
            raise ValueError(
                f"size must be at least twice the eddies, got {self.size} and {self.eddies}; a "
                "finer grid resolves them"
            )

    @property
    def controls(self) -> int:
        """Number C of controls in each time step."""
        return self.eddies**2

    def network(self) -> nn.Sequential:
        """Freshly initialised tanh network from two images (…, 2 n²) to controls (…, T · C)."""
        inputs, outputs = 2 * self.observed**2, self.time_steps * self.controls
        return dense_network([inputs, *self.hidden, outputs], nn.Tanh)

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw training and test set, densities ``start``, ``target``, float64 (samples, N, N)."""
        return self._draw(self.train_size, generator), self._draw(self.test_size, generator)

    def observe(self, density: Tensor) -> Tensor:
        """Coarse images (B, n, n) of densities (B, N, N)."""
        return avg_pool2d(density[:, None], self.size // self.observed)[:, 0]

    def simulate(self, start: Tensor, controls: Tensor) -> Tensor:
        """Density at the end.

        Args:
            start: Densities (B, N, N).
            controls: (B, T, C), of the dtype and on the device of ``start``.

        Returns:
            Densities (B, N, N).
        """
        if self.fast_steps:
            return self._by_torch(start, controls)
        inputs = torch.cat([start.flatten(1), controls.flatten(1)], 1)
        return folded(self._by_phiflow, phiflow_like)(inputs.double()).to(start.dtype)

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Coarse image of the smoke at the end, under the controls that the network chooses.

        Args:
            network: Maps images (B, 2 n²) to controls (B, T · C).
            batch: Densities ``start`` and ``target``, both (B, N, N), of the network's dtype and
                device.

        Returns:
            Image (B, n, n).
        """
        return self.observe(self._controlled(network, batch))

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Squared distance to the image of the target, summed over pixels, mean over samples."""
        return (prediction - self.observe(batch["target"])).square().sum((1, 2)).mean()

    def plain(self) -> Self:
        """The same problem with the steps of PhiFlow."""
        return replace(self, fast_steps=False)

    @torch.no_grad()
    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray | str]:
        """Densities at the start and at the end, for figures.

        Args:
            network: Maps images (k, 2 n²) to controls (k, T · C).
            batch: Densities ``start`` and ``target``, both (k, N, N).

        Returns:
            ``start``, ``uncontrolled`` and ``prediction``, at the end without and with the
            network's control, and ``truth``, the target, each (k, N, N); float64; and their
            ``quantity``.
        """
        start = batch["start"]
        idle = start.new_zeros(len(start), self.time_steps, self.controls)
        densities = {
            "start": start,
            "uncontrolled": self.simulate(start, idle),
            "prediction": self._controlled(network, batch),
            "truth": batch["target"],
        }
        arrays = {key: value.double().cpu().numpy() for key, value in densities.items()}
        return {**arrays, "quantity": "density"}

    def data_loss(self, network: nn.Module, data: Batch, chunk: int) -> float:
        """Mean loss per sample, as for any problem, in chunks that are fast here."""
        return super().data_loss(network, data, min(chunk, CHUNK))

    def _controlled(self, network: nn.Module, batch: Batch) -> Tensor:
        images = [self.observe(batch[key]).flatten(1) for key in ("start", "target")]
        controls = network(torch.cat(images, 1)).unflatten(1, (self.time_steps, self.controls))
        return self.simulate(batch["start"], controls)

    @torch.no_grad()
    def _draw(self, samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        place = torch.rand(samples, 2, 1, generator=generator, dtype=torch.float64)
        controls = torch.rand(samples, 1, self.controls, generator=generator, dtype=torch.float64)
        centres = (torch.arange(self.size, dtype=torch.float64) + 0.5) / self.size
        distance = (centres - NEAREST - (FARTHEST - NEAREST) * place) / self.radius
        along_x, along_y = torch.exp(-distance.square()).unbind(1)
        start = along_x[:, :, None] * along_y[:, None, :]
        controls = (2 * controls - 1).expand(-1, self.time_steps, -1)
        parts = zip(start.split(CHUNK), controls.split(CHUNK), strict=True)
        return {"start": start, "target": torch.cat([self._by_torch(*part) for part in parts])}

    def _patterns(self, like: Tensor) -> Velocity:
        """Forces (C, N - 1, N) and (C, N, N - 1) of unit controls."""
        corners = torch.arange(self.size + 1, dtype=torch.float64) / self.size
        waves = torch.arange(1, self.eddies + 1, dtype=torch.float64)
        sines = torch.sin(torch.pi * waves[:, None] * corners)
        largest = torch.pi * torch.maximum(waves[:, None], waves) / self.size
        potential = sines[:, None, :, None] * sines[:, None, :] / largest[..., None, None]
        x, y = curl(self.force * potential.flatten(0, 1))
        return x.to(like), y.to(like)

    def _forces(self, controls: Tensor) -> Iterator[Velocity]:
        """The force (B, N - 1, N) and (B, N, N - 1) of each time step."""
        x, y = self._patterns(controls)
        for control in controls.unbind(1):
            yield torch.tensordot(control, x, 1), torch.tensordot(control, y, 1)

    def _by_torch(self, density: Tensor, controls: Tensor) -> Tensor:
        time, project = self.dt * self.size, Projection(self.size, density)
        x, y = (torch.zeros_like(faces) for faces in at_faces(density))
        for force_x, force_y in self._forces(controls):
            _, lifted = at_faces(density)
            x, y = advect_velocity((x, y), time)
            x = x + self.dt * force_x
            y = y + self.dt * (force_y + self.buoyancy * lifted)
            x, y = project((x, y))
            density = advect_density(density, (x, y), time)
        return density

    def _by_phiflow(self, inputs: Tensor) -> Tensor:
        """Densities (B, N, N) for starts and controls side by side, (B, N² + T · C)."""
        start, controls = inputs.split([self.size**2, self.time_steps * self.controls], 1)
        start = start.unflatten(1, (self.size, self.size))
        controls = controls.unflatten(1, (self.time_steps, self.controls))
        density = CenteredGrid(_wrapped(start), extrapolation.BOUNDARY, Box(x=1, y=1))
        velocity = _staggered(*(torch.zeros_like(faces) for faces in at_faces(start)))
        solve = math.Solve("CG", TOLERANCE, TOLERANCE, rank_deficiency=0)
        for force in self._forces(controls):
            push = _staggered(*force) + (density * (0, self.buoyancy)).at(velocity)
            velocity = advect.semi_lagrangian(velocity, velocity, self.dt) + self.dt * push
            velocity, _ = fluid.make_incompressible(velocity, solve=solve)
            density = advect.semi_lagrangian(density, velocity, self.dt)
        return density.values.native(("samples", "x", "y"))


def _wrapped(values: Tensor) -> math.Tensor:
    return math.wrap(values, math.batch("samples"), math.spatial("x", "y"))


def _staggered(x: Tensor, y: Tensor) -> Field:
    components = math.stack({"x": _wrapped(x), "y": _wrapped(y)}, math.dual("vector"))
    return StaggeredGrid(components, extrapolation.ZERO, Box(x=1, y=1))
