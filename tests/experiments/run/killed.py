"""A run that writes a checkpoint after every step, and is killed at a moment of its life.

``python -m tests.experiments.run.killed MOMENT COUNT ARGUMENTS ...``: at the given call of
something, or after so many milliseconds.
"""

import os
import pathlib
import signal
import sys
import threading

import hig
from experiments import submit
from experiments._run import checkpoint, loop
from problems import NonlinearOscillators

PLACES = {
    "step": (loop, "take_step"), "fsync": (os, "fsync"), "rename": (pathlib.Path, "replace"),
    "save": (checkpoint.torch, "save"), "results": (hig, "save_results"),
}  # fmt: skip


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def dying(module, name, count):
    """Let the process die at this call of a function."""
    original, calls = getattr(module, name), []

    def call(*given):
        calls.append(None)
        if len(calls) == count:
            kill()
        return original(*given)

    setattr(module, name, call)


def main(moment, count, *line):
    checkpoint.SHARE = 1e9
    if moment == "time":
        timer = threading.Timer(int(count) / 1000, kill)
        timer.daemon = True
        timer.start()
    elif moment != "never":
        dying(*PLACES[moment], int(count))
    submit(NonlinearOscillators(), "hig", list(line))


if __name__ == "__main__":
    main(*sys.argv[1:])
