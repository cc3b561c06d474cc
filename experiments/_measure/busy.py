"""Wall-clock of a step at torch's default of threads and on one, next to busy processes."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments._measure.command import table
from experiments._problems import PROBLEMS

SMALL = "128 rows"
METHODS = ("hig", "adam")
WORKER = Path(__file__).with_name("busy_worker.py")
# Variables that determine the threads: a user's own script sets none of them.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen]]:
    """Keep some processes busy for as long as the context is open."""
    program = "while True: pass"
    others = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    try:
        yield others
    finally:
        for process in others:
            process.kill()
            process.wait()


def beside_busy(
    cases: Sequence[str], busy: int, rounds: int, seconds: float
) -> list[dict[str, object]]:
    """Measure steps in processes of their own, by turns at the default of threads and on one.

    ``cases`` are keys of ``PROBLEMS``, or ``"128 rows"``; a turn takes ``seconds`` beside ``busy``
    other processes.

    Returns:
        One row per case and method: ``case``, ``method``, ``median_ms`` and ``mean_ms`` at the
        default, ``one_median_ms`` and ``one_mean_ms`` on one thread, and ``ratio`` of the means,
        which counts every stalled step.
    """
    rows: list[dict[str, object]] = []
    with busy_processes(busy):
        for case in cases:
            for method in METHODS:
                default: list[float] = []
                one: list[float] = []
                for _ in range(rounds):
                    default += _steps(case, method, seconds, {})
                    one += _steps(case, method, seconds, {"OMP_NUM_THREADS": "1"})
                rows.append(
                    {
                        "case": case,
                        "method": method,
                        "median_ms": 1e3 * statistics.median(default),
                        "mean_ms": 1e3 * statistics.mean(default),
                        "one_median_ms": 1e3 * statistics.median(one),
                        "one_mean_ms": 1e3 * statistics.mean(one),
                        "ratio": statistics.mean(default) / statistics.mean(one),
                    }
                )
    return rows


def busy_table(rows: Sequence[dict[str, object]]) -> str:
    """Format the rows as a Markdown table."""
    columns = {
        "step": "{method}, {case}",
        " default threads: median, mean ms": "{median_ms:.1f}, {mean_ms:.1f}",
        " one thread: both": "{one_median_ms:.1f}, {one_mean_ms:.1f}",
        " ratio of the means": "{ratio:.2f}",
    }
    return table(columns, rows)


def _steps(case: str, method: str, seconds: float, threads: dict[str, str]) -> list[float]:
    """Seconds of each step in a process of its own."""
    kind = case
    if case != SMALL:
        problem = type(PROBLEMS[case]())
        kind = f"{problem.__module__}:{problem.__name__}"
    environment = {key: value for key, value in os.environ.items() if key not in THREADS}
    root = str(WORKER.parents[2])
    path = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, str(WORKER), kind, method, str(seconds)],
        env={**environment, "PYTHONPATH": path, **threads},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)
