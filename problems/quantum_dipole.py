"""Control of a quantum particle in a box by the strength of a dipole field.

The particle starts in the ground state; a field that is uniform in space and varies in time shall
bring it into a superposition of higher states.

Published in Schnell, Holl, Thuerey, *Half-Inverse Gradients for Physical Deep Learning*,
ICLR 2022.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

import hig
from problems._crank_nicolson import crank_nicolson_matrices, crank_nicolson_states
from problems._networks import dense_network
from problems._problem import Batch, Problem, Settings, parameter, require_positive_numbers

# Which eigenstates the target consists of; 1 is the ground state.
TARGETS = MappingProxyType({"superposition": (2, 3), "state2": (2,), "state3": (3,)})
SHOWN_STATES = 5
# The factors of so many time steps are held at once: those of more do not stay in the cache.
_TIMES = 16
# From so many samples on states without a graph come faster from elimination than from matrices.
_FEW = 32


@dataclass(frozen=True)
class QuantumDipole(Problem):
    r"""Particle between infinite walls at x = 0 and x = 2, steered by a field u(t).

    .. math::
        i\,\partial_t \psi = (-\partial_x^2 + u(t)\, x)\, \psi,

    on the interior points of a uniform grid with the three-point stencil, by Crank–Nicolson steps
    :math:`(1 + \tfrac{i\,dt}{2} H)\, \psi_{t+1} = (1 - \tfrac{i\,dt}{2} H)\, \psi_t`. The field is
    constant within each time step. All quantities are dimensionless; a wave function is a vector of
    unit Euclidean norm.

    The network sees the target, real and imaginary parts, and returns the whole field.

    Attributes:
        grid_points: Points of the grid, walls included.
        time_steps: Number T of time steps, and of controls.
        dt: Length of a time step.
        target: ``"superposition"`` for :math:`(c_2 \varphi_2 + c_3 \varphi_3)` with normal
            coefficients, normalised; ``"state2"`` or ``"state3"`` for a single eigenstate, with
            either sign.
        projection_correction: Scale the loss gradient of each sample by
            :math:`1 / |\mathrm{Re}\langle \text{target}, \psi \rangle|`. It is no longer the
            gradient of the loss then: step rules that compare the two take ever shorter steps.
        hidden: Widths of the hidden layers.
        train_size: Number of training samples.
        test_size: Number of test samples.
        time_budget: Published training time in seconds.
        rollout: How the time loop is differentiated. ``"auto"`` is fast: all step matrices at
            once, in double precision. ``"loop"`` is the textbook form: a dense solve after the
            other, in the precision of the network, and plain autograd.
    """

    grid_points: int = parameter(16, "points of the grid, walls included")
    time_steps: int = parameter(384, "time steps, and controls, of a simulation")
    dt: float = parameter(0.05, "length of a time step")
    target: str = parameter("superposition", "states that the target consists of", [*TARGETS])
    projection_correction: bool = parameter(
        False, "scale loss gradients by 1 / |Re <target, psi>|; for fixed steps"
    )
    hidden: tuple[int, ...] = (20, 20, 20)
    train_size: int = parameter(1024, "training samples")
    test_size: int = parameter(1024, "test samples")
    time_budget: float = 5400.0
    rollout: str = "auto"

    name: ClassVar[str] = "quantum_dipole"
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        {
            "hig": Settings(batch_size=16, lr=0.5, rcond=1e-5, published=True),
            "adam": Settings(batch_size=256, lr=5e-4, published=True),
            # Our own choice, from trials of 30 s.
            "gn": Settings(batch_size=16, lr=0.5, rcond=1e-5),
            "lm": Settings(batch_size=16, lr=8.0, damping=1e-3),
            "sgd": Settings(batch_size=16, lr=1.0),
            "adagrad": Settings(batch_size=16, lr=0.03),
            "adadelta": Settings(batch_size=16, lr=3.0),
            "rmsprop": Settings(batch_size=16, lr=1e-3),
            "lbfgs": Settings(batch_size=1024, lr=1.0),
            "soap": Settings(batch_size=16, lr=3e-3),
            "khig": Settings(batch_size=16, lr=3e-3, schedule="cosine"),
            "muon": Settings(batch_size=16, lr=3e-3),
        }
    )

    def __post_init__(self):
        require_positive_numbers(self)
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        if self.rollout not in ("auto", "loop"):
            raise ValueError(f"rollout must be 'auto' or 'loop', got {self.rollout!r}")
        if self.grid_points < 2 + max(TARGETS[self.target]):
            raise ValueError(
                f"grid_points must be at least {2 + max(TARGETS[self.target])} for the target "
                f"{self.target}, got {self.grid_points}; the published value is 16"
            )

    @property
    def interior(self) -> int:
        """Number S of grid points between the walls."""
        return self.grid_points - 2

    @property
    def spacing(self) -> float:
        """Distance of neighbouring grid points."""
        return 2.0 / (self.grid_points - 1)

    def eigenstates(self, states: int) -> Tensor:
        """The lowest eigenstates of the field-free Hamiltonian, float64 (states, S).

        The sines are exact eigenvectors of the three-point stencil too.
        """
        index = torch.arange(1, states + 1, dtype=torch.float64)[:, None]
        waves = torch.sin(index * torch.pi * self._positions(index) / 2)
        return waves / waves.norm(dim=1, keepdim=True)

    def network(self) -> nn.Sequential:
        """Freshly initialised tanh network from the target (…, 2 S) to the controls (…, T)."""
        return dense_network([2 * self.interior, *self.hidden, self.time_steps], nn.Tanh)

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw training and test set, ``start`` and ``target``, float64 (samples, S, 2)."""
        chosen = torch.tensor(TARGETS[self.target])
        eigenstates = self.eigenstates(int(chosen.max()))

        def draw(samples: int) -> dict[str, Tensor]:
            shape = (samples, len(chosen))
            coefficients = torch.randn(shape, generator=generator, dtype=torch.float64)
            target = coefficients @ eigenstates[chosen - 1]
            target = target / target.norm(dim=1, keepdim=True)
            start = eigenstates[0].expand(samples, -1)
            return {key: _from_real(v) for key, v in (("start", start), ("target", target))}

        return draw(self.train_size), draw(self.test_size)

    def hamiltonian_diagonal(self, control: Tensor) -> Tensor:
        """Diagonals of H, real (…, S), under fields (…)."""
        return 2 / self.spacing**2 + control.unsqueeze(-1) * self._positions(control)

    def step_matrices(self, control: Tensor) -> Tensor:
        """Crank–Nicolson matrices, complex (…, S, S), under fields (…)."""
        return crank_nicolson_matrices(*self._half_step(control))

    def step_change(self, control: Tensor, matrices: Tensor, before: Tensor, after: Tensor):
        r"""Derivative of steps by their control, complex (…, S, 1).

        Differentiating :math:`(1 + Z) \psi_{t+1} = (1 - Z) \psi_t` gives
        :math:`-(1 + Z)^{-1} Z' (\psi_t + \psi_{t+1})`, and the step matrix M knows the inverse:
        :math:`(1 + Z)^{-1} = (M + 1) / 2`.
        """
        force = -0.5j * self.dt * self._positions(control) * (before + after)
        force = force.unsqueeze(-1)
        return (matrices @ force + force) / 2

    def textbook_step(self, state: Tensor, control: Tensor) -> Tensor:
        """Advance states (…, S) under fields (…) by one dense solve."""
        off_diagonal = torch.ones(self.interior - 1, dtype=control.dtype, device=control.device)
        neighbours = torch.diag_embed(off_diagonal, 1) + torch.diag_embed(off_diagonal, -1)
        hamiltonian = torch.diag_embed(self.hamiltonian_diagonal(control)).add(
            neighbours, alpha=-1 / self.spacing**2
        )
        half = 0.5j * self.dt * hamiltonian
        one = torch.eye(self.interior, dtype=state.dtype, device=state.device)
        return torch.linalg.solve(one + half, state - (half @ state.unsqueeze(-1)).squeeze(-1))

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Final wave function under the field that the network chooses.

        Args:
            network: Maps targets (B, 2 S) to controls (B, T).
            batch: ``start`` and ``target``, both (B, S, 2), of the network's dtype and device.

        Returns:
            Wave function after T time steps, (B, S, 2), real and imaginary parts.
        """
        controls = network(batch["target"].flatten(1))
        final = self._simulate(batch["start"], controls, trajectory=False)
        return torch.view_as_real(final).to(controls.dtype)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        r"""Missing fidelity :math:`1 - |\langle \text{target}, \psi \rangle|^2`, mean over samples.

        Args:
            prediction: Final wave functions (B, S, 2).
            batch: ``target`` (B, S, 2); other entries are not used.

        Returns:
            Scalar loss.
        """
        # In double precision, so that fidelities close to 1 keep their last digits.
        psi, target = prediction.double(), _normalised(batch["target"])
        real = (target * psi).sum((1, 2))
        imaginary = (target[..., 0] * psi[..., 1] - target[..., 1] * psi[..., 0]).sum(1)
        missing = 1 - real.square() - imaginary.square()
        if self.projection_correction:
            scale = 1 / real.detach().abs().clamp_min(torch.finfo(prediction.dtype).eps)
            # The value stays as it is, the gradient is scaled.
            missing = missing.detach() + scale * (missing - missing.detach())
        return missing.mean().to(prediction.dtype)

    def plain(self) -> Self:
        """The same problem with plain autograd through the time loop."""
        return replace(self, rollout="loop")

    @torch.no_grad()
    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray | list[str]]:
        """Wave functions over time under the network's control, for figures.

        Args:
            network: Maps targets (k, 2 S) to controls (k, T).
            batch: ``start`` and ``target``, both (k, S, 2).

        Returns:
            ``time`` (T+1,), ``control_time`` (T,) with the starts of the steps, ``position``
            (S,), probability ``density`` (k, T+1, S) and ``target_density`` (k, S) per unit of
            length, ``populations`` (k, T+1, N) and ``target_populations`` (k, N) of the lowest
            field-free eigenstates with their ``population_names``, and ``control`` (k, T); float64.
        """
        control = network(batch["target"].flatten(1))
        psi = self._simulate(batch["start"], control, trajectory=True).to(torch.complex128)
        target = torch.view_as_complex(batch["target"].double().contiguous())
        states = self.eigenstates(min(SHOWN_STATES, self.interior)).to(psi)
        time = self.dt * np.arange(self.time_steps + 1)
        tensors = {
            "position": self._positions(control.double()),
            "density": psi.abs().square() / self.spacing,
            "target_density": target.abs().square() / self.spacing,
            "populations": (psi @ states.T).abs().square(),
            "target_populations": (target @ states.T).abs().square(),
            "control": control.double(),
        }
        return {
            "time": time,
            "control_time": time[:-1],
            "population_names": [f"n = {n + 1}" for n in range(len(states))],
            **{key: value.cpu().numpy() for key, value in tensors.items()},
        }

    def _simulate(self, start: Tensor, controls: Tensor, trajectory: bool) -> Tensor:
        """Final wave functions, complex (B, S); all, (B, T + 1, S), as a trajectory."""
        if self.rollout == "loop":
            state = torch.view_as_complex(start.contiguous())
            step, method = self.textbook_step, "loop"
        elif not torch.is_grad_enabled() and len(start) >= _FEW:
            return self._states(start, controls, trajectory)
        else:
            # Rounding adds up over hundreds of steps, and double precision costs little here.
            state = torch.view_as_complex(_normalised(start))
            controls = controls.double()
            step, method = hig.LinearStep(self.step_matrices, self.step_change), "auto"
        found = hig.rollout(step, state, controls, trajectory, method)
        return found[1] if trajectory else found

    def _states(self, start: Tensor, controls: Tensor, trajectory: bool) -> Tensor:
        """The same without a graph, several times as fast for many samples."""
        states = [torch.view_as_complex(_normalised(start))]
        for chosen in controls.double().T.split(_TIMES):
            found = crank_nicolson_states(states[-1], *self._half_step(chosen))
            states = [*(states if trajectory else ()), *found]
        return torch.stack(states, 1) if trajectory else states[-1]

    def _half_step(self, control: Tensor) -> tuple[Tensor, complex]:
        """Diagonals (…, S) of i dt H / 2 under fields (…), and the entry next to them."""
        half = 0.5 * self.dt
        diagonal = half * self.hamiltonian_diagonal(control)
        return torch.complex(torch.zeros_like(diagonal), diagonal), -1j * half / self.spacing**2

    def _positions(self, like: Tensor) -> Tensor:
        """Positions of the interior grid points (S,)."""
        index = torch.arange(1, self.interior + 1, dtype=like.dtype, device=like.device)
        return self.spacing * index


def _normalised(wave: Tensor) -> Tensor:
    """Wave functions (…, S, 2) in float64, without what rounding has done to their norm."""
    wave = wave.double()
    return wave / torch.linalg.vector_norm(wave, dim=(-2, -1), keepdim=True)


def _from_real(wave: Tensor) -> Tensor:
    """(…,) -> (…, 2): a real wave function as real and imaginary parts."""
    return torch.stack([wave, torch.zeros_like(wave)], -1)
