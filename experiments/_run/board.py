"""Losses and steps of a run for TensorBoard, while the run lasts."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from experiments._run.recorder import Recorder
from hig import MultiStepReport, StepReport

# Seconds of wall-clock from one step that is written to the next, at least.
INTERVAL = 1.0

# Metrics of more numbers, such as whole fields, are for figures from the result file.
MOST_NUMBERS = 64

_OF_A_STEP = ("step_size", "gain_ratio")
_OF_A_JACOBIAN = ("rank", "damping", "error_estimate")


class BoardError(RuntimeError):
    """TensorBoard cannot be written for; the text says why and what would help."""


def writer_class() -> type:
    """What writes event files.

    Raises:
        BoardError: The package that it needs is missing or broken.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except (ImportError, TypeError) as error:  # TypeError: protobuf of an unsuitable version
        raise BoardError(
            f"--tensorboard needs the package tensorboard, which is not installed or not complete "
            f"({error}); get it with: pip install 'hig[tensorboard]', or leave out --tensorboard"
        ) from error
    return SummaryWriter


def folder_of(result: Path) -> Path:
    """Folder of the event files that belong to a result file, the last part being its stem."""
    return result.parent / "tensorboard" / result.stem


class Board:
    """Writes evaluations, and steps now and then, to an event file.

    Everything is on the disk before training goes on, where its clock does not count it. A disk
    that is full costs the events from there on, not the run.

    Args:
        folder: Where to write.
        steps: Steps of the run so far. Events of later ones are hidden, as they are going to be
            taken again; of a run that begins, the event files of the one before are removed.
        warn: Tells the user that events cannot be written any more.
        now: Wall clock in seconds.

    Raises:
        BoardError: The folder cannot be written to, or the package is missing.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        warn: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ):
        self.folder = folder
        self._warn, self._now = warn, now
        self._due = now()
        make_writer = writer_class()
        try:
            if not steps:
                for old in folder.glob("events.out.tfevents.*"):
                    old.unlink()
            self._writer = make_writer(folder, purge_step=steps + 1 if steps else None)
        except (OSError, UnicodeEncodeError) as error:  # it takes no path of other bytes than UTF-8
            raise BoardError(
                f"{folder} cannot be written to: {error}; give another --out, or leave out "
                "--tensorboard"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write(lambda writer: writer.close())

    def described(self, step: int, facts: Mapping[str, Mapping[str, object]]) -> None:
        """Show settings and other facts in a table.

        Args:
            step: Steps of the run so far.
            facts: Values by group and name.
        """
        rows = [
            f"| {group} | {name} | `{value}` |"
            for group, values in facts.items()
            for name, value in values.items()
        ]
        text = "\n".join(["| | | |", "|---|---|---|", *rows])
        text = text.encode(errors="backslashreplace").decode()  # of paths that are no UTF-8
        self._write(lambda writer: writer.add_text("run", text, step))

    def evaluated(self, step: int, recorder: Recorder) -> None:
        """Take up the last evaluation: losses, metrics, epoch and seconds of training."""
        numbers = {
            "loss/train": recorder.train_loss[-1],
            "loss/test": recorder.test_loss[-1],
            "progress/epoch": recorder.epochs[-1],
            "progress/training_seconds": recorder.seconds[-1],
        }
        if not math.isnan(recorder.smallest_cosine[-1]):
            numbers["step/smallest_cosine"] = recorder.smallest_cosine[-1]
        for name, values in recorder.metrics[-1].items():
            if values.size <= MOST_NUMBERS:
                numbers |= _numbered(f"test/{name}", values.ravel().tolist())
        self._add(step, numbers)

    def stepped(self, step: int, report: StepReport | MultiStepReport) -> None:
        """Take up the report of a step, unless the last one was only just taken up."""
        if self._now() < self._due:
            return
        self._due = self._now() + INTERVAL
        parts = getattr(report, "parts", [report])
        numbers = {"step/loss": float(report.loss)}
        for name in _OF_A_STEP:
            numbers |= _numbered(f"step/{name}", [getattr(report, name, None)])
        for name in _OF_A_JACOBIAN:
            numbers |= _numbered(f"step/{name}", [getattr(part, name) for part in parts])
        cut_offs = [p.rcond * float(p.singular_values.max()) if p.rcond else None for p in parts]
        self._add(step, numbers | _numbered("step/cut_off", cut_offs))

    def _add(self, step: int, numbers: Mapping[str, float]) -> None:
        def add(writer) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        self._write(add)

    def _write(self, write: Callable[[object], None]) -> None:
        if self._writer is None:
            return
        try:
            if not self.folder.is_dir():  # its writer's thread would tell by a traceback
                raise FileNotFoundError("the folder is gone")
            write(self._writer)
            self._writer.flush()
        except OSError as error:
            self._writer = None
            self._warn(f"nothing more for TensorBoard, {self.folder} cannot be written to: {error}")


def _numbered(name: str, values: list[float | None]) -> dict[str, float]:
    """Numbers by name, and by place where there are several; None is left out."""
    names = [name] if len(values) == 1 else [f"{name}/{index}" for index in range(len(values))]
    pairs = zip(names, values, strict=True)
    return {name: float(value) for name, value in pairs if value is not None}
