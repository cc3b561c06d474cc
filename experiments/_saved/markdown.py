"""Cells of Markdown tables from the numbers of several runs."""

import math
from collections.abc import Callable, Sequence

import numpy as np


def table(lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table, aligned for terminals: words at both ends, numbers between."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        first, *numbers, last = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in numbers)]
        texts.append(f"| {' | '.join([*cells, last[0].ljust(last[1])])} |")
    first, *numbers, last = ("-" * (width + 1) for width in widths)
    texts.insert(1, f"|-{'|'.join([first, *(f'{dashes}:' for dashes in numbers), last])}-|")
    return "\n".join(texts)


def median_and_range(numbers: Sequence[float], shown: Callable[[float], str]) -> str:
    """Format the median, and the range if it differs as shown."""
    middle, low, high = (shown(float(of(numbers))) for of in (np.median, np.min, np.max))
    return middle if low == high else f"{middle} ({low} to {high})"


def to_target(seconds: Sequence[float]) -> str:
    """Median and range of the seconds to a target, NaN for runs that did not get there."""
    reached = [number for number in seconds if not math.isnan(number)]
    share = f"{len(reached)} of {len(seconds)}"
    return f"{median_and_range(reached, amount) if reached else '–'}, {share}"


def loss(number: float) -> str:
    """A loss in three digits."""
    return f"{number:.3g}" if math.isfinite(number) else "not finite"


def amount(number: float) -> str:
    """Seconds, steps or epochs; a dash for NaN."""
    if math.isnan(number):
        return "–"
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"
