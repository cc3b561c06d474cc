"""Problems by name, for command lines that take any of them."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from types import MappingProxyType

from problems import Problem

#: Class of each problem, by the folder of its submit scripts in `experiments`.
FOLDERS: Mapping[str, str] = MappingProxyType(
    {
        "nonlinear_oscillators": "problems.NonlinearOscillators",
        "quantum_dipole": "problems.QuantumDipole",
        "poisson": "problems.Poisson",
        "poisson_source": "problems.PoissonSource",
        "cart_pole": "problems.CartPole",
        "burgers_control": "problems.BurgersControl",
        "reaction_diffusion": "problems.ReactionDiffusion",
        "smoke_control": "problems.SmokeControl",
        "conditioning_toy": "problems.ConditioningToy",
        "pinn/burgers": "problems.pinn.Burgers",
        "pinn/schroedinger": "problems.pinn.Schroedinger",
        "pinn/kovasznay": "problems.pinn.Kovasznay",
        "pinn/beltrami": "problems.pinn.Beltrami",
        "multitask/toy": "problems.multitask.Toy",
        "multitask/celeba": "problems.multitask.CelebA",
    }
)


def make(folder: str) -> Problem:
    """Make the problem of a folder, with its published parameters.

    An ImportError says if the package is not installed.

    Some problems import a simulation package, which takes seconds: only the requested one does.
    """
    module, _, name = FOLDERS[folder].rpartition(".")
    return getattr(import_module(module), name)()


#: Constructors of the problems with one loss, with their published parameters.
PROBLEMS: Mapping[str, Callable[[], Problem]] = MappingProxyType(
    {folder: partial(make, folder) for folder in FOLDERS if "/" not in folder}
)
