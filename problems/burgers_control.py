r"""Control of Burgers' equation in one dimension by a few actuators.

A wave that would steepen and die out shall end as another one. Diffusion forgets rough fields
first: what a force does to them early on is lost, which makes the problem badly conditioned.

A problem of our own, after the one of Holl, Koltun, Thuerey, *Learning to Control PDEs with
Differentiable Physics*, ICLR 2020, where the force acts on every cell.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

import hig
from problems._fields import RING_AXES, Field, advect, diffuse, math, on_ring, phiflow_like
from problems._folded import folded
from problems._networks import dense_network
from problems._problem import Batch, Problem, Settings, parameter, require_positive_numbers

# Of the residual of the implicit diffusion, for velocities and cotangents of about length 1.
TOLERANCE = 1e-13
# Standard deviation of an actuator's reach, in distances to the next one.
REACH = 1 / 3
# Of the sine and of the cosine that a target consists of.
AMPLITUDE = 0.25

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class BurgersControl(Problem):
    r"""Viscous flow on a ring of length 1, pushed by K actuators.

    .. math::
        \partial_t u + u\, \partial_x u = \nu\, \partial_x^2 u + \sum_k c_k(t)\, g_k(x)

    with central differences on N cells. A time step is explicit in advection and force and
    implicit in diffusion (backward Euler):

    .. math::
        (1 - \nu\, dt\, L)\, u_{t+1} = u_t + dt\, (\textstyle\sum_k c_k g_k - u_t \cdot D u_t).

    The actuators :math:`g_k` are bell curves of height 1, evenly spaced; the controls :math:`c_k`
    are constant within each time step. Without a force the mean of u stays as it is. All
    quantities are dimensionless. The explicit part blows up for velocities far beyond
    :math:`\sqrt{2 \nu / dt}` or one cell per time step.

    Every sample starts from :math:`\sin 2 \pi x`. Targets are
    :math:`a \sin 4 \pi x + b \cos 4 \pi x` with normal a and b. Four actuators sit where the
    cosine is zero: the sine they can push directly, the cosine has to be carried there by the flow.
    The network sees the target and returns all controls.

    PhiFlow simulates it by ``advect.differential`` and ``diffuse.implicit``. Both matrices, D and
    :math:`(1 - \nu\, dt\, L)^{-1}`, are the same in every step: by default they are read out of
    PhiFlow once, and a step is two products.

    Attributes:
        cells: Number N of cells.
        time_steps: Number T of time steps.
        dt: Length of a time step.
        viscosity: :math:`\nu`.
        actuators: Number K of actuators.
        hidden: Widths of the hidden layers.
        train_size: Number of training samples.
        test_size: Number of test samples.
        fast_steps: Multiply with PhiFlow's matrices; False calls PhiFlow in every time step, which
            always computes in float64.
        time_budget: Training time in seconds.
    """

    cells: int = parameter(32, "cells of the ring")
    time_steps: int = parameter(32, "time steps of a simulation")
    dt: float = parameter(0.02, "length of a time step")
    viscosity: float = parameter(0.02, "viscosity")
    actuators: int = parameter(4, "actuators, each with a control per time step")
    hidden: tuple[int, ...] = (32, 32)
    train_size: int = parameter(1024, "training samples")
    test_size: int = parameter(1024, "test samples")
    fast_steps: bool = parameter(True, "multiply with matrices of PhiFlow instead of calling it")
    time_budget: float = 60.0

    name: ClassVar[str] = "burgers_control"
    evaluate_by: ClassVar[Literal["epoch", "time"]] = "time"
    traceable: ClassVar[bool] = False  # PhiFlow looks at values
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        {
            # From trials of 7 to 10 s, HIG and Adam; the others are those of similar problems.
            "hig": Settings(batch_size=16, lr=1.0, rcond=1e-3, step_rule="trust"),
            "gn": Settings(batch_size=16, lr=1.0, rcond=1e-3, step_rule="trust"),
            "adam": Settings(batch_size=64, lr=1e-2, schedule="cosine"),
            "soap": Settings(batch_size=64, lr=3e-3),
            "khig": Settings(batch_size=64, lr=3e-3, schedule="cosine"),
            "muon": Settings(batch_size=64, lr=1e-2),
            "lbfgs": Settings(batch_size=1024, lr=1.0),
        }
    )

    def __post_init__(self):
        require_positive_numbers(self)
        if self.cells < 5:
            raise ValueError(
                f"cells must be at least 5, got {self.cells}; fewer do not carry the two waves of "
                "a target"
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

    def network(self) -> nn.Sequential:
        """Freshly initialised tanh network from the target (…, N) to the controls (…, T K)."""
        return dense_network([self.cells, *self.hidden, self.time_steps * self.actuators], nn.Tanh)

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw training and test set, each with ``start`` and ``target``, float64 (samples, N)."""
        angle = 2 * torch.pi * self.positions
        waves = AMPLITUDE * torch.stack([torch.sin(2 * angle), torch.cos(2 * angle)])

        def draw(samples: int) -> dict[str, Tensor]:
            chosen = torch.randn((samples, 2), generator=generator, dtype=torch.float64)
            start = torch.sin(angle).expand(samples, -1)
            return {"start": start.clone(), "target": chosen @ waves}

        return draw(self.train_size), draw(self.test_size)

    def step(self, like: Tensor) -> Step:
        """The time step as a function, from states (B, N) and controls (B, K) to states (B, N).

        Args:
            like: float32 or float64; dtype and device count.
        """
        bumps = self.bumps.to(like)
        if not self.fast_steps:
            return partial(self._phiflow_step, bumps)
        slope, diffusion = (
            torch.from_numpy(matrix).to(like)
            for matrix in _matrices(self.cells, self.viscosity, self.dt)
        )

        def step(state: Tensor, control: Tensor) -> Tensor:
            change = control @ bumps - state * (state @ slope)
            return (state + self.dt * change) @ diffusion

        return step

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Final state under the control that the network chooses.

        Args:
            network: Maps targets (B, N) to controls (B, T K).
            batch: ``start`` and ``target``, both (B, N), of the network's dtype and device.

        Returns:
            State (B, N) after T time steps.

        Raises:
            RuntimeError: If PhiFlow's conjugate gradients do not converge.
        """
        return self._simulate(batch["start"], self._controls(network, batch))

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Squared distance to the ``target``, summed over the N cells, mean over samples."""
        return (prediction - batch["target"]).square().sum(-1).mean()

    def plain(self) -> Self:
        """The same problem, simulated by calls of PhiFlow."""
        return replace(self, fast_steps=False)

    @torch.no_grad()
    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
        """The flow under the network's control, for figures.

        Args:
            network: Maps targets (k, N) to controls (k, T K).
            batch: ``start`` and ``target``, both (k, N).

        Returns:
            ``time`` (T+1,), ``position`` (N,), ``velocity`` (k, T+1, N), ``force`` (k, T, N), and,
            each (k, N), ``uncontrolled_velocity``, at the end without a force, and
            ``target_velocity``; float64.
        """
        controls = self._controls(network, batch)
        free = self._simulate(batch["start"], torch.zeros_like(controls))
        tensors = {
            "position": self.positions,
            "velocity": self._simulate(batch["start"], controls, trajectory=True),
            "uncontrolled_velocity": free,
            "target_velocity": batch["target"],
            "force": controls @ self.bumps.to(controls),
        }
        time = self.dt * np.arange(self.time_steps + 1)
        return {"time": time} | {
            key: value.double().cpu().numpy() for key, value in tensors.items()
        }

    def _controls(self, network: nn.Module, batch: Batch) -> Tensor:
        """Controls (B, T, K) that the network returns for the targets."""
        return network(batch["target"]).unflatten(-1, (self.time_steps, self.actuators))

    def _simulate(self, start: Tensor, controls: Tensor, trajectory: bool = False) -> Tensor:
        """Final states (B, N); all, (B, T + 1, N), as a trajectory."""
        # Of so cheap a step N backward passes, or one, cost less than its Jacobians of N x N.
        found = hig.rollout(self.step(start), start, controls, trajectory, method="loop")
        return found[1] if trajectory else found

    def _phiflow_step(self, bumps: Tensor, state: Tensor, control: Tensor) -> Tensor:
        # Force and state in one tensor, for that is what can be folded.
        given = torch.stack([state, control @ bumps], 1)
        return folded(self._advance, phiflow_like)(given.double()).to(state.dtype)

    def _advance(self, given: Tensor) -> Tensor:
        """Velocities (B, N) a time step after ``given``, velocities and forces (B, 2, N)."""
        velocity, force = (on_ring(values) for values in given.unbind(1))
        pushed = velocity + self.dt * (force + advect.differential(velocity, velocity))
        return _diffused(pushed, self.viscosity, self.dt).values.native(RING_AXES[:2])


@lru_cache(maxsize=8)
def _matrices(cells: int, viscosity: float, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """The slope D^T and a step of diffusion of PhiFlow, from the right, in float64 (N, N)."""
    with math.NUMPY, math.precision(64):
        impulse = on_ring(np.eye(1, cells))
        # Carried by a velocity of 1 a field changes by minus its slope.
        slope = -advect.differential(impulse, 0 * impulse + 1)
        answers = slope.vector["x"], _diffused(impulse, viscosity, dt)
        answers = [answer.values.numpy(RING_AXES[:2]).ravel() for answer in answers]
    # On a ring the answer to an impulse elsewhere is the same, elsewhere.
    slope, diffusion = (np.stack([np.roll(a, i) for i in range(cells)]) for a in answers)
    return slope, diffusion


def _diffused(velocity: Field, viscosity: float, dt: float) -> Field:
    """The component of a velocity after a time step of diffusion, as a scalar."""
    # With a second axis of the batch PhiFlow is slow to report on the samples, and warns of it.
    component = velocity.vector["x"]
    solve = math.Solve("CG", TOLERANCE, TOLERANCE)
    return diffuse.implicit(component, viscosity, dt, solve, gradient_for_diffusivity=False)
