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
    """How many operations are right, and which are not, as a Markdown table with a row per way."""
    lines = ["| derivative | right | wrong, relative error | missing |", "|---|---:|---|---|"]
    for way, meaning in WAYS.items():
        errors = {name: own[way] for name, own in found.items()}
        missing = [name for name, error in errors.items() if isinstance(error, str)]
        wrong = [f"{name} {error:.0%}" for name, error in errors.items() if is_wrong(error)]
        right = len(errors) - len(missing) - len(wrong)
        lines.append(f"| {meaning} | {right} | {_listed(wrong)} | {_listed(missing)} |")
    return "\n".join(lines)


def is_wrong(error: float | str) -> bool:
    """Whether there is a derivative, and a wrong one."""
    return not isinstance(error, str) and error > TOLERANCE


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "–"


def main(arguments: Sequence[str] | None = None) -> None:
    """Examine from the command line."""
    options = _parser().parse_args(arguments)
    cases = operations()
    names = options.operation or list(cases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, of what is deprecated or slow
        found = {name: examine(*cases[name]) for name in names}
    print(f"torch {torch.__version__}, {len(found)} operations\n\n{table(found)}")
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
    parser.add_argument("--reasons", action="store_true", help="what torch says, and how far off")
    return parser


if __name__ == "__main__":
    main()
