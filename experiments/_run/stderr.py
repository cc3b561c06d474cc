"""A stderr that may fail without a cost: on a full disk, into a closed pipe, or where none is."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

# ValueError: it is closed.
_FAILURES = (OSError, ValueError)


class Unfailing:
    """Writes to a text stream as long as that goes.

    Args:
        stream: The stream, asked for everything else.

    Attributes:
        failed: Whether a part has been lost.
    """

    def __init__(self, stream: TextIO):
        self._stream, self.failed = stream, False

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or lose it; returns its length."""
        try:
            self._stream.write(text)
        except _FAILURES:
            self.failed = True
        return len(text)

    def flush(self) -> None:
        """Bring to its end what has been written, if that goes."""
        try:
            self._stream.flush()
        except _FAILURES:
            self.failed = True

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        with suppress(*_FAILURES):
            return self._stream.isatty()
        return False


@contextmanager
def unfailing_stderr() -> Iterator[None]:
    """Let nothing that is told on stderr end what is done in the context.

    One that has failed stays replaced: Python flushes it at the end, and would exit with 120.
    """
    before = sys.stderr
    # None where a shell has closed it; then a file of the run could get its number.
    sys.stderr = Unfailing(Path(os.devnull).open("w") if before is None else before)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stderr.flush()
        if before is not None and not sys.stderr.failed:
            sys.stderr = before
