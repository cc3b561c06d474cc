"""CUDA graphs: a part of a step is recorded on the GPU once and replayed from then on.

The host then starts one graph instead of a thousand kernels. Decisions that the host took by
numbers read from the device are those of the first run.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["GraphedFunction", "cached_decision", "check_recordable"]

T = TypeVar("T")

# Runs before the recording, in which the libraries allocate their workspaces and plans.
WARM_UPS = 3


class GraphedFunction(Generic[T]):
    """Runs a computation eagerly a few times, then records it, then replays the record.

    The result lives in the memory of the record from then on: each replay overwrites it.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._runs, self._decisions = 0, _Decisions()
        self._graph: Any = None
        self._result: T | None = None

    def __call__(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the result for the present values of all tensors that the computation reads.

        Args:
            key: identifies the operations; another key discards the record.
            compute: the computation; not called when a record is replayed.
        """
        if key != self._key:
            self._key, self._runs, self._decisions = key, 0, _Decisions()
            self._graph = self._result = None
        if self._graph is None:
            with self._decisions.activate():
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
    present, recording = torch.cuda.current_stream(), recording_stream(torch.cuda.current_device())
    recording.wait_stream(present)
    with torch.cuda.stream(recording):
        result = compute()
    present.wait_stream(recording)
    return result


def record(compute: Callable[[], T]) -> tuple[Any, T]:
    """Return a CUDA graph of a computation, not run yet, and the tensors it will write."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=recording_stream(torch.cuda.current_device())):
        result = compute()
    return graph, result


@cache
def recording_stream(device: int) -> torch.cuda.Stream:
    """Return the stream of a device on which steps are recorded."""
    return torch.cuda.Stream(device)


def cached_decision(question: Callable[[], T]) -> T:
    """Evaluate a decision that requires a device synchronisation.

    Inside a `GraphedFunction` it is evaluated in the first run, whose answer is used from then on.
    """
    return question() if _active is None else _active.next(question)


class _Decisions:
    """Answers to the decisions of one computation, in order."""

    def __init__(self) -> None:
        self._answers: list[Any] = []
        self._asked = 0

    @contextmanager
    def activate(self) -> Iterator[None]:
        global _active
        before, _active, self._asked = _active, self, 0
        try:
            yield
        finally:
            _active = before

    def next(self, question: Callable[[], T]) -> T:
        if self._asked == len(self._answers):
            self._answers.append(question())
        self._asked += 1
        answer: T = self._answers[self._asked - 1]
        return answer


# Of the process, not of a thread: autograd runs backward passes on a GPU in a thread of its own.
_active: _Decisions | None = None


def check_recordable(parameters: list[Tensor], processes: int, method: object) -> None:
    """Raise unless steps on these parameters can be recorded.

    Args:
        parameters: the parameters of the step.
        processes: number of process ranks that step together.
        method: method of decomposition.

    Raises:
        ValueError: they are not on a GPU, or the step needs the host on the way.
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
            "they are needed; use method='gram', or leave it out"
        )
