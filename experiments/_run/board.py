"""TensorBoard events of a run: settings, evaluations and steps, through ``SummaryWriter``."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments._run.recorder import Recorder
from hig import MultiStepReport, StepReport

# Seconds of wall-clock between two steps that are written, at least.
INTERVAL = 1.0
# Metrics of more numbers, such as whole fields, are for figures from the result file.
MOST_NUMBERS = 64


class BoardError(RuntimeError):
    """TensorBoard events cannot be written; the text gives the reason and the remedy."""


def writer_class() -> type:
    """Import ``SummaryWriter``; raises a `BoardError` if tensorboard is missing or broken."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except (ImportError, TypeError) as error:  # TypeError: protobuf of an unsuitable version
        raise BoardError(
            f"--tensorboard needs the package tensorboard, which is not installed or not complete "
            f"({error}); get it with: pip install 'hig[tensorboard]', or leave out --tensorboard"
        ) from error
    return SummaryWriter


def folder_of(result: Path) -> Path:
    """Return the folder of the event files that belong to a result file."""
    return result.parent / "tensorboard" / result.stem


class Board:
    """Event files of a run, on disk before training continues; a full disk does not end the run.

    Args:
        folder: Directory of the event files; those of an earlier run are removed.
        steps: Steps before a resumed run continues, 0 for a new run; later events are hidden.
        warn: Reports to the user that events are lost.

    Raises:
        BoardError: The folder cannot be written, or the package is missing.
    """

    def __init__(self, folder: Path, steps: int, warn: Callable[[str], None]):
        self.folder, self._warn, self._due = folder, warn, -math.inf
        summary_writer = writer_class()
        try:
            for old in () if steps else folder.glob("events.out.tfevents.*"):
                old.unlink()
            self._writer = summary_writer(folder, purge_step=steps + 1 if steps else None)
        except OSError as error:
            raise BoardError(
                f"{folder} cannot be written to: {error}; give another --out, or leave out "
                "--tensorboard"
            ) from error

    def describe(self, step: int, facts: Mapping[str, Mapping[str, object]]) -> None:
        """Write settings and other facts, by group and name, as a table."""
        rows = ["| | | |", "|---|---|---|"]
        for group, values in facts.items():
            rows += [f"| {group} | {name} | `{value}` |" for name, value in values.items()]
        self._write(lambda writer: writer.add_text("run", "\n".join(rows), step))

    def evaluated(self, step: int, recorder: Recorder) -> None:
        """Write losses, small metrics, epoch and training time of the last evaluation."""
        cosine = recorder.smallest_cosine[-1]
        numbers = {
            "loss/train": recorder.train_loss[-1:],
            "loss/test": recorder.test_loss[-1:],
            "progress/epoch": recorder.epochs[-1:],
            "progress/training_seconds": recorder.seconds[-1:],
            "step/smallest_cosine": [None if math.isnan(cosine) else cosine],
        }
        metrics = {f"test/{n}": v.ravel().tolist() for n, v in recorder.metrics[-1].items()}
        self._add(step, numbers | {n: v for n, v in metrics.items() if len(v) <= MOST_NUMBERS})

    def stepped(self, step: int, report: StepReport | MultiStepReport) -> None:
        """Write the report of a step, at most one per `INTERVAL`."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + INTERVAL
        parts = getattr(report, "parts", [report])  # one per Jacobian of several losses
        numbers = {"step/loss": [float(report.loss)]}
        for name in ("step_size", "gain_ratio"):
            numbers[f"step/{name}"] = [getattr(report, name, None)]
        for name in ("rank", "damping", "error_estimate"):
            numbers[f"step/{name}"] = [getattr(part, name) for part in parts]
        numbers["step/cut_off"] = [
            # Without a cut-off the singular values may not have been computed yet.
            part.rcond * float(part.singular_values.max()) if part.rcond else None
            for part in parts
        ]
        self._add(step, numbers)

    def close(self) -> None:
        """Close the event file."""
        self._write(lambda writer: writer.close())

    def _add(self, step: int, numbers: Mapping[str, Sequence[float | None]]) -> None:
        """Write numbers by name, several of one name by index; None is left out."""

        def add(writer) -> None:
            for name, values in numbers.items():
                for index, value in enumerate(values):
                    tag = name if len(values) == 1 else f"{name}/{index}"
                    if value is not None:
                        writer.add_scalar(tag, value, step)

        self._write(add)

    def _write(self, write: Callable[[object], None]) -> None:
        if self._writer is None:
            return
        try:
            write(self._writer)
            self._writer.flush()
        except OSError as error:
            self._writer = None
            self._warn(f"nothing more for TensorBoard, {self.folder} cannot be written to: {error}")
