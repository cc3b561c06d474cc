"""Selectors of the losses to differentiate next, if a step differentiates only some."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hig.arguments import check_count
from hig.conflictfree._validation import check_state
from hig.errors import described

__all__ = ["OrderedSliceSelector", "RandomSliceSelector", "has_zero"]


class OrderedSliceSelector:
    """Selector of the elements of a sequence in cyclic order, n per call.

    Attributes:
        start_index: index of the next element.
    """

    def __init__(self) -> None:
        self.start_index = 0

    def select(self, n: int, source_sequence: Sequence[Any]) -> tuple[list[int], Any]:
        """Select the next n elements.

        Args:
            n: number of elements.
            source_sequence: losses, loss functions, gradients, ...

        Returns:
            Their indexes, and a list of them; for n = 1 the element itself.

        Raises:
            ValueError: the sequence is shorter than n, or n is not positive.
        """
        length = len(source_sequence)
        _check(n, length)
        indexes = [(self.start_index + offset) % length for offset in range(n)]
        self.start_index = (self.start_index + n) % length
        return indexes, _elements(indexes, source_sequence)

    def state_dict(self) -> dict[str, Any]:
        """Return the index of the next element."""
        return {"start_index": self.start_index}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of another selector.

        Raises:
            ValueError: it is not the state of such a selector.
        """
        check_state(state_dict, self, "start_index")
        self.start_index = state_dict["start_index"]


class RandomSliceSelector:
    """Selector of random elements of a sequence, n different ones per call.

    Args:
        generator: source of random numbers; numpy's global one if None, which is not part of the
            ``state_dict``.

    Raises:
        TypeError: the generator is not a ``numpy.random.Generator``.
    """

    # In quotes: numpy imports its random numbers when they are first named.
    def __init__(self, generator: "np.random.Generator | None" = None):
        if generator is not None and not isinstance(generator, np.random.Generator):
            raise TypeError(
                f"generator must be a numpy Generator, got {described(generator)}; make it with "
                "np.random.default_rng(seed)"
            )
        self.generator = generator

    def select(self, n: int, source_sequence: Sequence[Any]) -> tuple[Sequence[int], Any]:
        """Select n elements.

        Args:
            n: number of elements.
            source_sequence: losses, loss functions, gradients, ...

        Returns:
            Their indexes, a list with a generator and an array of numpy without one; and a list of
            the elements, for n = 1 the element itself.

        Raises:
            ValueError: the sequence is shorter than n, or n is not positive.
        """
        length = len(source_sequence)
        _check(n, length)
        if self.generator is not None:
            indexes = self.generator.choice(length, n, replace=False).tolist()
            return indexes, _elements(indexes, source_sequence)
        # Scripts written for the original call np.random.seed and expect an array.
        choice = np.random.choice
        array: Any = choice(length, n, replace=False)
        return array, _elements(array.tolist(), source_sequence)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator; empty without one."""
        return {"generator": self.generator.bit_generator.state} if self.generator else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of another selector.

        Raises:
            ValueError: only one of the two selectors has a generator.
        """
        if ("generator" in state_dict) != (self.generator is not None):
            raise ValueError(
                "the state was saved with a generator and this selector has none, or the other "
                "way round; construct both as RandomSliceSelector(np.random.default_rng(seed))"
            )
        if self.generator:
            self.generator.bit_generator.state = state_dict["generator"]


def has_zero(lists: Sequence[Any]) -> bool:
    """Return whether an element is zero: in a list of counters, a loss without any gradient."""
    return any(element == 0 for element in lists)


def _check(n: int, length: int) -> None:
    if check_count(n, "n", least=None) < 1 or n > length:
        raise ValueError(f"n must be between 1 and the length of the sequence, {length}, got {n}")


def _elements(indexes: list[int], sequence: Sequence[Any]) -> Any:
    if len(indexes) == 1:
        return sequence[indexes[0]]
    return [sequence[index] for index in indexes]
