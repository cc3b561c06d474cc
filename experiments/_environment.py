"""Environment variables to set before torch is imported."""

import os


def prepare() -> None:
    """Let idle OpenMP threads sleep soon, unless the user has chosen otherwise.

    By default the threads of OpenMP spin for long while they wait for one another. If another
    process has one of the cores, all others waste the time of each short operation: a step of
    small matrices becomes ten to a hundred times slower. Without any spinning, waking them up
    makes the decomposition of a few hundred rows 1.5 times slower on a quiet machine; spinning for
    a microsecond avoids both, if the runtime has the option (GNU's, which torch has on Linux).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
