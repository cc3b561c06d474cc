"""What all tests share."""

import gc
import os
import signal
import tempfile
from pathlib import Path

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


# Files with few tests that take long. At the end one of them would keep one process busy while the
# others have nothing left to do.
FIRST = [
    "docs/test_tutorials.py",
    "hig/optim/test_levenberg_marquardt_floor.py",
    "hig/test_distributed.py",
    "experiments/study/test_smoke_preset.py",
    "experiments/run/test_processes.py",
    "experiments/cli/test_submit.py",
    "experiments/test_reproducibility.py",
    "test_readme.py",
    "hig/step/test_trust_runs.py",
]


def pytest_configure(config):
    """Let the processes take the files in the order of the collection, not by number of tests."""
    config.option.loadscopereorder = False


def pytest_collection_finish():
    """Keep Python's collector from visiting every collected test again and again.

    A step makes thousands of short-lived objects; few are in cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items):
    """Begin with the files that take long, and skip what needs a GPU where there is none."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(FIRST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
