"""Runs side by side, each in a process of its own on one thread."""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from experiments._robustness.case import Case
from experiments._robustness.records import done, save
from experiments._robustness.training import measure
from experiments._run.batches import BatchSizeError
from experiments._run.signals import Signals
from problems import DataError

# Imported once for all runs; the last one is imported by every optimiser of torch.
_IMPORTED = ("experiments._robustness.training", "torch._dynamo")
# Seconds after which a signal is noticed at the latest.
_PATIENCE = 0.2

# Called with a case and the exit status of its process; True ends all.
Report = Callable[[Case, int], bool]


def run_cases(
    cases: Iterable[Case],
    out: Path,
    workers: int,
    origin: Mapping[str, str],
    signals: Signals,
    report: Report,
) -> None:
    """Run those cases that are not done yet, ``workers`` at a time, and save their records.

    A signal ends the running ones, which are repeated by the next call; records are never partial.
    """
    context = _context()
    left, running = iter(cases), {}
    over = False
    try:
        while not (over or signals.number):
            _fill(running, left, context, out, workers, origin)
            if not running:
                return
            connection.wait([process.sentinel for process in running], _PATIENCE)
            for process in [process for process in running if not process.is_alive()]:
                process.join()
                over |= report(running.pop(process), process.exitcode)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _fill(
    running: dict[BaseProcess, Case],
    left: Iterable[Case],
    context: multiprocessing.context.BaseContext,
    out: Path,
    workers: int,
    origin: Mapping[str, str],
) -> None:
    """Start the next cases, up to the number of workers."""
    while len(running) < workers:
        case = next((case for case in left if done(case, out) is None), None)
        if case is None:
            return
        process = context.Process(target=_run, args=(case, out, dict(origin)), daemon=True)
        process.start()
        running[process] = case


def _context() -> multiprocessing.context.BaseContext:
    can_copy = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if can_copy else "spawn")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


def _run(case: Case, out: Path, origin: dict[str, str]) -> None:
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    try:
        save(measure(case, origin), out)
    except (BatchSizeError, DataError, ImportError, OSError) as error:
        sys.exit(f"error: {case}: {error}")


def _end_with_the_first() -> None:
    """End this process if the one that wants the records has gone."""
    first = multiprocessing.parent_process()
    if first is not None:
        connection.wait([first.sentinel])
        signal.raise_signal(signal.SIGTERM)
