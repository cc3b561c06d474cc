"""What all tests share."""

import gc
import os
import signal
import tempfile

import hypothesis
import pytest
import torch
from hypothesis.configuration import set_hypothesis_home_dir

from tests.faults import TALLY

# The tests' matrices are tiny: a second thread gains nothing, and where the cores are shared its
# waiting costs minutes. `make test-portable` asks for more: no result may depend on the number.
torch.set_num_threads(int(os.environ.get("HIG_TEST_THREADS", "1")))

# Shells start what runs in the background with Ctrl-C ignored, and the tests interrupt themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The same examples in every run, a few by default; nothing is kept from one run to the next.
hypothesis.settings.register_profile(
    "hig",
    max_examples=int(os.environ.get("HIG_EXAMPLES", "30")),
    derandomize=True,
    database=None,
    deadline=None,
)
hypothesis.settings.load_profile("hig")
set_hypothesis_home_dir(tempfile.mkdtemp(prefix="hypothesis-"))


def pytest_terminal_summary(terminalreporter):
    """Report how many faults were injected, where any were."""
    if TALLY["injected"]:
        counts = f"{TALLY['injected']}, parameters corrupted: {TALLY['corrupted']}"
        terminalreporter.write_line(f"faults injected: {counts}")


def pytest_collection_finish():
    """Keep Python's collector from visiting every collected test again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
