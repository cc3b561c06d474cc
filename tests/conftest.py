"""What all tests share."""

import signal

import pytest
import torch

from tests.faults import TALLY

# The tests' matrices are tiny: a second thread gains nothing, and where the cores are shared its
# waiting costs minutes.
torch.set_num_threads(1)

# Shells start what runs in the background with Ctrl-C ignored, and the tests interrupt themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter):
    """Tell how many faults were injected, where any were."""
    if TALLY["injected"]:
        counts = f"{TALLY['injected']}, parameters corrupted: {TALLY['corrupted']}"
        terminalreporter.write_line(f"faults injected: {counts}")


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
