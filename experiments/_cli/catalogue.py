"""Problems, the methods of each, and their settings: published ones, or our own choice."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from experiments._methods import METHODS
from experiments._problems import FOLDERS, make
from problems import Problem

# Settings with a column of their own, and those shown only if they are not the method's default.
_SHOWN = ("batch_size", "lr", "step_rule", "schedule")
_RARE = (
    "engine", "method", "lanczos_steps", "sketch", "momentum", "momentum_kind", "graft",
)  # fmt: skip
_HEADER = ("method", "name", "batch", "lr", "step size", "values", "further settings")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--problem", metavar="NAME", help=f"this problem alone: {', '.join(FOLDERS)}"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, with all settings")
    parser.set_defaults(command=main, error=parser.error)


def main(options: argparse.Namespace) -> int:
    """Print the catalogue; returns the exit status: 0, or 1 if no problem could be imported."""
    entries = []
    for folder in _chosen(options):
        try:
            entries.append(entry(folder, make(folder)))
        except ImportError as error:
            remedy = "get the missing package with: pip install 'hig[problems]'"
            print(f"note: {folder} is left out: {error}; {remedy}", file=sys.stderr)
    if options.json:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(map(text, entries)))
    return 0 if entries else 1


def _chosen(options: argparse.Namespace) -> Sequence[str]:
    if options.problem is None:
        return tuple(FOLDERS)
    found = [f for f in FOLDERS if options.problem in (f, f.rpartition("/")[2])]
    if not found:
        options.error(f"unknown problem {options.problem!r}; known are {', '.join(FOLDERS)}")
    return found


def entry(folder: str, problem: Problem) -> dict[str, object]:
    """Describe a problem: length of a run, methods and settings.

    Args:
        folder: That of its submit scripts, a key of `FOLDERS`.
        problem: The problem with its published parameters.

    Returns:
        Plain Python: ``problem``, ``scripts`` (the module of a script, without the method),
        ``summary``, ``epochs`` or ``time_budget`` (the default length of a run) and ``methods``, a
        dict by method of ``label``, ``published`` and the ``settings`` that the method has.
    """
    methods = {}
    for name, chosen in problem.settings.items():
        settings = asdict(METHODS[name].complete(chosen))
        published = settings.pop("published")
        settings = {key: value for key, value in settings.items() if value is not None}
        methods[name] = {
            "label": METHODS[name].label,
            "published": published,
            "settings": settings,
        }
    by_time = problem.epochs is None
    length = {"time_budget": problem.time_budget} if by_time else {"epochs": problem.epochs}
    return {
        "problem": problem.name,
        "scripts": f"experiments.{folder.replace('/', '.')}.submit_",
        "summary": (sys.modules[type(problem).__module__].__doc__ or "").partition("\n")[0],
        **length,
        "methods": methods,
    }


def text(entry: dict[str, object]) -> str:
    """Format an entry as a table for the terminal, aligned with spaces."""
    by_time = "time_budget" in entry
    length = f"{entry['time_budget']:g} s" if by_time else f"{entry['epochs']} epochs"
    rows = [_HEADER, *(_row(name, method) for name, method in entry["methods"].items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(
        [
            f"{entry['problem']}: {entry['summary']}",
            f"python -m {entry['scripts']}<method>, by default for {length}",
            *lines,
        ]
    )


def _row(name: str, method: dict[str, object]) -> tuple[str, ...]:
    settings = method["settings"]
    further = [
        _named(key, value)
        for key, value in settings.items()
        if key not in _SHOWN and not (key in _RARE and value == METHODS[name].options[key])
    ]
    return (
        name,
        method["label"],
        str(settings["batch_size"]),
        f"{settings['lr']:g}",
        settings.get("step_rule") or settings["schedule"],
        "published" if method["published"] else "our own",
        ", ".join(further),
    )


def _named(key: str, value: object) -> str:
    if isinstance(value, str):
        return value  # clear without its name, as in legends
    return f"{key.replace('_', ' ')} {value:g}"
