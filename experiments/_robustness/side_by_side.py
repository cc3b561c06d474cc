"""Runs side by side, each in a process of its own on one thread."""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
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

# Called with a case, the exit status of its process and the text of its error; True ends all.
Report = Callable[[Case, int, str], bool | None]


class SideBySide:
    """Runs cases in processes of their own and saves their records.

    Args:
        out: Folder of the records.
        workers: Number of processes at a time.
        origin: Provenance of the records.
    """

    def __init__(self, out: Path, workers: int, origin: Mapping[str, str]):
        self._out, self._workers, self._origin = out, workers, dict(origin)
        self._context = _context()
        self._running: dict[BaseProcess, tuple[Case, Connection]] = {}

    def run(self, cases: Iterable[Case], signals: Signals, report: Report) -> None:
        """Run those cases that are not done yet.

        A signal ends the running ones, which are repeated by the next call: records are never
        partial.
        """
        left, over = iter(cases), False
        try:
            while not (over or signals.number):
                self._fill(left)
                if not self._running:
                    return
                connection.wait([process.sentinel for process in self._running], _PATIENCE)
                for process in [p for p in self._running if not p.is_alive()]:
                    process.join()
                    case, errors = self._running.pop(process)
                    over = bool(report(case, process.exitcode, _text(errors))) or over
        finally:
            for process in self._running:
                process.terminate()
            for process in self._running:
                process.join()

    def _fill(self, left: Iterator[Case]) -> None:
        """Start the next cases, up to the number of workers."""
        while len(self._running) < self._workers:
            case = next((case for case in left if done(case, self._out) is None), None)
            if case is None:
                return
            errors, of_process = self._context.Pipe(duplex=False)
            arguments = (case, self._out, self._origin, of_process)
            process = self._context.Process(target=_run, args=arguments, daemon=True)
            process.start()
            of_process.close()  # the end of the process is the end of the pipe
            self._running[process] = case, errors


def _context() -> multiprocessing.context.BaseContext:
    """Start the process that has imported torch and waits to be copied, if the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    # It inherits the mask: a Ctrl-C in the seconds in which it imports would end it. This process
    # gets its own a moment later. The tracker first, as starting it clears the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _text(errors: Connection) -> str:
    """Read what a process that has ended has sent, "" if it has sent nothing."""
    with errors:
        try:
            return errors.recv()
        except EOFError:
            return ""


def _run(case: Case, out: Path, origin: dict[str, str], errors: Connection) -> None:
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    try:
        save(measure(case, origin), out)
    except (BatchSizeError, DataError, ImportError, OSError) as error:
        errors.send(str(error))
        sys.exit(1)


def _end_with_the_first() -> None:
    """End this process if the one that wants the records has gone."""
    first = multiprocessing.parent_process()
    if first is not None:
        connection.wait([first.sentinel])
        signal.raise_signal(signal.SIGTERM)
