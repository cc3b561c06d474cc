"""Differentiable physics problems: simulator, data, network and loss, one file each.

A problem satisfies `problems.Problem`; nothing else is asked of it, so that a training loop,
a benchmark or a notebook can take any of them.

The problems that PhiFlow simulates are imported when they are first asked for: that takes a second
or two, and the others do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from problems._problem import (
    Batch,
    DataError,
    Problem,
    Settings,
    location,
    parameter,
    samples,
    slices,
)
from problems._several_losses import SeveralLosses
from problems.cart_pole import CartPole
from problems.conditioning_toy import ConditioningToy
from problems.nonlinear_oscillators import NonlinearOscillators
from problems.quantum_dipole import QuantumDipole
from problems.reaction_diffusion import ReactionDiffusion

if TYPE_CHECKING:
    from problems.burgers_control import BurgersControl
    from problems.poisson import Poisson
    from problems.poisson_source import PoissonSource
    from problems.smoke_control import SmokeControl

__all__ = [
    "Batch",
    "BurgersControl",
    "CartPole",
    "ConditioningToy",
    "DataError",
    "NonlinearOscillators",
    "Poisson",
    "PoissonSource",
    "Problem",
    "QuantumDipole",
    "ReactionDiffusion",
    "Settings",
    "SeveralLosses",
    "SmokeControl",
    "location",
    "parameter",
    "samples",
    "slices",
]

_ON_FIRST_USE = {
    "BurgersControl": "problems.burgers_control",
    "Poisson": "problems.poisson",
    "PoissonSource": "problems.poisson_source",
    "SmokeControl": "problems.smoke_control",
}


def __getattr__(name: str) -> type[Problem]:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ON_FIRST_USE[name]), name)
