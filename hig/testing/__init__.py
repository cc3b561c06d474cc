"""Is a simulator ready for half-inverse gradients? Checks to run once, or in a test suite."""

from hig.testing._check_simulator import assert_simulator, check_simulator
from hig.testing._report import Check, SimulatorReport

__all__ = ["Check", "SimulatorReport", "assert_simulator", "check_simulator"]
