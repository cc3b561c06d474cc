"""Differentiable physics problems: simulator, data, network and loss, one file each.

A problem satisfies `problems.Problem`; nothing else is asked of it, so that a training loop,
a benchmark or a notebook can take any of them.
"""

from problems._problem import Problem, Settings
from problems.nonlinear_oscillators import NonlinearOscillators

__all__ = ["NonlinearOscillators", "Problem", "Settings"]
