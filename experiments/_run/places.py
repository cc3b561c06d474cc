"""Files that a run is going to write, tried before the training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from experiments._run import weights
from experiments._run.checkpoint import ENDING
from experiments._run.options import Options


class ResultsError(OSError):
    """Results cannot be written; the text has the reason and the remedy."""


def files_of(result: Path, options: Options) -> list[Path]:
    """List all files of a run but the events for TensorBoard."""
    holders = [result, weights.place(result)] if options.save_weights else [result]
    return [result.with_suffix(ENDING), *holders, *(file.with_suffix(".txt") for file in holders)]


def try_places(files: Sequence[Path]) -> None:
    """Make the folder of files, and try to write next to each of them, else a `ResultsError`."""
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_dir():
                raise IsADirectoryError(f"{file} is a folder")
            trial = file.with_name(f".{file.name}.{uuid4().hex}.tmp")  # as long as they get
            trial.touch(exist_ok=False)
            trial.unlink()
        except OSError as error:
            raise ResultsError(
                f"the results could not be written: {error}; give another --out, or move the "
                "file that is in the way"
            ) from error


@contextmanager
def explain_write_failure(checkpoint: Path | None) -> Iterator[None]:
    """Turn a failure to write the final files into a `ResultsError` with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = "there is no checkpoint: make room and run it again"
        if checkpoint is not None:
            remedy = f"so is {checkpoint}: make room and continue with --resume"
        raise ResultsError(
            f"the results cannot be written: {error}; the file there before is as it was, {remedy}"
        ) from error
