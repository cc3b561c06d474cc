"""State of a training run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from experiments._methods import Method, Optimizer
from experiments._run.batches import Batches
from experiments._run.board import Board
from experiments._run.clock import TrainingClock
from experiments._run.faults import Faults
from experiments._run.options import Options
from experiments._run.processes import Processes
from experiments._run.recorder import JacobianRecorder, Recorder
from experiments._run.schedule import Schedule
from experiments._run.weights import Pretraining, Snapshot
from problems import Problem, Settings, samples

# Parts with a state of their own; `average` and `jacobian_recorder` may have none.
_PARTS = ("network", "average", "optimizer", "batches", "evaluations", "recorder")
_PARTS += ("jacobian_recorder", "faults")


@dataclass
class Training:
    """Parts and state of a training run.

    Attributes:
        latest: Weights at the last evaluation, None before the first.
        steps: Steps that have been taken.
        resumed_at: Training time at which the run was resumed after each interruption.
        board: Writer of TensorBoard events, None if they are not wanted.
    """

    problem: Problem
    method: Method
    settings: Settings
    options: Options
    network: nn.Module
    optimizer: Optimizer
    train: dict[str, Tensor]
    test: dict[str, Tensor]
    batches: Batches
    evaluations: Schedule
    clock: TrainingClock
    earlier: Pretraining | None
    average: AveragedModel | None
    processes: Processes
    faults: Faults
    latest: Snapshot | None = None
    steps: int = 0
    resumed_at: list[float] = field(default_factory=list)
    recorder: Recorder = field(default_factory=Recorder)
    jacobian_recorder: JacobianRecorder = field(default_factory=JacobianRecorder)
    board: Board | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass through the training data; the last one may be shorter."""
        return math.ceil(samples(self.train) / self.settings.batch_size)

    @property
    def evaluated(self) -> nn.Module:
        """Network that is evaluated and saved."""
        return self.network if self.average is None else self.average.module

    def state_dict(self) -> dict[str, object]:
        """Return the state of the run between two steps, in tensors and plain Python.

        Processes that share the run differ in their random numbers alone; all call this.
        """
        parts = {name: getattr(self, name) for name in _PARTS}
        latest = self.latest and {
            "weights": {name: torch.from_numpy(v) for name, v in self.latest.weights.items()},
            "seconds": self.latest.seconds,
            "test_loss": self.latest.test_loss,
        }
        return {
            **{name: part and part.state_dict() for name, part in parts.items()},
            "steps": self.steps,
            "seconds": self.clock.seconds,
            "resumed_at": list(self.resumed_at),
            "latest": latest,
            "random": self.processes.each(torch.get_rng_state()),
            "cuda_random": self.processes.each(torch.cuda.get_rng_state(self.options.device))
            if self._cuda
            else None,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Resume where the same run was interrupted, from tensors on the CPU."""
        for name in _PARTS:
            part = getattr(self, name)
            if part is not None:
                part.load_state_dict(state[name])
        self.steps, self.clock.seconds = state["steps"], state["seconds"]
        self.resumed_at = [*state["resumed_at"], self.clock.seconds]
        latest = state["latest"]
        weights = {name: value.numpy() for name, value in latest["weights"].items()}
        self.latest = Snapshot(weights, latest["seconds"], latest["test_loss"])
        rank = self.processes.rank
        torch.set_rng_state(state["random"][rank].clone())  # a view ends the process
        if self._cuda:
            torch.cuda.set_rng_state(state["cuda_random"][rank].clone(), self.options.device)

    @property
    def _cuda(self) -> bool:
        return torch.device(self.options.device).type == "cuda"
