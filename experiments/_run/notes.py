"""Notes of the reports of a run, each kind once."""

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")


class Notes:
    """Distinct notes of the reports of a run, with the step of their first appearance."""

    def __init__(self):
        self._first: dict[str, tuple[int, str]] = {}

    def add(self, step: int, texts: Iterable[str]) -> list[str]:
        """Record the notes of a step; those that differ in numbers only count as one.

        Returns:
            Those that are the first of their kind.
        """
        before = len(self._first)
        for text in texts:
            self._first.setdefault(_NUMBER.sub("#", text), (step, text))
        return self.texts[before:]

    @property
    def found(self) -> tuple[tuple[int, str], ...]:
        """Pairs of step and note, in the order of their appearance."""
        return tuple(self._first.values())

    @property
    def texts(self) -> list[str]:
        """The notes, in the order of their appearance."""
        return [text for _, text in self._first.values()]
