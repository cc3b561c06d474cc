"""Files of the records: one JSON file per run, and a result file of all runs of a label."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

import hig
from experiments._methods import METHODS
from experiments._robustness.case import Case, Record
from experiments._robustness.variants import cutoff_text
from experiments._saved.result_files import ResultFileError, read
from experiments._study.titles import place, title

# Columns of a result file besides those of a case; the last ones are for figures alone.
_LOSSES, _COUNTS = ("start", "early", "end", "trained"), ("steps",)
_CASE = tuple(field.name for field in fields(Case) if field.name != "label")


def save(record: Record, out: Path) -> None:
    """Write the file of a record below a folder, whole or not at all."""
    path = out / record.case.place
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record.to_json(), indent=1, allow_nan=False) + "\n"
    hig.files.write_atomically(path, text.encode())


def load(path: Path) -> Record | None:
    """Read a record; None if there is no such file, or it is not one."""
    try:
        return Record.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def done(case: Case, out: Path) -> Record | None:
    """Read the record of a case, None if there is none; a damaged one is made again."""
    record = load(out / case.place)
    return record if record is not None and record.case == case else None


def load_all(out: Path, label: str | None = None) -> list[Record]:
    """Read all records below a folder, or those of one label, by problem and seed."""
    found = [load(path) for path in sorted(out.glob("*/*/*.json"))]
    records = [r for r in found if r is not None and label in (None, r.case.label)]
    return sorted(records, key=lambda record: (place(record.case.problem), record.case.seed))


def labels(out: Path) -> list[str]:
    """List the labels that have records below a folder."""
    return sorted({path.parent.parent.name for path in out.glob("*/*/*.json")})


def results_of(records: Sequence[Record]) -> dict[str, object]:
    """Collect records of one label as columns, for a result file.

    Losses that are not finite are NaN. ``revisions`` are those of the package under test.
    """
    cases = [record.case for record in records]
    runs: dict[str, object] = {name: [getattr(case, name) for case in cases] for name in _CASE}
    runs |= {name: np.asarray(runs[name]) for name in ("batch", "seconds", "seed")}
    for name in _LOSSES:
        values = [getattr(record, name) for record in records]
        runs[name] = np.asarray([math.nan if v is None else v for v in values], dtype=np.float64)
    for name in _COUNTS:
        runs[name] = np.asarray([getattr(record, name) for record in records], dtype=np.int64)
    runs["stopped"] = [record.stopped for record in records]
    runs["notes"] = [[list(note) for note in record.notes] for record in records]
    runs["lost"] = np.asarray([record.lost for record in records], dtype=np.bool_)
    runs["limit"] = np.asarray([record.limit for record in records], dtype=np.float64)
    runs["title"] = [title(case.problem) for case in cases]
    runs["method_label"] = [METHODS[case.method].label for case in cases]
    runs["cutoff"] = ["" if c.rcond is None else cutoff_text(c.rcond) for c in cases]
    runs["rate"] = ["" if c.lr is None else f"{c.lr:.12g}" for c in cases]
    revisions = sorted({record.origin.get("hig_revision", "none") for record in records})
    return {
        "label": cases[0].label,
        "revisions": revisions,
        "machine": dict(records[0].machine),
        "runs": runs,
    }


def read_results(path: Path) -> list[Record]:
    """Read the records of a result file.

    Raises:
        ResultFileError: It is not a result file of this command.
        OSError: It cannot be read.
        CorruptResultError: It is not a result file.
        UnsafeResultError: It asks for more than plain Python and numpy.
    """
    results = read(path)
    try:
        runs = results["runs"]
        return [_record(results, runs, index) for index in range(len(runs["seed"]))]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ResultFileError(
            f"{path} has no runs of many seeds; give a result file of python -m "
            "experiments.robustness"
        ) from error


def _record(results: Mapping, runs: Mapping, index: int) -> Record:
    case = {name: runs[name][index] for name in _CASE}
    case |= {name: case[name].item() for name in ("batch", "seconds", "seed")}
    losses = {name: float(runs[name][index]) for name in _LOSSES}
    return Record(
        case=Case(label=str(results["label"]), **case),
        **{name: None if math.isnan(value) else value for name, value in losses.items()},
        steps=int(runs["steps"][index]),
        stopped=runs["stopped"][index],
        notes=tuple((int(step), text) for step, text in runs["notes"][index]),
        origin=dict(results["origin"]),
        machine=dict(results["machine"]),
    )
