"""Table of the runs of each method on each problem, and comparison of two labels."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments._methods import METHODS
from experiments._robustness.case import EARLY, Record
from experiments._robustness.variants import DEFAULT, cutoff_text
from experiments._saved import markdown
from experiments._study.titles import place, title

#: Which runs are lost, for pages.
LOST = (
    "A run is lost if it ends by an error or above a tenth of its start (on the toy a fifth for "
    "Gauss–Newton; above its start if it took fewer than 100 steps)."
)

# Problem, batch, seconds, dtype, method, rule, cut-off, lr: the same for all seeds of a group.
Key = tuple[str, int, float, str, str, str, float | str | None, float | None]


@dataclass(frozen=True)
class Group:
    """The seeds of one method on one problem with one batch size.

    Attributes:
        records: The runs, at least one.
    """

    records: tuple[Record, ...]

    @property
    def key(self) -> Key:
        """All that the runs have in common."""
        case = self.records[0].case
        return (
            *(case.problem, case.batch, case.seconds, case.dtype),
            *(case.method, case.rule, case.rcond, case.lr),
        )

    @property
    def name(self) -> str:
        """The method with its settings, as a table has it."""
        case = self.records[0].case
        cutoff = "" if case.rcond is None else f", rcond {cutoff_text(case.rcond)}"
        lr = "" if case.lr is None else f", lr {case.lr:g}"
        return f"{METHODS[case.method].label} {case.rule}{cutoff}{lr}"

    @property
    def where(self) -> list[str]:
        """Problem with the seconds of a run, batch size and method, as cells of a table."""
        case = self.records[0].case
        wide = "" if case.dtype == "float32" else f", {case.dtype}"
        return [f"{title(case.problem)}, {case.seconds:g} s{wide}", str(case.batch), self.name]

    @property
    def lost(self) -> int:
        """Number of the runs that are lost."""
        return sum(record.lost for record in self.records)

    @property
    def warned(self) -> int:
        """Number of the lost runs in which a note says so."""
        return sum(record.lost and record.warned is not None for record in self.records)

    @property
    def median(self) -> float:
        """Median of the final losses of the runs that are not lost, NaN if there are none."""
        kept = [record.end for record in self.records if not record.lost]
        return statistics.median(kept) if kept else math.nan

    @property
    def of_all(self) -> float:
        """Median of the final losses of all runs, of which one that is not finite is infinite."""
        return statistics.median(math.inf if r.end is None else r.end for r in self.records)

    @property
    def early(self) -> float:
        """Median of the losses after 20 steps over those at the start; one not finite is infinite.

        NaN if no run took so many steps.
        """
        found = [
            math.inf if record.early is None else record.early / record.start
            for record in self.records
            if record.steps >= EARLY
        ]
        return statistics.median(found) if found else math.nan

    @property
    def worst(self) -> float:
        """Largest final loss of all runs, lost ones included; infinite if one is not finite."""
        return max(math.inf if record.end is None else record.end for record in self.records)

    @property
    def spread(self) -> float:
        """Worst over median."""
        return self.worst / self.median if self.median else math.nan

    @property
    def rate(self) -> float:
        """Median of the steps per second."""
        rates = [record.steps / record.trained for record in self.records if record.trained]
        return statistics.median(rates) if rates else math.nan


def groups(records: Iterable[Record]) -> dict[Key, Group]:
    """Collect the seeds of each method, in the order of the tables."""
    found: dict[Key, list[Record]] = {}
    for record in records:
        found.setdefault(Group((record,)).key, []).append(record)
    return {key: Group(tuple(found[key])) for key in sorted(found, key=_order)}


def _order(key: Key) -> tuple[object, ...]:
    problem, batch, seconds, dtype, method, *settings = key
    where = (place(problem), seconds, dtype, -batch, list(METHODS).index(method))
    return (*where, *map(str, settings))


def table(records: Sequence[Record]) -> str:
    """Tabulate the runs of one label, in Markdown that is aligned for terminals.

    If a method has several settings, a column has the median over that of the best of them.
    """
    header = ["problem", "batch", "method", "runs", "lost", f"step {EARLY} / start", "median"]
    found = groups(records)
    lowest: dict[tuple[object, ...], float] = {}
    for key, group in found.items():
        if not math.isnan(group.median):
            lowest[key[:5]] = min(group.median, lowest.get(key[:5], math.inf))
    several = len(found) > len({key[:5] for key in found})
    lines = [[*header, *(["over best"] if several else []), "worst", "spread", "steps/s"]]
    for key, group in found.items():
        noted = f" ({group.warned} noted)" if group.warned else ""
        best = lowest.get(key[:5], 0.0)
        over = [_amount(group.median / best if best else math.nan)] if several else []
        lines.append(
            [
                *group.where,
                *(str(len(group.records)), f"{group.lost}{noted}", _amount(group.early)),
                *(_loss(group.median), *over, _loss(group.worst)),
                *(_amount(group.spread), _amount(group.rate)),
            ]
        )
    return markdown.table(lines)


def defaults(records: Sequence[Record]) -> str:
    """Tabulate the median by default beside that of the best other settings of each method.

    Lost runs count: their part differs from one setting to the other.
    """
    header = ["problem", "batch", "method", "default", "best of the grid", "its settings"]
    lines = [[*header, "default / best", "runs", "lost by default"]]
    for group in (found := groups(records)).values():
        others = [
            other for key, other in found.items() if key[:5] == group.key[:5] and key[5] != DEFAULT
        ]
        if group.key[5] != DEFAULT or not others:
            continue
        best = min(others, key=lambda other: other.of_all)
        label = METHODS[group.records[0].case.method].label
        lines.append(
            [
                *(*group.where[:2], label, _loss(group.of_all), _loss(best.of_all)),
                best.name.removeprefix(label).strip(),
                _amount(group.of_all / best.of_all if best.of_all else math.nan),
                *(str(len(group.records)), str(group.lost)),
            ]
        )
    if len(lines) == 1:
        return "There are no runs by default with others to compare."
    return markdown.table(lines)


def comparison(before: Sequence[Record], after: Sequence[Record]) -> str:
    """Tabulate what two labels have in common, seed by seed; a text if that is nothing."""
    header = ["problem", "batch", "method", "seeds", "lost", f"step {EARLY} / start", "median"]
    lines = [[*header, "median ratio", "spread", "steps/s ratio"]]
    new = groups(after)
    for key, old in groups(before).items():
        if key not in new:
            continue
        seeds = {record.case.seed for record in old.records}
        seeds &= {record.case.seed for record in new[key].records}
        if not seeds:
            continue
        was, now = (
            Group(tuple(record for record in group.records if record.case.seed in seeds))
            for group in (old, new[key])
        )
        lines.append(
            [
                *was.where,
                *(str(len(seeds)), f"{was.lost} → {now.lost}"),
                f"{_amount(was.early)} → {_amount(now.early)}",
                f"{_loss(was.median)} → {_loss(now.median)}",
                _amount(now.median / was.median if was.median else math.nan),
                f"{_amount(was.spread)} → {_amount(now.spread)}",
                _amount(now.rate / was.rate if was.rate else math.nan),
            ]
        )
    if len(lines) == 1:
        return "The two have no run in common."
    return markdown.table(lines)


def _loss(number: float) -> str:
    """Format a loss with two digits; a dash for none."""
    if math.isnan(number):
        return "–"
    if not math.isfinite(number):
        return "not finite"
    return f"{number:.2g}" if 0.1 <= number < 100 else _plain(f"{number:.1e}")


def _amount(number: float) -> str:
    return _plain(f"{number:.3g}") if math.isfinite(number) else "–"


def _plain(text: str) -> str:
    """Write an exponent without its plus and zeros: 1e-03 as 1e-3."""
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
