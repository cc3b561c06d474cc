"""Which operations of torch have wrong derivatives, or none, in the ways that steps ask for them.

``python -m experiments.derivatives`` holds the derivatives of some 250 operations against central
differences in float64, on the CPU, and prints those that are wrong or missing as a Markdown table.
"""

import argparse
import warnings
from collections.abc import Mapping, Sequence

import torch

from experiments._measure.derivative_cases import operations
from experiments._measure.derivatives import TOLERANCE, WAYS, examine
from experiments._parser import Parser

Found = Mapping[str, Mapping[str, float | str]]


def table(found: Found) -> str:
    """The operations of which a derivative is wrong or missing, as a Markdown table."""
    lines = ["| operation | " + " | ".join(WAYS) + " |", "|---|" + "---|" * len(WAYS)]
    for name, errors in found.items():
        cells = [_cell(errors[way]) for way in WAYS]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(error: float | str) -> str:
    if isinstance(error, str):
        return "missing"
    if error <= TOLERANCE:
        return ""
    return f"**{100 * error:.0f} % off**" if error > 0.01 else f"**{error:.0e} off**"


def counts(found: Found) -> str:
    """How many operations are right, way by way."""
    parts = []
    for way, meaning in WAYS.items():
        cells = [_cell(errors[way]) for errors in found.values()]
        missing = cells.count("missing")
        right = cells.count("")
        wrong = len(cells) - right - missing
        parts.append(f"{way} ({meaning}): {right} right, {wrong} wrong, {missing} missing")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Examine from the command line."""
    options = _parser().parse_args(arguments)
    cases = operations()
    names = options.operation or list(cases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, of what is deprecated or slow
        found = {name: examine(*cases[name]) for name in names}
    print(
        f"torch {torch.__version__}, {len(found)} operations\n\n{counts(found)}\n\n{table(found)}"
    )
    if options.reasons:
        for name, errors in found.items():
            for way, error in errors.items():
                if _cell(error):
                    print(f"\n{name}, {way}: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.derivatives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "operation",
        nargs="*",
        choices=[*operations(), []],
        metavar="OPERATION",
        help="operations to examine (default: all)",
    )
    parser.add_argument("--reasons", action="store_true", help="what torch says, and how far off")
    return parser


if __name__ == "__main__":
    main()
