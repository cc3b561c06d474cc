"""Tables of final losses against a setting."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments._saved import markdown
from experiments._saved.runs import Run
from experiments._study.keep import differing, value_text
from experiments._study.seeds import Seeds
from experiments._study.titles import title

# Values of the settings that differ, and the runs that have them.
_Varied = dict[tuple[object, ...], Seeds]


def ablation(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """Text and tables in Markdown, of whatever settings differ between the runs of each folder."""
    differ = (differing(run.results for run in found) for found in runs.values())
    names = list(dict.fromkeys(name for found in differ for name in found))
    if len(names) != 2:
        return [_values(runs, names)]
    return [
        text
        for folder, found in runs.items()
        for text in (f"{title(folder)}:", _pairs(found, *names))
    ]


def _values(runs: Mapping[str, Iterable[Run]], names: Sequence[str]) -> str:
    """A row for each value, a column for each problem."""
    columns = {folder: _by_values(found, names) for folder, found in runs.items()}
    values = _in_order(value for column in columns.values() for value in column)
    header = [", ".join(name.replace("_", " ") for name in names) or "settings"]
    lines = [[*header, *(title(folder) for folder in columns)]]
    for value in values:
        cells = [_cell(column.get(value), column) for column in columns.values()]
        lines.append([", ".join(map(value_text, value)) or "the same for all", *cells])
    return markdown.table(lines)


def _pairs(runs: Iterable[Run], down: str, across: str) -> str:
    """A row for each value of one setting, a column for each of the other."""
    found = _by_values(runs, [down, across])
    columns, rows = (_in_order((pair[i],) for pair in found) for i in (1, 0))
    lines = [[f"{down} \\ {across}", *(value_text(value) for (value,) in columns)]]
    for (value,) in rows:
        cells = [_cell(found.get((value, other)), found) for (other,) in columns]
        lines.append([value_text(value), *cells])
    return markdown.table(lines)


def _by_values(runs: Iterable[Run], names: Sequence[str]) -> _Varied:
    found: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(run.fact("sim_par", name) for name in names), []).append(run)
    return {values: Seeds(tuple(same)) for values, same in found.items()}


def _in_order(values: Iterable[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Sort distinct values: numbers by size, before texts."""

    def key(value: object) -> tuple[bool, float, str]:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return (not number, float(value) if number else 0.0, str(value))

    return sorted(dict.fromkeys(values), key=lambda value: tuple(map(key, value)))


def _cell(seeds: Seeds | None, among: _Varied) -> str:
    """Format the median loss; the lowest in bold."""
    if seeds is None:
        return "–"
    text = markdown.loss(seeds.final)
    best = min(other.final for other in among.values())
    return f"**{text}**" if len(among) > 1 and seeds.final == best < np.inf else text
