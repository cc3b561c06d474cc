"""Training run in a copy of a process that has imported torch already."""

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing import connection
from pathlib import Path

# Imported once for all runs of a study: each of them would take three seconds for it. The last one
# is imported by every optimiser of torch when it is made.
_IMPORTED = ("experiments", "problems._fields", "torch._dynamo")

# Starting a process collects the exit status of all others, which can be read once. A thread that
# waits for one of them meanwhile may get none.
_STATUS = threading.Lock()


def run_module(module: str, arguments: Sequence[str], log: Path) -> int:
    """Run ``python -m <module> <arguments>`` in a copy of a process that has imported torch.

    The log gets the output. Returns the exit status; minus the number of the signal that ended it.
    May be called from several threads. The first call starts that process, which only has to
    wait to be copied. If the system cannot copy processes (Windows), a run starts a new one.
    """
    can_copy = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if can_copy else "spawn")
    context.set_forkserver_preload(list(_IMPORTED))
    process = context.Process(target=_run, args=(module, [*arguments], str(log)))
    with _STATUS:
        process.start()
    connection.wait([process.sentinel])
    with _STATUS:
        process.join()
        return process.exitcode


def _run(module: str, arguments: list[str], log: str) -> None:
    _write_to(log)
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    # Recorded in the results as their command.
    sys.orig_argv = [sys.executable, "-m", module, *arguments]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_the_study() -> None:
    """Save and stop if the process that wants the results has gone."""
    study = multiprocessing.parent_process()
    if study is not None:
        connection.wait([study.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _write_to(log: str) -> None:
    """Redirect standard output and error to a file, also those of the copied process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
