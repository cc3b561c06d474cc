"""Runs of many seeds with their progress, and the result file of all that are done."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import hig
from experiments._provenance import origin, revision
from experiments._robustness.case import Case, Record
from experiments._robustness.records import done
from experiments._robustness.side_by_side import SideBySide
from experiments._run.signals import Signals

# Failures in a row that are not an accident of one run, but a full disk or a missing package.
_MOST_FAILURES = 3


def sweep(
    cases: Sequence[Case], out: Path, workers: int, begun: Mapping[str, str]
) -> tuple[int, int]:
    """Run the cases that are not done yet, with a line on stderr for each.

    Three failures in a row end it.

    Returns:
        Number of failures, and number of the signal that ended it or 0.
    """
    left = [case for case in cases if done(case, out) is None]
    print(f"{len(cases) - len(left)} of {len(cases)} runs are done", file=sys.stderr)
    start, statuses = time.monotonic(), []

    def report(case: Case, status: int, error: str) -> bool:
        statuses.append(status)
        minutes = (time.monotonic() - start) / 60
        remaining = minutes / len(statuses) * (len(left) - len(statuses))
        record = done(case, out)
        text = f"FAILED ({error or status})" if record is None else _described(record)
        print(
            f"{len(statuses)}/{len(left)}, {minutes:.1f} min, {remaining:.1f} min left: "
            f"{case}: {text}",
            file=sys.stderr,
            flush=True,
        )
        if len(statuses) < _MOST_FAILURES or not all(statuses[-_MOST_FAILURES:]):
            return False
        print(
            f"{_MOST_FAILURES} failures in a row: ending here; the same command goes on where it "
            "stopped",
            file=sys.stderr,
        )
        return True

    with Signals(quiet=True) as signals:
        SideBySide(out, workers, begun).run(left, signals, report)
    return sum(map(bool, statuses)), signals.number


def _described(record: Record) -> str:
    end = "not finite" if record.end is None else f"{record.end:.2e}"
    lost = ", LOST" if record.lost else ""
    return f"{record.start:.2e} -> {end} in {record.steps} steps{lost}"


def begin() -> dict[str, str]:
    """Return the origin of the records, with the revision of the imported package."""
    return {**origin(), "hig_revision": _hig_revision()}


def default_label() -> str:
    """Version of the package, and the start of its revision."""
    commit, _, dirty = _hig_revision().partition("-")
    words = [hig.__version__, *([commit[:10]] if commit != "none" else []), *filter(None, [dirty])]
    return "-".join(words)


def _hig_revision() -> str:
    """Revision of the imported package, which need not lie next to this one."""
    return revision(Path(hig.__file__).resolve().parents[1])
