"""Swing-up of a pole on a cart by a network in the loop: it sees the state at every time step.

Its weights act once per time step, and each decision changes all states that later ones see.
Upright, what it does not counter grows e-fold in a quarter of a second; hanging, a weak force does
next to nothing. That spreads the singular values of the joint Jacobian.

The equations are those of Barto, Sutton, Anderson, *Neuronlike adaptive elements that can solve
difficult learning control problems*, IEEE Transactions on Systems, Man, and Cybernetics 13 (1983),
with their masses and length and without their friction. The task is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from problems._constants import constant
from problems._integrators import rk4
from problems._networks import dense_network
from problems._problem import Batch, Problem, Settings, parameter, require_positive_numbers

GRAVITY = 9.8  # m/s²
CART_MASS = 1.0  # kg
POLE_MASS = 0.1  # kg
HALF_LENGTH = 0.5  # m, from the hinge to the centre of mass of the pole

# Of position, velocity, cosine, sine and angular velocity. A swing takes height and gives speed: an
# angular velocity that weighs more than 0.26 s, the inverse frequency of small swings, costs more
# than the height is worth, and hanging at rest would be a minimum of the loss.
WEIGHTS = (0.3, 0.1, 1.0, 1.0, 0.1)


@dataclass(frozen=True)
class CartPole(Problem):
    r"""Cart on a track with a pole that hangs from it and shall stand on it.

    The state is ``[x, v, θ, ω]``, position and velocity of the cart, angle of the pole from
    upright and angular velocity, in SI units. With a force F on the cart, masses M of the cart and
    m of the pole, and l half the length of the pole,

    .. math::
        \omega' = \frac{g \sin\theta - a \cos\theta}{l\,(4/3 - m \cos^2\theta / (M + m))},
        \qquad v' = a - \frac{m\,l}{M + m}\, \omega' \cos\theta, \qquad
        a = \frac{F + m\,l\,\omega^2 \sin\theta}{M + m},

    by steps of the classical Runge–Kutta method in which the force is constant.

    Starts are uniform within ``spread`` of hanging at rest, in each component. The network sees
    ``[x, v, cos θ, sin θ, ω]`` at every step and returns the force. The prediction is by how much
    the last states that count miss upright at rest in the middle, weighted, and the root mean
    square of the control; the loss is its square.

    Attributes:
        time_steps: Number T of time steps, and of decisions.
        dt: Length of a time step in seconds.
        force_gain: Newtons per unit of the control.
        spread: Largest deviation of a start from hanging at rest.
        looks: Number K of times at which the state counts, the end and some before it.
        apart: Time steps between these times.
        effort: Weight of the mean square of the control.
        hidden: Widths of the hidden layers.
        train_size: Number of training samples.
        test_size: Number of test samples.
        time_budget: Training time in seconds.
    """

    time_steps: int = parameter(60, "time steps, and decisions, of a simulation")
    dt: float = parameter(0.05, "length of a time step in seconds")
    force_gain: float = parameter(10.0, "newtons per unit of control")
    spread: float = parameter(0.3, "largest deviation of a start from hanging at rest")
    looks: int = parameter(3, "times at which the state counts, the last one the end")
    apart: int = parameter(5, "time steps between these times")
    effort: float = parameter(1e-3, "weight of the mean square of the control")
    hidden: tuple[int, ...] = (32, 32)
    train_size: int = parameter(1024, "training samples")
    test_size: int = parameter(256, "test samples")
    time_budget: float = 60.0

    name: ClassVar[str] = "cart_pole"
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        {
            # All of it our own choice, from trials of 8 to 60 s. With a cut-off of 1e-6 the first
            # steps go along the smallest directions and hardly leave the start. A step on few
            # swings spoils others: of 16 the loss does not stay where it was.
            "hig": Settings(batch_size=128, lr=1.0, rcond=1e-3, step_rule="trust"),
            "gn": Settings(batch_size=128, lr=1.0, rcond=1e-3, step_rule="trust"),
            "lm": Settings(batch_size=128, lr=8.0, damping=1.0, step_rule="trust"),
            "adam": Settings(batch_size=32, lr=3e-3),
            "soap": Settings(batch_size=32, lr=1e-2),
            "khig": Settings(batch_size=32, lr=3e-3, schedule="cosine"),
            "muon": Settings(batch_size=32, lr=1e-2),
            "lbfgs": Settings(batch_size=1024, lr=1.0),
        }
    )

    def __post_init__(self):
        require_positive_numbers(self)
        if (self.looks - 1) * self.apart >= self.time_steps:
            raise ValueError(
                f"time_steps must be more than (looks - 1) * apart = {self.looks - 1} * "
                f"{self.apart}, got {self.time_steps}; let fewer or closer times count"
            )

    def network(self) -> nn.Sequential:
        """Freshly initialised tanh network from observations (…, 5) to a control (…, 1)."""
        return dense_network([len(WEIGHTS), *self.hidden, 1], nn.Tanh)

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw training and test set, each with ``start``, float64 (samples, 4)."""
        hanging = torch.tensor([0, 0, torch.pi, 0], dtype=torch.float64)

        def draw(samples: int) -> dict[str, Tensor]:
            unit = torch.rand((samples, 4), generator=generator, dtype=torch.float64)
            return {"start": hanging + self.spread * (2 * unit - 1)}

        return draw(self.train_size), draw(self.test_size)

    def derivative(self, state: Tensor, force: Tensor) -> Tensor:
        """Time derivative (…, 4) of states (…, 4) under forces (…)."""
        _, velocity, angle, spin = state.unbind(-1)
        sine, cosine = angle.sin(), angle.cos()
        mass = CART_MASS + POLE_MASS
        share = POLE_MASS / mass
        push = force / mass + (share * HALF_LENGTH) * spin.square() * sine
        inertia = HALF_LENGTH * (4 / 3 - share * cosine.square())
        spin_change = (GRAVITY * sine - cosine * push) / inertia
        change = push - (share * HALF_LENGTH) * cosine * spin_change
        return torch.stack([velocity, change, spin, spin_change], -1)

    def step(self, state: Tensor, control: Tensor) -> Tensor:
        """Advance states (…, 4) by one time step under controls (…), one number per state."""
        return rk4(self.derivative, state, self.force_gain * control, self.dt)

    def observe(self, state: Tensor) -> Tensor:
        """Network inputs (…, 5) of states (…, 4): an angle and its full turns are one."""
        position, velocity, angle, spin = state.unbind(-1)
        return torch.stack([position, velocity, angle.cos(), angle.sin(), spin], -1)

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Remaining error and effort with the network in control.

        Args:
            network: Maps observations (B, 5) to controls (B, 1).
            batch: ``start`` (B, 4), of the network's dtype and device.

        Returns:
            Weighted deviations from upright at rest at the K times and the weighted root mean
            square of the control, (B, 5 K + 1).
        """
        states, controls = self._simulate(network, batch["start"])
        last = states[:, self.time_steps - (self.looks - 1) * self.apart :: self.apart]
        missed = self.observe(last) - self.observe(torch.zeros_like(last))
        missed = missed * constant(WEIGHTS, missed.dtype, missed.device)
        effort = torch.linalg.vector_norm(controls, dim=1, keepdim=True)
        scale = (self.effort / self.time_steps) ** 0.5
        return torch.cat([missed.flatten(1), scale * effort], 1)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Sum of the squares of what `predict` returns, (B, 5 K + 1), mean over samples."""
        return prediction.square().sum(1).mean()

    @torch.no_grad()
    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray | list[str]]:
        """Swings under the network's control, for figures.

        Args:
            network: Maps observations (k, 5) to controls (k, 1).
            batch: ``start`` (k, 4).

        Returns:
            ``time`` (T+1,), ``control_time`` (T,) with the starts of the steps, ``state``
            (k, T+1, 2) with position and angle, ``target`` (k, 2), upright being the multiple of a
            full turn that is nearest to the last angle, ``control`` (k, T) and ``state_names``;
            float64.
        """
        states, control = self._simulate(network, batch["start"])
        shown = states[..., [0, 2]].double()
        turn = 2 * torch.pi
        target = (shown[:, -1] / turn).round() * turn * shown.new_tensor([0, 1])
        time = self.dt * np.arange(self.time_steps + 1)
        return {
            "time": time,
            "control_time": time[:-1],
            "state": shown.cpu().numpy(),
            "target": target.cpu().numpy(),
            "control": control.double().cpu().numpy(),
            "state_names": ["position in m", "angle in rad"],
        }

    def _simulate(self, network: nn.Module, state: Tensor) -> tuple[Tensor, Tensor]:
        """All states (B, T + 1, 4) and controls (B, T)."""
        states, controls = [state], []
        for _ in range(self.time_steps):
            controls.append(network(self.observe(states[-1])).squeeze(-1))
            states.append(self.step(states[-1], controls[-1]))
        return torch.stack(states, 1), torch.stack(controls, 1)
