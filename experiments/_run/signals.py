"""Ctrl-C and SIGTERM: requests to stop a run between two steps."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Self

INTERRUPTED, TERMINATED = "interrupted", "terminated"
STOPPED = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
# Exit status that a shell reports for a process that the signal has ended.
EXIT_STATUS = {name: 128 + number for number, name in STOPPED.items()}


class Signals:
    """Handler of these signals: records the first; a second of the same kind ends the process.

    Parameters that a step is changing are of no use to anyone, hence the wait for its end. Signals
    that are ignored, as in the background of a shell script, stay ignored. Python lets the main
    thread alone handle signals: in others this does nothing.

    Args:
        passed_on: Take note of further ones too: ``torchrun`` passes on those that its processes
            have had already, and ends them itself after half a minute.
        quiet: Do not report the first signal on stderr.

    Attributes:
        number: Number of the last signal, 0 if there was none.
    """

    def __init__(self, quiet: bool = False, passed_on: bool = False):
        self.number = 0
        self._quiet, self._passed_on = quiet, passed_on
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPED:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # None: not Python's, not to be restored
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # The system's default handler ends the process also during a long call outside Python.
        if not self._passed_on:
            signal.signal(number, signal.SIG_DFL)
        self.number = number
        if not self._quiet:
            # Not print, which may be interrupted by this very handler and then refuses.
            text = f"\n{STOPPED[number]}: stopping after this step; once more ends it at once\n"
            with suppress(OSError):  # a terminal that has hung up must not end the step half-way
                os.write(sys.__stderr__.fileno(), text.encode())
