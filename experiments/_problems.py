"""The problems by name, for command lines that take any of them."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from types import MappingProxyType

from problems import Problem


def _make(module: str, name: str) -> Problem:
    # Some problems import a simulation package for seconds: only the one that is asked for does.
    return getattr(import_module(module), name)()


#: What makes each problem, with its published parameters.
PROBLEMS: Mapping[str, Callable[[], Problem]] = MappingProxyType(
    {
        "nonlinear_oscillators": partial(
            _make, "problems.nonlinear_oscillators", "NonlinearOscillators"
        ),
        "quantum_dipole": partial(_make, "problems.quantum_dipole", "QuantumDipole"),
        "poisson": partial(_make, "problems.poisson", "Poisson"),
        "poisson_source": partial(_make, "problems.poisson_source", "PoissonSource"),
        "conditioning_toy": partial(_make, "problems.conditioning_toy", "ConditioningToy"),
    }
)
