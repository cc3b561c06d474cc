"""Checkpoint files, from which an interrupted run is resumed.

``Training.state_dict`` decides on what they hold.
"""

import hashlib
import io
import pickle
import struct
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from glob import escape
from pathlib import Path

import torch

import hig
from experiments._run import archive
from experiments._run.options import Options
from experiments._run.processes import Processes
from experiments._run.weights import Pretraining
from problems import Problem, Settings

# Not .pickle, so that `*.pickle` finds the result files alone.
ENDING = ".checkpoint"

# The last checkpoint of a run that a fault has ended: that run is over, and yet can be resumed
# under another policy.
BEFORE_FAULT = ".before_fault"

# A checkpoint is this text, the SHA-256 of the rest, and the output of torch.save. Torch
# itself does not notice when bits of a tensor have changed.
MAGIC = b"hig checkpoint 2\n"

# Writing checkpoints takes at most this share of a run.
SHARE = 0.01

_OPTIONS = ("epochs", "time_budget", "evaluate_every", "clock", "average")
_OPTIONS += ("seed", "device", "dtype")

# Exceptions when bytes that are not an archive are read, or one with impossible values.
_GARBAGE = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError)
_GARBAGE += (TypeError, ValueError, struct.error, zipfile.BadZipFile)

_FRESH = "to start again remove it, or give another --out"


class CheckpointError(ValueError):
    """Checkpoint of another run; the text has the difference and the remedy."""


def identity(
    problem: Problem,
    method: str,
    settings: Settings,
    options: Options,
    earlier: Pretraining | None,
) -> dict[str, str]:
    """Collect the settings that determine the course of a run, as texts by name.

    The place of its files and the number of threads are not among them; nor is the policy for
    faults, so that a run that a fault has ended can be resumed under another one. The number of
    processes is: sums over them differ in their last bits.
    """
    values = {"problem": problem.name, "method": method}
    values |= {f.name: getattr(problem, f.name) for f in fields(problem) if f.compare}
    values |= {f.name: getattr(settings, f.name) for f in fields(settings)}
    values |= {name: getattr(options, name) for name in _OPTIONS}
    values["processes"] = Processes().size
    values.pop("published", None)
    if earlier:
        values["init_from"] = f"{earlier.label} of seed {earlier.seed}, {earlier.seconds} s"
    return {name: str(value) for name, value in values.items() if value is not None}


def save(path: Path, run: Mapping[str, str], state: Mapping[str, object]) -> None:
    """Write a checkpoint of ``run``, its `identity`; the previous one survives any failure."""
    contents = io.BytesIO()
    torch.save({"run": dict(run), "state": dict(state)}, contents)
    data = contents.getvalue()
    hig.files.write_atomically(path, MAGIC + hashlib.sha256(data).digest() + data)


def load(path: Path, run: Mapping[str, str]) -> dict[str, object] | None:
    """Read a checkpoint onto the CPU, None if there is none. No code from the file runs.

    If several processes share the run, the first one reads and broadcasts the bytes.

    Raises:
        CheckpointError: It is the checkpoint of another run.
        CorruptResultError: It is not a whole checkpoint.
        UnsafeResultError: It asks for something that is neither tensor nor plain Python.
        OSError: It cannot be read.
    """
    processes = Processes()
    there = processes.rank == 0 and path.exists()
    data = processes.hand_out(path.read_bytes() if there else None)
    if data is None:
        return None
    contents = _read(path, data)
    differences = [
        f"{name} is {run.get(name, 'none')}, there {contents['run'].get(name, 'none')}"
        for name in sorted(run.keys() | contents["run"].keys())
        if run.get(name) != contents["run"].get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{path} is of another run: {'; '.join(differences)}; resume with the command line "
            f"that it was written by and --resume, or {_FRESH}"
        )
    return contents["state"]


def _read(path: Path, data: bytes) -> dict[str, dict]:
    start = len(MAGIC) + hashlib.sha256().digest_size
    digest, contents = data[len(MAGIC) : start], data[start:]
    if not data.startswith(MAGIC):
        raise hig.CorruptResultError(
            f"{path} ({len(data)} bytes) is not a checkpoint of this version; {_FRESH}"
        )
    if hashlib.sha256(contents).digest() != digest:
        raise hig.CorruptResultError(
            f"{path} ({len(data)} bytes) is truncated or damaged, its checksum is wrong; {_FRESH}"
        )
    try:
        found = archive.read(contents)
    except (hig.UnsafeResultError, pickle.UnpicklingError) as error:
        raise hig.UnsafeResultError(
            f"{path} asks for objects that a checkpoint does not need, nothing of it was run "
            f"({str(error).splitlines()[0]}); {_FRESH}"
        ) from None
    except _GARBAGE as error:
        raise hig.CorruptResultError(
            f"{path} is not a file of torch.save: {error}; {_FRESH}"
        ) from error
    whole = isinstance(found, dict) and all(
        isinstance(found.get(k), dict) for k in ("run", "state")
    )
    if not whole:
        raise hig.CorruptResultError(f"{path} has no run and state; {_FRESH}")
    return found


def require_none(result: Path, run: Mapping[str, str]) -> None:
    """Refuse to start in the place of a run that was cut short: its work would be lost.

    Raises:
        CheckpointError: There is a checkpoint, of the same run or of another one.
        CorruptResultError, UnsafeResultError, OSError: As for `load`.
    """
    path = result.with_suffix(ENDING)
    if load(path, run) is not None:
        raise CheckpointError(
            f"{path} is of a run of this command line that was cut short; resume it with "
            f"--resume, or {_FRESH}"
        )


def remove(result: Path) -> None:
    """Remove the checkpoints of a run, and temporary files of killed processes."""
    path = result.with_suffix(ENDING)
    leftovers = path.parent.glob(f".{escape(path.name)}.*.tmp")
    for file in (path, result.with_suffix(BEFORE_FAULT), *leftovers):
        file.unlink(missing_ok=True)


class Checkpoints:
    """Writer of the checkpoints of a run, from time to time.

    Args:
        result: The result file, next to which they lie, each in the place of the previous one.
        run: The `identity` of the run.
        every: Seconds of wall-clock from one to the next, at least; more where writing them would
            take more than a hundredth of the run.
        warn: Reports one that could not be written to the user.
        now: Wall clock in seconds.
    """

    def __init__(
        self,
        result: Path,
        run: Mapping[str, str],
        every: float,
        warn: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ):
        self.path, self._aside = result.with_suffix(ENDING), result.with_suffix(BEFORE_FAULT)
        self._run, self._every, self._warn, self._now = run, every, warn, now
        self._next = now() + every

    def load(self) -> dict[str, object] | None:
        """Read the state to resume from, None if there is none; see `load`."""
        return load(self.kept or self.path, self._run)

    @property
    def kept(self) -> Path | None:
        """File to resume from, None if there is none."""
        return next((path for path in (self.path, self._aside) if path.exists()), None)

    @property
    def due(self) -> bool:
        """Return whether to write one now."""
        return self._now() >= self._next

    def write(self, state: Callable[[], Mapping[str, object]]) -> None:
        """Write one, measure how long that takes, and set the time of the next.

        Of several processes the first one writes, and all call this. If it cannot be written, the
        previous one is unchanged and the failure is reported.
        """
        start = self._now()
        current = state()
        if Processes().rank > 0:
            return
        try:
            save(self.path, self._run, current)
        except OSError as error:
            left = "the previous one is unchanged" if self.path.exists() else "there is none yet"
            self._warn(f"no checkpoint, {self.path} cannot be written: {error}; {left}")
        end = self._now()
        self._next = end + max(self._every, (end - start) / SHARE)

    def set_aside(self) -> None:
        """Keep the checkpoint as one from before the fault that has ended the run."""
        if self.path.exists():
            self.path.replace(self._aside)
