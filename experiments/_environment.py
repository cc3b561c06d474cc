"""What has to be settled before torch is imported."""

import os


def prepare() -> None:
    """Let idle threads sleep soon, unless the user has chosen otherwise.

    By default the threads of OpenMP spin for long while they wait for one another. Where another
    process has one of the cores, all others then burn the time of each short operation: a step of
    small matrices becomes ten to a hundred times slower. Without any spinning, waking them up
    makes the decomposition of a few hundred rows half as slow again on a quiet machine; a
    microsecond of it avoids both, where the runtime can be told (GNU's, which torch has on Linux).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
