"""Checks of whether a simulator is ready for half-inverse gradients, also for test suites."""

from hig.testing._check_simulator import assert_simulator, check_simulator
from hig.testing._report import Check, SimulatorReport

__all__ = ["Check", "SimulatorReport", "assert_simulator", "check_simulator"]
