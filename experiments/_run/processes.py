"""Run on several processes of ``torchrun``, each with a share of every batch."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist
from torch import Tensor

from experiments._methods import Method
from problems import Batch, Problem, SeveralLosses, samples


class ProcessesError(ValueError):
    """Run that cannot be shared as requested; the text has the reason and the remedy."""


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes, if ``torchrun`` started this one, for the time of the context.

    Tensors travel by NCCL between CUDA devices, where each process takes the one of its local rank,
    and by gloo between CPUs.

    Raises:
        ProcessesError: There are more processes than devices.
    """
    if not dist.is_torchelastic_launched() or dist.is_initialized():
        yield
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= devices:
            raise ProcessesError(
                f"process {local} of this machine has no CUDA device, there are {devices}; "
                f"start it with --nproc-per-node {devices}"
            )
        torch.cuda.set_device(local)
    # The first optimizer makes torch import its compiler, which would hold on to a group that is
    # already there: its threads then outlive the interpreter, and abort now and then.
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


class Processes:
    """The processes of a run: this one alone, or those of the default process group.

    Attributes:
        rank: Number of this process; the first one, 0, writes the files.
        size: Number of processes.
    """

    def __init__(self):
        self.rank, self.size = 0, 1
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def check(self, problem: Problem, method: Method) -> None:
        """Refuse several losses, with a `ProcessesError`."""
        if self.size > 1 and (method.several_losses or isinstance(problem, SeveralLosses)):
            raise ProcessesError(
                f"{problem.name} with {method.label} runs in one process, got {self.size}: several "
                "losses are not a mean or sum over one set of samples; start it without torchrun"
            )

    def alone(self, option: str) -> None:
        """Refuse, with a `ProcessesError`, an option that takes one process."""
        if self.size > 1:
            raise ProcessesError(
                f"{option} takes one process, got {self.size}; leave it out, or start the run "
                "without torchrun"
            )

    def share(self, batch: Batch) -> Batch:
        """Take the samples of this process: consecutive; the first processes have one more.

        Raises a `ProcessesError` if there are fewer samples than processes.
        """
        if self.size == 1:
            return batch
        if samples(batch) < self.size:
            raise ProcessesError(
                f"{samples(batch)} samples for {self.size} processes; take fewer processes, or a "
                "--batch-size that leaves no such batch at the end of an epoch"
            )
        return {key: value.tensor_split(self.size)[self.rank] for key, value in batch.items()}

    def weight(self, problem: Problem, share: Batch, batch: Batch) -> float:
        """Weight of the loss of a share in the loss of the batch."""
        return 1.0 if problem.loss_reduction == "sum" else samples(share) / samples(batch)

    def add_up(self, loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
        """Add the gradients of all processes in place; returns the sum of weighted losses."""
        loss = loss.detach()
        if self.size == 1:
            return loss
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        parts = [loss.reshape(1), *(gradient.flatten() for gradient in gradients)]
        flat = torch.cat(parts)
        # Added in one place and handed out: of the same bits everywhere, as line searches need.
        dist.reduce(flat, 0)
        dist.broadcast(flat, 0)
        total, *found = flat.split([part.numel() for part in parts])
        for gradient, value in zip(gradients, found, strict=True):
            gradient.copy_(value.view_as(gradient))
        return total.reshape(loss.shape)

    def wait(self) -> None:
        """Wait until all have come here: ``torchrun`` ends the others with the first that fails."""
        if self.size > 1:
            with suppress(RuntimeError):  # raised if a process is lost
                dist.barrier()

    def first(self, seconds: float, signal: int, due: bool) -> tuple[float, int, bool]:
        """Broadcast clock, signal and need of a checkpoint of the first process."""
        if self.size == 1:
            return seconds, signal, due
        numbers = torch.tensor([seconds, signal, due], dtype=torch.float64, device=self._device)
        dist.broadcast(numbers, 0)
        seconds, signal, due = numbers.tolist()
        return seconds, int(signal), bool(due)

    def first_has(self, found: bool) -> bool:
        """Broadcast a decision of the first process; all call this."""
        return self.first(0.0, 0, found)[2]

    def each(self, value: Tensor) -> Tensor:
        """Gather a tensor of every process, stacked by process rank; all call this."""
        found = [value]
        if self.size > 1:
            found = [torch.empty_like(value, device=self._device) for _ in range(self.size)]
            dist.all_gather(found, value.to(self._device))
        return torch.stack(found).cpu()

    def hand_out(self, data: bytes | None) -> bytes | None:
        """Broadcast the bytes of the first process, or None; all call this."""
        if self.size == 1:
            return data
        length = torch.tensor(-1 if data is None else len(data), device=self._device)
        dist.broadcast(length, 0)
        if length < 0:
            return None
        found = torch.empty(int(length), dtype=torch.uint8, device=self._device)
        if self.rank == 0:
            found.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(found, 0)
        return found.cpu().numpy().tobytes()

    @property
    def _device(self) -> str:
        """Device on which tensors are exchanged."""
        return "cuda" if dist.get_backend() == "nccl" else "cpu"
