"""Grid of a study as a table: settings tried, and settings that have won."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments._methods import METHODS
from experiments._saved import markdown
from experiments._study.keep import value_text
from experiments._study.titles import place, title


def grid_table(entries: Sequence[Mapping[str, object]]) -> str:
    """Tabulate the settings tried, the best in longer runs after an arrow, the winners in bold.

    A dagger marks winners at an end of the values tried.
    """
    lines = [["problem", "method", "final test loss on the seed of the grid"]]
    for entry in sorted(entries, key=lambda entry: place(str(entry["problem"]))[0]):
        texts, longer = [], dict(map(_tried, entry.get("finals", ())))
        mark = "".join(f" †{name}" for name in _at_an_end(entry))
        for tried in entry["tried"]:
            point, loss = _tried(tried)
            text = f"{', '.join(f'{name} {value_text(value)}' for name, value in point)}: {loss}"
            text += f" → {longer[point]}" if point in longer else ""
            texts.append(f"**{text}**{mark}" if dict(point) == entry["won"] else text)
        folder = str(entry["problem"])
        cells = [title(folder), METHODS[str(entry["method"])].label]
        lines.append([*cells, "; ".join(texts)])
    if len(lines) == 1:
        return "Nothing was tuned."
    text = (
        "In bold the winners, after an arrow the losses of longer runs. A dagger shows which of "
        "the settings has won at an end of the values tried: there may be better ones beyond."
    )
    return f"{text}\n\n{markdown.table(lines)}"


def _at_an_end(entry: Mapping[str, object]) -> list[str]:
    """Names of the numbers that have won at an end of those that were tried."""
    won, tried = dict(entry["won"]), list(entry["tried"])
    numbers = {name: {point[name] for point in tried} for name in won if name in tried[0]}
    return [
        name
        for name, values in numbers.items()
        if len(values) > 1
        and all(isinstance(value, int | float) for value in values)
        and won[name] in (min(values), max(values))
    ]


def _tried(entry: Mapping[str, object]) -> tuple[tuple[tuple[str, object], ...], str]:
    """Format settings and their loss."""
    loss = np.inf if entry["loss"] is None else float(str(entry["loss"]))
    return tuple(item for item in entry.items() if item[0] != "loss"), markdown.loss(loss)
