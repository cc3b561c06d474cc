"""Options of a run that belong neither to the problem nor to the method."""

from dataclasses import dataclass
from pathlib import Path

import torch

from experiments._run.faults import POLICIES
from hig.arguments import POSITIVE, Range, check_choice, check_count, check_number, check_path

AVERAGE = Range("between 0 and 1", lambda x: 0 < x < 1)
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Options:
    """Length, seed, device and output of a run.

    Attributes:
        epochs: Passes through the training data, or None for a time budget.
        time_budget: Seconds of training, evaluation excluded, or None for a number of epochs.
        evaluate_every: Seconds of training from one evaluation to the next, or None for those of
            the problem.
        seed: Seed of the initial weights, of the data and of the batches.
        device: Torch device, such as ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"`` or ``"float64"``.
        threads: CPU threads of torch, or None for torch's own choice.
        out: Directory of the result file; made where missing.
        clock: ``"wall"`` or ``"processor"``, which takes one thread; see
            `TrainingClock`.
        average: Evaluate, and keep, a running average of the weights in which the past counts with
            this factor after each step; None for the weights themselves.
        quiet: No progress and no summary.
        summary: The summary at the end even so.
        tensorboard: Write events for TensorBoard next to the result file.
        save_weights: Write the weights of the last evaluation next to the result file.
        init_from: Weights file of an earlier run to start from, or None for new weights.
        resume: Resume from the checkpoint that an interrupted run of the same name has left; do
            nothing if the run is finished.
        checkpoint_every: Seconds of wall-clock from one checkpoint to the next, at least.
        on_fault: ``"raise"`` or ``"skip"``, see `Faults`.
        max_faults: Faults that are survived; the next one ends the run.

    Raises:
        TypeError: If a value is not a number or not a path.
        ValueError: If a number lies outside its range, options do not go together, or there is no
            such device, dtype or clock.
    """

    out: Path
    epochs: int | None = None
    time_budget: float | None = None
    evaluate_every: float | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    clock: str = "wall"
    average: float | None = None
    quiet: bool = False
    summary: bool = False
    tensorboard: bool = False
    save_weights: bool = False
    init_from: Path | None = None
    resume: bool = False
    checkpoint_every: float = 60.0
    on_fault: str = "raise"
    max_faults: int = 10

    def __post_init__(self):
        object.__setattr__(self, "out", check_path(self.out, "out"))
        if self.init_from is not None:
            object.__setattr__(self, "init_from", check_path(self.init_from, "init_from"))
        self._check_numbers()
        _check_device(self.device)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        check_choice(self.on_fault, "on_fault", POLICIES)
        check_count(self.max_faults, "max_faults", "take on_fault='raise' for none")
        if self.clock == "processor" and (self.threads or 1) > 1:
            raise ValueError(
                f"the processor clock adds up the time of all threads, got {self.threads}; give "
                "--threads 1 with it, or take --clock wall"
            )
        if (self.epochs is None) == (self.time_budget is None):
            raise ValueError(
                f"a run needs either epochs or a time budget, got epochs={self.epochs} and "
                f"time_budget={self.time_budget}; set one of them"
            )

    def _check_numbers(self) -> None:
        check_count(self.seed, "seed", "give a number such as 0", least=0)
        for name in ("epochs", "threads"):
            if (value := getattr(self, name)) is not None:
                check_count(value, name, "give a number such as 1")
        for name in ("time_budget", "evaluate_every", "checkpoint_every"):
            if (value := getattr(self, name)) is not None:
                check_number(value, name, POSITIVE, "give seconds such as 60.0")
        if self.average is not None:
            check_number(self.average, "average", AVERAGE, "0.8 averages over some five steps")


def _check_device(device: str) -> None:
    try:
        torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be one of torch, got {device!r}; such as 'cpu' or 'cuda'"
        ) from error
