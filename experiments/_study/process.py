"""A training run in a process of its own, which has not to import torch first."""

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
# is what every optimiser of torch imports when it is made.
_IMPORTED = ("experiments", "problems._fields", "torch._dynamo")

# To start a process asks all others for their exit status, which can be had once. Where that is
# done while a thread waits for one of them, the thread may get none.
_STATUS = threading.Lock()


def run_module(module: str, arguments: Sequence[str], log: Path) -> int:
    """What ``python -m <module> <arguments>`` does, in a copy of a process that has all it needs.

    May be called from several threads. The first call starts that process, which does nothing but
    to be copied. Where the system can copy none (Windows), a run begins from nothing.

    Args:
        module: The module, by its full name.
        arguments: Command line.
        log: Gets what the run prints; overwritten.

    Returns:
        Exit status; minus the number of the signal that has ended the process.
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
    # The results tell by what command they come.
    sys.orig_argv = [sys.executable, "-m", module, *arguments]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_the_study() -> None:
    """Save and stop where the process has gone that wants the results."""
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
