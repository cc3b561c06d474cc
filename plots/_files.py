"""Result files as the figures see them, and the command line that all figures share."""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hig import load_results
from hig.errors import printable
from plots import _style

SUFFIXES = (".png", ".pdf", ".svg")
# Of a name in a figure.
MOST_CHARACTERS = 300


class PlotError(ValueError):
    """The given files cannot be drawn; the text has the reason and the remedy."""


@dataclass(frozen=True)
class ResultFile:
    """The contents of one result file and the names under which a figure shows it."""

    path: Path
    results: dict

    @property
    def label(self):
        """The name in legends; files that have none go by their file name."""
        return _text(self.results.get("label") or self.path.stem)

    @property
    def problem(self):
        """Name of the problem, empty if the file does not have it."""
        return _text(self.results.get("problem") or "")

    @property
    def method(self):
        """Name under which the method has its colour; taken from the file name if necessary."""
        if self.results.get("method"):
            return _style.method_name(_text(self.results["method"]))
        words = [_style.method_name(word) for word in re.split(r"[^A-Za-z]+", self.path.stem)]
        known = [word for word in words if _style.is_known(word)]
        return known[0] if known else _style.method_name(self.label)

    def get(self, key, remedy):
        """The value of a key, "spectrum.rcond" of a nested dict; a PlotError names the remedy."""
        value = self.results
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                there = ", ".join(map(printable, self.results)) or "nothing"
                raise PlotError(f"{self.path} has no '{key}'; it has {there}. {remedy}")
            value = value[part]
        return value

    def array(self, key, ndim, remedy):
        """A float64 array of `ndim` dimensions; a PlotError names the remedy."""
        value = self.get(key, remedy)
        try:
            if np.iscomplexobj(value):
                raise TypeError("its numbers are complex")
            array = np.asarray(value, dtype=np.float64)
        except (OverflowError, TypeError, ValueError) as error:
            raise PlotError(
                f"'{key}' in {self.path} is not an array of numbers: {error}"
            ) from error
        if array.ndim != ndim or array.size == 0:
            raise PlotError(
                f"'{key}' in {self.path} must be a non-empty array of {ndim} dimension(s), "
                f"found shape {array.shape}. {remedy}"
            )
        return array


def having(files, key):
    """The files that have a key, with a note on the others; all of them if none has it."""
    found = [file for file in files if key in file.results]
    if not found:
        return list(files)
    for file in files:
        if key not in file.results:
            note(f"{file.path} has no '{key}' and is left out")
    return found


def newest(files):
    """The files without those that a newer one of the same run replaces, with a note on each.

    Two files are of the same run where problem, method, label, seed and the weights that they
    started from agree: as seeds of one experiment they would count twice.
    """
    latest = {}
    for index, file in enumerate(files):
        run = index if file.results.get("seed") is None else _run(file)
        if run in latest:
            older, index = sorted((latest[run], index), key=lambda i: _written(files[i]))
            note(
                f"{files[older].path} is left out: {files[index].path} has the same label "
                f"'{file.label}' and seed {_text(file.results['seed'])}, and is newer or given "
                "twice"
            )
        latest[run] = index
    return [files[index] for index in sorted(latest.values())]


def _run(file):
    settings = file.results.get("sim_par")
    start = settings.get("init_from") if isinstance(settings, dict) else None
    named = (file.problem, file.method, file.label, file.results["seed"], start)
    return tuple(printable(name) for name in named)


def _text(value):
    # matplotlib reads a formula between dollars, and fails if it is not one.
    text = printable(value).replace("$", r"\$")
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def _written(file):
    return file.path.stat().st_mtime_ns


def ascending(file, keys, remedy):
    """Arrays of positive numbers, (N,) each, in ascending order of the first one."""
    arrays = [file.array(key, 1, remedy) for key in keys]
    count = len(arrays[0])
    for key, array in zip(keys, arrays, strict=True):
        if len(array) != count or not (np.isfinite(array) & (array > 0)).all():
            raise PlotError(
                f"'{key}' in {file.path} must be {count} positive numbers, found {array}; measure "
                "again"
            )
    return np.array(arrays)[:, np.argsort(arrays[0])]


def load(path):
    """Read one ResultFile; a PlotError if there is no such file or it is none."""
    try:
        return ResultFile(Path(path), load_results(path))
    except (OSError, ValueError) as error:  # load_results' own errors are ValueErrors
        result = Path(path).parent / f"{Path(path).stem}.pickle"
        if Path(path) != result and result.exists():
            raise PlotError(f"{path} is not a result file; give {result}") from error
        raise PlotError(str(error)) from error


def parser(module, description, epilog):
    """The options that every figure has: `results` and `--out`."""
    result = argparse.ArgumentParser(
        prog=f"python -m plots.{module}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("results", nargs="+", metavar="RESULTS", help="result files (.pickle)")
    result.add_argument(
        "--out",
        required=True,
        type=_figure_path,
        metavar="FIGURE",
        help="where to write the figure; the suffix .png, .pdf or .svg chooses the format",
    )
    return result


def write(options, draw):
    """Load the files, draw a figure of them, write it and say where; returns the exit status."""
    try:
        with _style.look():
            figure = draw([load(path) for path in options.results])
            options.out.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(options.out)
    except PlotError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: --out must be a file that can be written, got {options.out}: "
            f"{error.strerror or error}; give another place",
            file=sys.stderr,
        )
        return 2
    print(f"figure written to {options.out}")
    return 0


def note(text):
    """Reports on stderr what a figure leaves out."""
    print(f"note: {printable(text)}", file=sys.stderr)


def _figure_path(text):
    path = Path(text)
    if path.suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(
            f"must end in one of {', '.join(SUFFIXES)}, got {text!r}; for example figure.png"
        )
    return path
