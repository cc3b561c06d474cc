"""A training run in a process of its own, which has not to import torch first."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

# Imported once for all runs of a study: each of them would take three seconds for it. The last one
# is what every optimiser of torch imports when it is made.
_IMPORTED = ("experiments", "problems._fields", "torch._dynamo")


def run_module(module: str, arguments: Sequence[str], log: Path) -> int:
    """What ``python -m <module> <arguments>`` does, in a copy of a process that has all it needs.

    The first call starts that process, which does nothing but to be copied. Where the system can
    copy none (Windows), a run begins from nothing.

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
    process.start()
    process.join()
    return process.exitcode


def _run(module: str, arguments: list[str], log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    os.close(file)
    # The results tell by what command they come.
    sys.orig_argv = [sys.executable, "-m", module, *arguments]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
