"""Operations of torch with wrong derivatives, or none, in the ways that steps ask for them.

``python -m experiments.derivatives`` holds the derivatives of some 250 operations against central
differences in float64, on the CPU, and prints a Markdown table, with those that are wrong, and the
names of those that are missing.
"""

import argparse
import warnings
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch

from experiments._cli.parser import Parser
from experiments._measure.derivative_cases import operations
from experiments._measure.derivatives import TOLERANCE, WAYS, examine

Found = Mapping[str, Mapping[str, float | str]]


def table(found: Found) -> str:
    """Tabulate counts of right and missing operations, and the wrong ones, a row per way."""
    lines = ["| derivative | right | missing | wrong, relative error |", "|---|---:|---:|---|"]
    for way, meaning in WAYS.items():
        wrong = [f"{name} {_percent(error)}" for name, error in _wrong(found, way).items()]
        absent = len(_missing(found, way))
        right = len(found) - absent - len(wrong)
        lines.append(f"| {meaning} | {right} | {absent or '–'} | {', '.join(wrong) or '–'} |")
    return "\n".join(lines)


def missing(found: Found) -> str:
    """List the operations without a derivative, a paragraph per way that lacks some."""
    lists = {meaning: _missing(found, way) for way, meaning in WAYS.items()}
    return "\n\n".join(f"Missing, {way}: {', '.join(own)}" for way, own in lists.items() if own)


def _wrong(found: Found, way: str) -> dict[str, float]:
    errors = {name: own[way] for name, own in found.items()}
    return {name: error for name, error in errors.items() if is_wrong(error)}


def _missing(found: Found, way: str) -> list[str]:
    return [name for name, own in found.items() if isinstance(own[way], str)]


def is_wrong(error: float | str) -> TypeGuard[float]:
    """Return whether there is a derivative, and a wrong one."""
    return not isinstance(error, str) and error > TOLERANCE


def _percent(error: float) -> str:
    # Beyond 100 % the number depends on how small the right derivative is, not on the wrong one.
    return f"{error:.0%}" if error < 1.005 else ">100%"


def main(arguments: Sequence[str] | None = None) -> None:
    """Examine from the command line."""
    options = _parser().parse_args(arguments)
    cases = operations()
    names = options.operation or list(cases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: deprecated or slow functions
        found = {name: examine(*cases[name]) for name in names}
    print(f"torch {torch.__version__}, {len(found)} operations\n\n{table(found)}\n")
    print(missing(found))
    if options.reasons:
        for name, errors in found.items():
            for way, error in errors.items():
                if isinstance(error, str) or is_wrong(error):
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
    parser.add_argument("--reasons", action="store_true", help="torch's message, and the error")
    return parser


if __name__ == "__main__":
    main()
