"""Batches of a run, with a state that can be saved."""

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from problems import Batch, Problem, samples


class BatchSizeError(ValueError):
    """Batch size above the number of training samples; the text has the largest one."""


def check_batch_size(size: int, train: Batch) -> None:
    """Refuse with a `BatchSizeError` a size above the number of training samples."""
    if size > samples(train):
        raise BatchSizeError(
            f"the batch size must be at most {samples(train)}, the number of training samples, got "
            f"{size}; give {samples(train)} or fewer, or more training data"
        )


def first_batch(problem: Problem, size: int, device: str = "cpu") -> dict[str, Tensor]:
    """Draw data of seed 0 and return their first batch, in float32, for measurements."""
    train, _ = problem.data(torch.Generator().manual_seed(0))
    train = {key: value.to(device, torch.float32) for key, value in train.items()}
    return dict(next(iter(problem.batches(train, size, torch.Generator().manual_seed(0)))))


class Batches:
    """Iterator over the batches of a problem, with a state that can be restored.

    A problem draws from its generator now and then, and yields batches of the samples drawn. The
    state is that of the generator before the last draw, and the number of batches since; a problem
    that never draws has one order, from the start.

    Args:
        problem: Whose `Problem.batches` to take.
        train: Training data, on the device and in the dtype of the training.
        size: Samples per batch.
        generator: CPU generator of the problem's draws.

    Raises:
        BatchSizeError: A problem that never draws has fewer samples.
    """

    def __init__(self, problem: Problem, train: Batch, size: int, generator: torch.Generator):
        self._generator = generator
        self._before = generator.get_state()
        self._taken = 0
        fixed = type(problem).batches is Problem.batches
        self._period = math.ceil(samples(train) / size) if fixed else None
        if fixed:
            check_batch_size(size, train)
        self._start = lambda: problem.batches(train, size, generator)
        self._batches = self._start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        before = self._generator.get_state()
        batch = next(self._batches)
        if not torch.equal(before, self._generator.get_state()):
            self._before, self._taken = before, 0
        self._taken += 1
        if self._period:  # hours later, not millions of batches to pass over
            self._taken %= self._period
        return batch

    def state_dict(self) -> dict[str, object]:
        """The generator before its last draw and now, and the batches since that draw."""
        now = self._generator.get_state()
        return {"before": self._before, "now": now, "taken": self._taken}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Repeat the last draw and skip the batches that have been taken.

        Raises a RuntimeError if this problem's batches depend on more than the generator's state.
        """
        self._before, self._taken = state_dict["before"], state_dict["taken"]
        self._generator.set_state(self._before.clone())  # of a view torch takes other bytes
        self._batches = self._start()
        for _ in islice(self._batches, self._taken):
            pass
        if not torch.equal(self._generator.get_state(), state_dict["now"]):
            raise RuntimeError(
                f"after {self._taken} batches the generator is not in the state of the checkpoint: "
                "batches() of this problem keeps more between its draws than the generator's "
                "state; run it without --resume"
            )
