"""Control of a chain of nonlinear oscillators.

Each oscillator is bound to its rest position by a linear spring and to its neighbours by cubic
ones; a force on the last oscillator shall bring the whole chain to a target state. The force acts
on the others through the nonlinear springs alone, which makes the problem badly conditioned.

Published in Schnell, Holl, Thuerey, *Half-Inverse Gradients for Physical Deep Learning*,
ICLR 2022, for two oscillators.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import hig
from problems._integrators import rk4
from problems._networks import dense_network
from problems._problem import Batch, Problem, Settings, parameter, require_positive_numbers


@dataclass(frozen=True)
class NonlinearOscillators(Problem):
    r"""Chain of N oscillators, steered by a force on the last one.

    The state is ``[x_1 … x_N, v_1 … v_N]`` with

    .. math::
        x_i' = v_i, \qquad
        v_i' = -x_i + (x_{i+1} - x_i)^3 + (x_{i-1} - x_i)^3 + f_i(t),

    where the terms of missing neighbours drop out and :math:`f_i = 3 u(t)` for the last
    oscillator, 0 for the others. The control u is constant within each time step. All quantities
    are dimensionless.

    The network sees the target state and returns the whole control sequence. Initial states are
    uniform in [0, 1) and the chain shall *return* to where it started.

    Attributes:
        oscillators: Number N of oscillators.
        time_steps: Number T of time steps, and of controls.
        dt: Length of a time step.
        force_gain: Force per unit of control.
        hidden: Widths of the hidden layers.
        train_size: Number of training samples.
        test_size: Number of test samples.
        time_budget: Published training time in seconds.
        rollout: How the time loop is differentiated, a method of `hig.rollout`; ``"loop"`` is
            plain autograd.
    """

    oscillators: int = parameter(2, "number of oscillators in the chain")
    time_steps: int = parameter(96, "time steps, and controls, of a simulation")
    dt: float = parameter(0.125, "length of a time step")
    force_gain: float = parameter(3.0, "force per unit of control")
    hidden: tuple[int, ...] = (20, 20, 20)
    train_size: int = parameter(4096, "training samples")
    test_size: int = parameter(4096, "test samples")
    time_budget: float = 3600.0
    rollout: str = "auto"

    name: ClassVar[str] = "nonlinear_oscillators"
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        {
            "hig": Settings(batch_size=128, lr=1.0, rcond=1e-6, published=True),
            "gn": Settings(batch_size=128, lr=1.0, rcond=1e-6, published=True),
            "adam": Settings(batch_size=512, lr=3e-4, published=True),
            # Our own choice, from short trials. The loss is a mean of squares: for batches of
            # 128, 64 is the step size at which Levenberg–Marquardt takes its full step.
            "lm": Settings(batch_size=128, lr=64.0, damping=1.0),
            "sgd": Settings(batch_size=128, lr=0.03),
            "adagrad": Settings(batch_size=128, lr=0.03),
            "adadelta": Settings(batch_size=128, lr=1.0),
            "rmsprop": Settings(batch_size=128, lr=1e-3),
            # The whole training set: from one small batch to the next L-BFGS diverges.
            "lbfgs": Settings(batch_size=4096, lr=1.0),
            "soap": Settings(batch_size=128, lr=1e-2),
            "khig": Settings(batch_size=128, lr=3e-3, schedule="cosine"),
            "muon": Settings(batch_size=128, lr=1e-2),
        }
    )

    def __post_init__(self):
        require_positive_numbers(self)
        if self.rollout not in ("auto", "jacobians", "loop"):
            raise ValueError(f"rollout must be 'auto', 'jacobians' or 'loop', got {self.rollout!r}")

    @property
    def state_names(self) -> list[str]:
        """Names of the 2N components of the state: x1 … xN, v1 … vN."""
        return [f"{letter}{i + 1}" for letter in "xv" for i in range(self.oscillators)]

    def network(self) -> nn.Sequential:
        """Freshly initialised ReLU network from the target (…, 2N) to the controls (…, T)."""
        return dense_network([2 * self.oscillators, *self.hidden, self.time_steps], nn.ReLU)

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw training and test set, ``start`` and ``target``, float64 (samples, 2N)."""

        def draw(samples: int) -> dict[str, Tensor]:
            shape = (samples, 2 * self.oscillators)
            start = torch.rand(shape, generator=generator, dtype=torch.float64)
            return {"start": start, "target": start.clone()}

        return draw(self.train_size), draw(self.test_size)

    def derivative(self, state: Tensor, force: Tensor) -> Tensor:
        """Time derivative (…, 2N) of states (…, 2N) under forces (…, N)."""
        position, velocity = state.split(self.oscillators, -1)
        # The stretch of the springs between neighbours, cubed; the padding stands for the free
        # ends. The force on oscillator i is the difference of the springs on its two sides.
        springs = pad(position.diff() ** 3, (1, 1)).diff()
        return torch.cat([velocity, springs - position + force], -1)

    def step(self, state: Tensor, control: Tensor) -> Tensor:
        """Advance states (…, 2N) by one time step under controls (…), one number per state."""
        force = pad(self.force_gain * control[..., None], (self.oscillators - 1, 0))
        return rk4(self.derivative, state, force, self.dt)

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Final state under the control that the network chooses.

        Args:
            network: Maps targets (B, 2N) to controls (B, T).
            batch: ``start`` and ``target``, both (B, 2N), of the network's dtype and device.

        Returns:
            State (B, 2N) after T time steps.
        """
        controls = network(batch["target"])
        return hig.rollout(self.step, batch["start"], controls, method=self.rollout)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Squared distance to the ``target``, summed over 2N components, mean over samples."""
        return (prediction - batch["target"]).square().sum(-1).mean()

    def plain(self) -> Self:
        """The same problem with plain autograd through the time loop."""
        return replace(self, rollout="loop")

    @torch.no_grad()
    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray | list[str]]:
        """Trajectories under the network's control, for figures.

        Args:
            network: Maps targets (k, 2N) to controls (k, T).
            batch: ``start`` and ``target``, both (k, 2N).

        Returns:
            ``time`` (T+1,), ``control_time`` (T,) with the starts of the steps, ``state``
            (k, T+1, 2N), ``target`` (k, 2N), ``control`` (k, T) and ``state_names``; float64.
        """
        control = network(batch["target"])
        _, states = hig.rollout(self.step, batch["start"], control, trajectory=True)
        time = self.dt * np.arange(self.time_steps + 1)
        return {
            "time": time,
            "control_time": time[:-1],
            "state": states.double().cpu().numpy(),
            "target": batch["target"].double().cpu().numpy(),
            "control": control.double().cpu().numpy(),
            "state_names": self.state_names,
        }
