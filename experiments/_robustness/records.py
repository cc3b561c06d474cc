"""Files of the records: one JSON file per run."""

import json
from collections.abc import Iterable
from pathlib import Path

import hig
from experiments._robustness.case import Case, Record


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


def load_all(out: Path) -> list[Record]:
    """Read all records below a folder, sorted by their files."""
    found = (load(path) for path in sorted(out.glob("*/*/*.json")))
    return [record for record in found if record is not None]


def of_cases(cases: Iterable[Case], out: Path) -> list[Record]:
    """Read the records of those cases that are done."""
    return [record for case in cases if (record := done(case, out)) is not None]
