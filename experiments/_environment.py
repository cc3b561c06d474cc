"""What has to be settled before torch is imported."""

import os


def prepare() -> None:
    """Let idle threads sleep, unless the user has chosen otherwise.

    By default the threads of OpenMP spin while they wait for one another. Where another process
    has one of the cores, all others then burn the time of each short operation: a step of small
    matrices becomes ten to a hundred times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
