"""The processes that take one step together, and what they say to one another."""

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

# "auto": the default group where torch.distributed is initialised. None: this process alone.
# In quotes: not every torch has been built with it.
ProcessGroup: TypeAlias = "dist.ProcessGroup | str | None"

# Of an error in another process this much text is passed on.
TEXT_BYTES = 4096
# Errors that are raised as what they are in every process; others become a RankError.
SHARED_ERRORS = (DecompositionError, NonFiniteError, SampleDependenceError)


@dataclass
class Communication:
    """What one process exchanged with the others in a step.

    Attributes:
        ranks: processes that take the step together.
        collectives: calls.
        received: bytes received, as rings would have it: (R - 1) parts of a gathered whole,
            2 (R - 1) / R of what is added up, once what the first process hands out.
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
    """The ranks of a process group during one step; without a group, this process alone.

    All methods are collective: every rank calls the same ones in the same order, with tensors of
    the same shape and dtype. What they return has the same bits on all ranks, but for ``total``.

    Args:
        process_group: a group, "auto" for the default group where torch.distributed is
            initialised, or None for this process alone.

    Attributes:
        rank: number of this process in the group.
        size: number of processes, R.
        communication: counts what is exchanged.
    """

    def __init__(self, process_group: ProcessGroup = None):
        ready = dist.is_available() and dist.is_initialized()
        alone = process_group is None or (process_group == "auto" and not ready)
        # The default group goes by no object: one that is held outlives its destruction.
        self._group = None if isinstance(process_group, str) else process_group
        self.rank, self.size = 0, 1
        if not alone:
            self.rank, self.size = dist.get_rank(self._group), dist.get_world_size(self._group)
        self.communication = Communication(self.size)

    # -- tensors -------------------------------------------------------------------------------

    def every(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, in their order."""
        if self.size == 1:
            return [tensor]
        wire = self._wire(tensor)
        parts = [torch.empty_like(wire) for _ in range(self.size)]
        with self._counted(wire, self.size - 1):
            dist.all_gather(parts, wire, group=self._group)
        return [part.to(tensor.device) for part in parts]

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all ranks."""
        if self.size == 1:
            return tensor
        wire = self._wire(tensor).clone()
        with self._counted(wire, 2 * (self.size - 1) / self.size):
            dist.all_reduce(wire, group=self._group)
        return wire.to(tensor.device)

    def first(self, tensor: Tensor) -> Tensor:
        """The tensor of the first rank."""
        if self.size == 1:
            return tensor
        wire = self._wire(tensor).clone()
        with self._counted(wire, 1):
            dist.broadcast(wire, group_src=0, group=self._group)
        return wire.to(tensor.device)

    def first_of(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Several vectors of the first rank, of one dtype, at once."""
        if self.size == 1:
            return tensors
        return self.first(torch.cat(list(tensors))).split([len(tensor) for tensor in tensors])

    def sum_of(self, number: float) -> float:
        """The sum of a number of each rank, added in the order of the ranks: of the same bits."""
        if self.size == 1:
            return number
        own = torch.tensor([number], dtype=torch.float64, device=self._home())
        return sum(map(float, self.every(own)))

    # -- agreement -----------------------------------------------------------------------------

    def agreement(self) -> "Agreement":
        """A context for what each rank does on its own: an error of one is raised by all."""
        return Agreement(self)

    def agree_on(self, facts: dict[str, tuple[int, str]]) -> None:
        """Raise a ValueError on every rank unless all ranks have the same facts.

        Args:
            facts: value and remedy by name.
        """
        values = self.every(self._numbers([value for value, _ in facts.values()]))
        for (name, (_, remedy)), found in zip(
            facts.items(), torch.stack(values).T.tolist(), strict=True
        ):
            if len(set(found)) > 1:
                shown = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(found))
                raise ValueError(f"{name} must be the same on all ranks, got {shown}; {remedy}")

    def whole_numbers(self, number: int) -> list[int]:
        """A whole number of each rank."""
        if self.size == 1:
            return [number]
        return [int(value) for value in self.every(self._numbers([number]))]

    # -- details -------------------------------------------------------------------------------

    def _numbers(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._home())

    def _home(self) -> torch.device:
        """Where the group takes small tensors from."""
        if self.size == 1 or "cpu" in self._backends():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    def _wire(self, tensor: Tensor) -> Tensor:
        """The tensor where the group can take it from: gloo wants it on the CPU, NCCL on a GPU."""
        backend = self._backends().get(tensor.device.type)
        direct = backend is not None and (tensor.device.type == "cpu" or backend != "gloo")
        return (tensor if direct else tensor.to(self._home())).contiguous()

    def _backends(self) -> dict[str, str]:
        """Backend by type of device, such as {"cpu": "gloo", "cuda": "nccl"}."""
        pairs = dist.get_backend_config(self._group).split(",")
        return dict(pair.split(":") for pair in pairs)

    @contextmanager
    def _counted(self, tensor: Tensor, share: float) -> Iterator[None]:
        """Count a collective, and say what it means that one fails."""
        start = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} of {self.size} lost the others: one of them has ended, hangs, "
                "or took another way through the program; the output of the others tells which; "
                f"parameters are unchanged ({str(error).splitlines()[0]})"
            ) from error
        counts = self.communication
        counts.seconds += time.perf_counter() - start
        counts.collectives += 1
        counts.received += round(share * tensor.numel() * tensor.element_size())


class Agreement:
    """All ranks leave together: without an error, or each with one.

    The rank that failed raises its own error. The others raise one that names it: of the same
    kind for the errors of this package, a :class:`~hig.RankError` for all others.
    """

    def __init__(self, ranks: Ranks):
        self._ranks = ranks

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An interruption is not argued about: this process ends, and the others notice.
        if self._ranks.size == 1 or (kind is not None and not issubclass(kind, Exception)):
            return
        failed = self._ranks.whole_numbers(int(kind is not None))
        if not any(failed):
            return
        texts = self._ranks.every(_as_bytes(f"{kind.__name__}: {error}" if kind else ""))
        if kind is None:
            raise _error_of(failed.index(1), _as_text(texts[failed.index(1)]))


def _error_of(rank: int, text: str) -> Exception:
    name, _, rest = text.partition(": ")
    for kind in SHARED_ERRORS:
        if kind.__name__ == name:
            return kind(f"on rank {rank}: {rest}")
    return RankError(
        f"rank {rank} failed with {text}; no rank has changed its parameters; see the output of "
        "that rank"
    )


def _as_bytes(text: str) -> Tensor:
    data = text.encode()[:TEXT_BYTES]
    return torch.tensor(list(data.ljust(TEXT_BYTES, b"\0")), dtype=torch.uint8, device="cpu")


def _as_text(data: Tensor) -> str:
    return bytes(data.tolist()).rstrip(b"\0").decode(errors="replace")


def check_process_group(process_group: object) -> None:
    """Check what a user gave.

    Raises:
        TypeError: it is no process group, not "auto" and not None.
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
