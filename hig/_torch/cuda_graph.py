"""A part of a step that is recorded on the GPU once and replayed from then on.

The host then starts one graph where it started a thousand kernels. What it decided on the way, by
numbers that it read from the device, is decided in the first run alone.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Recording", "check_recordable", "decided"]

T = TypeVar("T")

# Before a graph is recorded the libraries must have their workspaces and plans.
WARM_UPS = 3


class Recording(Generic[T]):
    """Runs a computation as it is a few times, then records it, then replays the record.

    What it returns lives in the memory of the record from then on: each replay overwrites it.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._runs, self._decisions = 0, _Decisions()
        self._graph: Any = None
        self._result: T | None = None

    def __call__(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result for the present values of all tensors that the computation reads.

        Args:
            key: what decides on the operations; with another one all begins anew.
            compute: the computation; not called where a record is replayed.
        """
        if key != self._key:
            self._key, self._runs, self._decisions = key, 0, _Decisions()
            self._graph = self._result = None
        if self._graph is None:
            with self._decisions.at_work():
                if self._runs < WARM_UPS:
                    self._runs += 1
                    return warm_up(compute)
                self._graph, self._result = record(compute)
        self._graph.replay()
        assert self._result is not None
        return self._result


def warm_up(compute: Callable[[], T]) -> T:
    """Run a computation on the stream that will record it.

    A parameter's node in the autograd graph keeps the stream on which it was first used: if that
    were another one, the recording stream would wait for it, which a record does not allow.
    """
    present, own = torch.cuda.current_stream(), recording_stream(torch.cuda.current_device())
    own.wait_stream(present)
    with torch.cuda.stream(own):
        result = compute()
    present.wait_stream(own)
    return result


def record(compute: Callable[[], T]) -> tuple[Any, T]:
    """A CUDA graph of a computation, which has not run yet, and where its results will be."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=recording_stream(torch.cuda.current_device())):
        result = compute()
    return graph, result


@cache
def recording_stream(device: int) -> torch.cuda.Stream:
    """The stream of a device on which steps are recorded."""
    return torch.cuda.Stream(device)


def decided(question: Callable[[], T]) -> T:
    """The answer to a question that makes the host read numbers of the device.

    Inside a `Recording` it is asked in the first run, and has the same answer from then on.
    """
    return question() if _at_work is None else _at_work.next(question)


class _Decisions:
    """Answers in the order of their questions."""

    def __init__(self) -> None:
        self._answers: list[Any] = []
        self._asked = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        global _at_work
        before, _at_work, self._asked = _at_work, self, 0
        try:
            yield
        finally:
            _at_work = before

    def next(self, question: Callable[[], T]) -> T:
        if self._asked == len(self._answers):
            self._answers.append(question())
        self._asked += 1
        answer: T = self._answers[self._asked - 1]
        return answer


# Of the process, not of a thread: autograd runs backward passes on a GPU in a thread of its own.
_at_work: _Decisions | None = None


def check_recordable(parameters: list[Tensor], processes: int, method: object) -> None:
    """Raise unless steps on these parameters can be recorded.

    Args:
        parameters: the parameters of the step.
        processes: how many take it together.
        method: how the Jacobian is decomposed.

    Raises:
        ValueError: they are not on a GPU, or the step is one that asks the host on the way.
    """
    device = parameters[0].device
    if device.type != "cuda":
        raise ValueError(
            f"cuda_graph=True records steps on a GPU, and the parameters are on {device}; move "
            "network and data there, or leave it out"
        )
    if processes > 1:
        raise ValueError(
            f"cuda_graph=True records the steps of one process, and {processes} take this one "
            "together; pass process_group=None, or leave it out"
        )
    if method not in ("auto", "gram", "svd"):
        raise ValueError(
            "cuda_graph=True records one Jacobian, and method='lanczos' takes products with it as "
            "they are needed; take method='gram', or leave it out"
        )
