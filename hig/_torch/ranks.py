"""Collective communication between the process ranks of a distributed step."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from hig.errors import DecompositionError, NonFiniteError, RankError, SampleDependenceError

__all__ = ["Communication", "ProcessGroup", "Ranks", "check_process_group"]

# "auto": the default group if torch.distributed is initialised. None: this process alone.
# In quotes: not every torch has been built with it.
ProcessGroup: TypeAlias = "dist.ProcessGroup | str | None"

# Length to which the text of an error is cut before it is sent to the other process ranks.
TEXT_BYTES = 4096
# Errors that every process rank raises with their own type; others become a RankError.
SHARED_ERRORS = (DecompositionError, NonFiniteError, SampleDependenceError)


@dataclass
class Communication:
    """Communication of one process rank with the others in a step.

    Attributes:
        ranks: number of process ranks that step together.
        collectives: number of collective calls.
        received: bytes received, by the ring algorithms: R - 1 parts of an all-gather,
            2 (R - 1) / R of an all-reduce, one broadcast.
        seconds: wall-clock, waiting for slower processes included.
    """

    ranks: int
    collectives: int = 0
    received: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.ranks} processes: {self.collectives} exchanges, {self.received / 1e6:.3g} MB, "
            f"{1e3 * self.seconds:.1f} ms"
        )


class Ranks:
    """Process ranks of a group during one step; without a group, this process alone.

    All methods are collective: every process rank calls the same ones in the same order, with
    tensors of the same shape and dtype. Results have the same bits on all process ranks, but for
    ``total``.

    Args:
        process_group: a group, "auto" for the default group if torch.distributed is
            initialised, or None for this process alone.

    Attributes:
        rank: number of this process in the group, its process rank.
        size: number of processes, R.
        communication: counts of the exchanges.
    """

    def __init__(self, process_group: ProcessGroup = None):
        ready = dist.is_available() and dist.is_initialized()
        alone = process_group is None or (process_group == "auto" and not ready)
        # Not the object of the default group: holding it would outlive its destruction.
        self._group = None if isinstance(process_group, str) else process_group
        self.rank, self.size = 0, 1
        if not alone:
            self.rank, self.size = dist.get_rank(self._group), dist.get_world_size(self._group)
        self.communication = Communication(self.size)

    # -- tensors -------------------------------------------------------------------------------

    def every(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all process ranks, in their order (all-gather)."""
        if self.size == 1:
            return [tensor]
        wire = self._on_group_device(tensor)
        parts = [torch.empty_like(wire) for _ in range(self.size)]
        with self._count_collective(wire, self.size - 1):
            dist.all_gather(parts, wire, group=self._group)
        return [part.to(tensor.device) for part in parts]

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all process ranks (all-reduce)."""
        if self.size == 1:
            return tensor
        wire = self._on_group_device(tensor).clone()
        with self._count_collective(wire, 2 * (self.size - 1) / self.size):
            dist.all_reduce(wire, group=self._group)
        return wire.to(tensor.device)

    def first(self, tensor: Tensor) -> Tensor:
        """Return the tensor of the first process rank (broadcast)."""
        if self.size == 1:
            return tensor
        wire = self._on_group_device(tensor).clone()
        with self._count_collective(wire, 1):
            dist.broadcast(wire, group_src=0, group=self._group)
        return wire.to(tensor.device)

    def first_of(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return several vectors of the first process rank, of one dtype, by one broadcast."""
        if self.size == 1:
            return tensors
        return self.first(torch.cat(list(tensors))).split([len(tensor) for tensor in tensors])

    def first_text(self, text: str) -> str:
        """Return the text of the first process rank, of any length."""
        if self.size == 1:
            return text
        data = text.encode()
        length = self.whole_numbers(len(data))[0]
        if not length:
            return ""
        local = list(data[:length].ljust(length, b"\0"))
        return _as_text(self.first(torch.tensor(local, dtype=torch.uint8, device="cpu")))

    def sum_of(self, number: float) -> float:
        """Return the sum of a number of each process rank, added in their order: the same bits."""
        if self.size == 1:
            return number
        local = torch.tensor([number], dtype=torch.float64, device=self._group_device())
        return sum(map(float, self.every(local)))

    # -- agreement -----------------------------------------------------------------------------

    def agreement(self) -> "ErrorPropagation":
        """Return a context for local work: an error on one process rank is raised on all."""
        return ErrorPropagation(self)

    def agree_on(self, facts: dict[str, tuple[int, str]]) -> None:
        """Raise a ValueError on every process rank unless all have the same facts.

        Args:
            facts: value and remedy by name.
        """
        values = self.every(self._numbers([value for value, _ in facts.values()]))
        for (name, (_, remedy)), by_rank in zip(
            facts.items(), torch.stack(values).T.tolist(), strict=True
        ):
            if len(set(by_rank)) > 1:
                shown = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(by_rank))
                raise ValueError(
                    f"{name} must be the same on all process ranks, got {shown}; {remedy}"
                )

    def whole_numbers(self, number: int) -> list[int]:
        """Return a whole number of each process rank."""
        if self.size == 1:
            return [number]
        return [int(value) for value in self.every(self._numbers([number]))]

    # -- details -------------------------------------------------------------------------------

    def _numbers(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._group_device())

    def _group_device(self) -> torch.device:
        """Return the device on which the group exchanges small tensors."""
        if self.size == 1 or "cpu" in self._backends():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    def _on_group_device(self, tensor: Tensor) -> Tensor:
        """Return the tensor on a device that the group supports: gloo the CPU, NCCL a GPU."""
        backend = self._backends().get(tensor.device.type)
        direct = backend is not None and (tensor.device.type == "cpu" or backend != "gloo")
        return (tensor if direct else tensor.to(self._group_device())).contiguous()

    def _backends(self) -> dict[str, str]:
        """Return the backend by type of device, such as {"cpu": "gloo", "cuda": "nccl"}."""
        pairs = dist.get_backend_config(self._group).split(",")
        return dict(pair.split(":") for pair in pairs)

    @contextmanager
    def _count_collective(self, tensor: Tensor, share: float) -> Iterator[None]:
        """Count a collective, and raise a `RankError` if it fails."""
        start = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"process rank {self.rank} of {self.size}: a collective failed: another process "
                "rank has exited, is hanging, or diverged in control flow; see the logs of the "
                f"other process ranks; parameters are unchanged ({str(error).splitlines()[0]})"
            ) from error
        counts = self.communication
        counts.seconds += time.perf_counter() - start
        counts.collectives += 1
        counts.received += round(share * tensor.numel() * tensor.element_size())


class ErrorPropagation:
    """Error propagation: all process ranks leave the context together, with or without an error.

    The process rank that failed raises its own error. The others raise one that names it: of the
    same type for the errors of this package, a :class:`~hig.RankError` for all others.
    """

    def __init__(self, ranks: Ranks):
        self._ranks = ranks

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Do not synchronise on KeyboardInterrupt; the others detect the lost connection.
        interrupted = error_type is not None and not issubclass(error_type, Exception)
        if self._ranks.size == 1 or interrupted:
            return
        failed = self._ranks.whole_numbers(int(error_type is not None))
        if not any(failed):
            return
        text = f"{error_type.__name__}: {error}" if error_type else ""
        texts = self._ranks.every(_as_bytes(text))
        if error_type is None:
            raise _error_of(failed.index(1), _as_text(texts[failed.index(1)]))


def _error_of(rank: int, text: str) -> Exception:
    name, _, message = text.partition(": ")
    for error_type in SHARED_ERRORS:
        if error_type.__name__ == name:
            return error_type(f"on process rank {rank}: {message}")
    return RankError(
        f"process rank {rank} failed with {text}; no process rank has changed its parameters; see "
        "the log of that process rank"
    )


def _as_bytes(text: str) -> Tensor:
    data = text.encode()[:TEXT_BYTES]
    return torch.tensor(list(data.ljust(TEXT_BYTES, b"\0")), dtype=torch.uint8, device="cpu")


def _as_text(data: Tensor) -> str:
    return bytes(data.tolist()).rstrip(b"\0").decode(errors="replace")


def check_process_group(process_group: object) -> None:
    """Raise unless a value is a process group, "auto" or None.

    Raises:
        TypeError: it is not one of these.
        ValueError: this process does not belong to the group.
    """
    if process_group is None or (isinstance(process_group, str) and process_group == "auto"):
        return
    absent = dist.GroupMember.NON_GROUP_MEMBER if dist.is_available() else None
    if type(process_group) is type(absent) and process_group == absent:
        raise ValueError(
            "this process does not belong to the process_group; make the optimizer in its members "
            "only, or pass process_group=None for steps of this process alone"
        )
    if not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        raise TypeError(
            "process_group must be a torch.distributed process group, 'auto' or None, got "
            f"{process_group!r}; 'auto' is the default group where torch.distributed is initialised"
        )
