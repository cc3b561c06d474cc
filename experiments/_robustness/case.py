"""Case: all that determines one run, and the file of its record."""

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments._robustness.variants import Variant, cutoff_text

# Steps after which the test loss is recorded: what is lost is mostly lost by then.
EARLY = 20
_FEW_STEPS = 100
_LIMIT = 0.1
_LIMITS = {("conditioning_toy", "gn"): 0.2}


@dataclass(frozen=True)
class Case:
    """All that determines one run.

    Attributes:
        label: Name of the code that takes the steps, such as its revision.
        problem: Folder of the submit scripts of the problem.
        method: Name of the method.
        rule: Its step rule, see `Variant`.
        rcond: Its cut-off, see `Variant`.
        batch: Samples per step.
        seconds: Processor time of the training.
        dtype: ``"float32"`` or ``"float64"``.
        seed: Seed of weights, data and batches.
        lr: Its learning rate, see `Variant`.
    """

    label: str
    problem: str
    method: str
    rule: str
    rcond: float | str | None
    batch: int
    seconds: float
    dtype: str
    seed: int
    lr: float | None = None

    @property
    def variant(self) -> Variant:
        """The method with its rule, cut-off and learning rate."""
        return Variant(self.method, self.rule, self.rcond, self.lr)

    @property
    def place(self) -> Path:
        """File of the record, below the output folder; no other case has it."""
        cutoff = () if self.rcond is None else (f"rcond{cutoff_text(self.rcond)}",)
        lr = () if self.lr is None else (f"lr{self.lr:.12g}",)
        words = (
            *(self.method, self.rule, *cutoff, *lr, f"batch{self.batch}", f"{self.seconds:.12g}s"),
            *(self.dtype, f"seed{self.seed}"),
        )
        return Path(self.label, self.problem.replace("/", "_"), f"{'_'.join(words)}.json")

    def __str__(self) -> str:
        return f"{self.problem} {self.variant} batch {self.batch} seed {self.seed}"


@dataclass(frozen=True)
class Record:
    """Outcome of one run.

    Attributes:
        case: The case.
        start: Test loss before the first step.
        early: Test loss after 20 steps; None if there were fewer, or if it is not finite.
        end: Test loss at the end; None if it is not finite, or if an error ended the run.
        steps: Number of steps.
        trained: Processor time of the training in seconds.
        stopped: ``"time"``, or the error that ended the run.
        notes: Notes of the reports with the step of their first appearance; notes that differ in
            numbers only count as one.
        origin: Command, revision and time, see `experiments._provenance`.
        machine: Versions and processor.
    """

    case: Case
    start: float
    early: float | None
    end: float | None
    steps: int
    trained: float
    stopped: str
    notes: tuple[tuple[int, str], ...]
    origin: dict[str, str]
    machine: dict[str, str | int]

    @property
    def lost(self) -> bool:
        """Return whether the run ended above a tenth of its start.

        On the toy above a fifth for Gauss-Newton; above the start itself for runs of fewer than 100
        steps.
        """
        return self.end is None or self.end > self.limit

    @property
    def limit(self) -> float:
        """Largest loss at the end of a run that is not lost."""
        if self.steps < _FEW_STEPS:
            return self.start
        return self.start * _LIMITS.get((self.case.problem, self.case.method), _LIMIT)

    @property
    def warned(self) -> int | None:
        """Step of the first note that says that the run is lost, None without one."""
        return next((step for step, text in self.notes if re.search(r"\blost\b", text)), None)

    def to_json(self) -> dict[str, object]:
        """Return the record in plain Python, as a JSON file has it."""
        return {**asdict(self), "notes": [list(note) for note in self.notes]}

    @classmethod
    def from_json(cls, found: dict) -> "Record":
        """Read what `to_json` returns.

        Raises:
            KeyError, TypeError, ValueError: It is not that of a record.
        """
        notes = tuple((int(step), str(text)) for step, text in found["notes"])
        record = cls(**{**found, "case": Case(**found["case"]), "notes": notes})
        numbers = [record.start, record.trained]
        numbers += [value for value in (record.early, record.end) if value is not None]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"numbers must be finite, got {numbers}; run the case again")
        return record
