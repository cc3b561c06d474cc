"""The problems by name, for command lines that take any of them."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import problems
from problems import Problem


def _make(name: str) -> Problem:
    # Some problems import a simulation package for seconds: only the one that is asked for does.
    return getattr(problems, name)()


#: What makes each problem, with its published parameters.
PROBLEMS: Mapping[str, Callable[[], Problem]] = MappingProxyType(
    {
        "nonlinear_oscillators": partial(_make, "NonlinearOscillators"),
        "quantum_dipole": partial(_make, "QuantumDipole"),
        "poisson": partial(_make, "Poisson"),
        "poisson_source": partial(_make, "PoissonSource"),
        "conditioning_toy": partial(_make, "ConditioningToy"),
    }
)
