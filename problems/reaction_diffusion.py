r"""Control of a reaction with diffusion in one dimension by a few actuators.

The Allen–Cahn equation lets a field fall apart into two phases, whose fronts then rest: a pattern
shall turn into another one, which a force has to push over the barrier between the phases. Few
controls decide on many outputs, and the simulation is long next to the network.

A problem of our own; the equation is that of Allen, Cahn, *A microscopic theory for antiphase
boundary motion and its application to antiphase domain coarsening*, Acta Metallurgica 27, 1979.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from problems._networks import dense_network
from problems._problem import Batch, Problem, Settings, parameter, require_positive_numbers

# Standard deviation of an actuator's reach, in distances to the next one.
REACH = 1 / 2
# Times in a window at which a figure shows the fields.
SHOWN = 10
# Waves around the ring in a pattern, and how sharp its fronts are.
WAVES, SHARPNESS = 2, 2.0


@dataclass(frozen=True)
class ReactionDiffusion(Problem):
    r"""Two phases on a ring of length 1, pushed by K actuators.

    .. math::
        \partial_t u = \epsilon\, \partial_x^2 u + \rho\, (u - u^3) + \sum_k c_k(t)\, g_k(x)

    on N cells, with time steps that are explicit in reaction and force, and implicit and spectral
    in diffusion (backward Euler):

    .. math::
        (1 - \epsilon\, dt\, \partial_x^2)\, u_{t+1}
            = u_t + dt\, (\rho\, (u_t - u_t^3) + \textstyle\sum_k c_k g_k).

    The actuators :math:`g_k` are bell curves of height 1, evenly spaced; the controls :math:`c_k`
    are constant within each of W windows. All quantities are dimensionless.

    Start and goal of a sample are patterns :math:`\tanh(2 p)`, with p a random sum of the waves of
    wave numbers 0 to 2. The field shall go from one to the other along a straight line, and is
    compared at M times, evenly spaced. The network sees start and goal and returns all controls:
    a sample has M N outputs that depend on W K controls.

    Attributes:
        cells: Number N of cells.
        windows: Number W of windows.
        window_steps: Time steps in a window.
        dt: Length of a time step.
        observations: Number M of times at which the field is compared; it divides that of the
            windows.
        diffusivity: :math:`\epsilon`.
        rate: :math:`\rho`.
        actuators: Number K of actuators.
        hidden: Widths of the hidden layers.
        train_size: Number of training samples.
        test_size: Number of test samples.
        time_budget: Training time in seconds.
    """

    cells: int = parameter(64, "cells of the ring")
    windows: int = parameter(8, "windows, each with a control per actuator")
    window_steps: int = parameter(100, "time steps in a window")
    dt: float = parameter(0.001, "length of a time step")
    observations: int = parameter(4, "times at which the field is compared")
    diffusivity: float = parameter(0.005, "diffusivity")
    rate: float = parameter(10.0, "rate of the reaction")
    actuators: int = parameter(8, "actuators")
    hidden: tuple[int, ...] = (32, 32)
    train_size: int = parameter(1024, "training samples")
    test_size: int = parameter(256, "test samples")
    time_budget: float = 60.0

    name: ClassVar[str] = "reaction_diffusion"
    evaluate_by: ClassVar[Literal["epoch", "time"]] = "time"
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        {
            # Our own, as those of similar problems; not tuned.
            "hig": Settings(batch_size=32, lr=1.0, rcond=1e-3, step_rule="trust"),
            "gn": Settings(batch_size=32, lr=1.0, rcond=1e-3, step_rule="trust"),
            "lm": Settings(batch_size=32, lr=1.0, damping=1e-3, step_rule="trust"),
            "adam": Settings(batch_size=32, lr=1e-2, schedule="cosine"),
            "soap": Settings(batch_size=32, lr=1e-2, schedule="cosine"),
            "khig": Settings(batch_size=32, lr=1e-2, schedule="cosine"),
            "muon": Settings(batch_size=32, lr=1e-2),
            "lbfgs": Settings(batch_size=256, lr=1.0),
        }
    )

    def __post_init__(self):
        require_positive_numbers(self)
        if self.cells < 2 * WAVES + 1:
            raise ValueError(
                f"cells must be at least {2 * WAVES + 1}, got {self.cells}; fewer do not carry the "
                "waves of a pattern"
            )
        if self.windows % self.observations:
            raise ValueError(
                f"observations must divide the {self.windows} windows, got {self.observations}; "
                f"give {self.windows}, or another divisor"
            )

    @property
    def positions(self) -> Tensor:
        """Centres of the cells, float64 (N,)."""
        return (torch.arange(self.cells, dtype=torch.float64) + 0.5) / self.cells

    @property
    def bumps(self) -> Tensor:
        """Effect of each actuator on each cell, float64 (K, N)."""
        places = (torch.arange(self.actuators, dtype=torch.float64) + 0.5) / self.actuators
        distance = (self.positions - places[:, None] + 0.5) % 1 - 0.5  # the short way round
        return torch.exp(-0.5 * (distance * self.actuators / REACH).square())

    @property
    def diffusion(self) -> Tensor:
        """A time step of diffusion, a symmetric matrix, float64 (N, N)."""
        waves = 2 * torch.pi * torch.fft.rfftfreq(self.cells, 1 / self.cells, dtype=torch.float64)
        factors = 1 / (1 + self.dt * self.diffusivity * waves.square())
        impulses = torch.eye(self.cells, dtype=torch.float64)
        return torch.fft.irfft(torch.fft.rfft(impulses) * factors, n=self.cells)

    def network(self) -> nn.Sequential:
        """Freshly initialised tanh network from start and goal (…, 2 N) to controls (…, W K)."""
        widths = [2 * self.cells, *self.hidden, self.windows * self.actuators]
        return dense_network(widths, nn.Tanh)

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw training and test set, float64: ``start`` (samples, N), ``target`` (samples, M, N).

        The last target is the goal.
        """
        angles = 2 * torch.pi * torch.arange(WAVES + 1)[:, None] * self.positions
        waves = torch.cat([torch.cos(angles), torch.sin(angles[1:])])
        shares = torch.arange(1, self.observations + 1, dtype=torch.float64) / self.observations

        def draw(samples: int) -> dict[str, Tensor]:
            shape = 2, samples, len(waves)
            sums = torch.randn(shape, generator=generator, dtype=torch.float64) @ waves
            start, goal = torch.tanh(SHARPNESS * sums / len(waves) ** 0.5).unsqueeze(2)
            return {
                "start": start.squeeze(1),
                "target": start + shares[:, None] * (goal - start),
            }

        return draw(self.train_size), draw(self.test_size)

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Fields (B, M, N) at the times of comparison, under the control that the network chooses.

        Args:
            network: Maps start and goal (B, 2 N) to controls (B, W K).
            batch: ``start`` (B, N) and ``target`` (B, M, N), of the network's dtype and device.
        """
        fields = self._simulate(batch["start"], self._controls(network, batch))
        every = self.windows // self.observations * self.window_steps
        return torch.stack(fields[every::every], 1)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Squared distance to the ``target``, summed over cells, mean over times and samples."""
        return (prediction - batch["target"]).square().sum(-1).mean()

    @torch.no_grad()
    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
        """The fields under the network's control, for figures.

        Args:
            network: Maps start and goal (k, 2 N) to controls (k, W K).
            batch: ``start`` (k, N) and ``target`` (k, M, N).

        Returns:
            ``time`` (T+1,), ``position`` (N,), ``phase`` (k, T+1, N), ``force`` (k, T, N), and,
            each (k, N), ``uncontrolled_phase``, at the end without a force, and ``target_phase``;
            float64, for T intervals, at most ten in each window.
        """
        controls = self._controls(network, batch)
        shown = max(n for n in range(1, SHOWN + 1) if self.window_steps % n == 0)
        every = self.window_steps // shown
        tensors = {
            "position": self.positions,
            "phase": torch.stack(self._simulate(batch["start"], controls)[::every], 1),
            "uncontrolled_phase": self._simulate(batch["start"], 0 * controls)[-1],
            "target_phase": batch["target"][:, -1],
            "force": (controls @ self.bumps.to(controls)).repeat_interleave(shown, 1),
        }
        time = self.dt * every * np.arange(self.windows * shown + 1)
        return {"time": time} | {
            key: value.double().cpu().numpy() for key, value in tensors.items()
        }

    def _controls(self, network: nn.Module, batch: Batch) -> Tensor:
        """Controls (B, W, K) that the network returns for start and goal."""
        seen = torch.cat([batch["start"], batch["target"][:, -1]], 1)
        return network(seen).unflatten(-1, (self.windows, self.actuators))

    def _simulate(self, start: Tensor, controls: Tensor) -> list[Tensor]:
        """Fields (B, N) at the start and after each time step."""
        diffusion, push = self.diffusion.to(start), self.dt * self.bumps.to(start)
        growth = self.dt * self.rate
        fields = [start]
        for control in controls.unbind(1):
            force = control @ push
            for _ in range(self.window_steps):
                field = fields[-1]
                reacted = field * (1 + growth - growth * field.square())
                fields.append((reacted + force) @ diffusion)
        return fields
