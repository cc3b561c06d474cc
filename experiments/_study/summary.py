"""Comparison in one table, and pages that have it between two marks."""

from collections.abc import Sequence
from pathlib import Path

from experiments._methods import METHODS
from experiments._saved import markdown
from experiments._saved.result_files import ResultFileError
from experiments._saved.runs import Run
from experiments._study.kept import Kept
from experiments._study.seeds import Seeds, experiments
from experiments._study.titles import title

BEGIN, END = "<!-- begin: study -->", "<!-- end: study -->"
_COLUMNS = ("hig", "gn", "lm", "khig", "soap", "adam")


def summary(kept: Kept) -> str:
    """Medians of the final test losses, a line for each problem, the lowest in bold."""
    lines = [["", *(METHODS[name].label for name in _COLUMNS), "best of the others"]]
    for folder, runs in kept.compared.items():
        found = experiments(runs)
        texts = {seeds.method: _two_digits(seeds, found[0]) for seeds in reversed(found)}
        others = [f"{seeds.name()} {texts[seeds.method]}" for seeds in found if _is_other(seeds)]
        numbers = [texts.get(name, "") for name in _COLUMNS]
        lines.append([_problem(folder, runs), *numbers, *(others or [""])[:1]])
    return markdown.table(lines)


def _problem(folder: str, runs: Sequence[Run]) -> str:
    budgets = {run.fact("sim_par", "time_budget") for run in runs}
    seconds = budgets.pop() if len(budgets) == 1 else None
    return title(folder) if seconds is None else f"{title(folder)}, {float(str(seconds)):g} s"


def _is_other(seeds: Seeds) -> bool:
    return seeds.method not in _COLUMNS


def _two_digits(seeds: Seeds, best: Seeds) -> str:
    """Format with two digits, which are more than the seeds agree on."""
    number = seeds.final
    text = f"{number:.1e}".replace("e-0", "e-") if number < 1e-2 else markdown.loss(number)
    return f"**{text}**" if seeds is best else text


def filled(page: Path, table: str, first: str = BEGIN, last: str = END) -> str:
    """Insert a table between the marks of a page; returns the new text.

    Raises a `ResultFileError` if the page has not both marks once, ``first`` before ``last``.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ResultFileError(f"{page} is not a text in UTF-8: {error}; give a page") from error
    before, begin, rest = text.partition(first)
    old, end, after = rest.partition(last)
    if not (begin and end) or first in old + after or last in before + after:
        raise ResultFileError(
            f"{page} must have the lines {first} and {last} once each, with the table between "
            "them; write them at the place of the table"
        )
    return f"{before}{first}\n\n{table}\n\n{last}{after}"
