"""Final losses of many seeds: problems x methods x batch sizes at equal processor time.

Each run is a process of its own on one thread: a new network and new data of its seed, the batches
of the problem, then the loss on a test set that all share. Only the steps count as training time. A
run is lost if it ends above a tenth of its start (on the conditioning toy above a fifth for
Gauss-Newton; above its start if it took fewer than 100 steps), or by an error.

METHOD is NAME[:RULE[:RCOND[:LR]]], NAME one of hig, gn, lm. RULE is a step rule (trust by default,
with lr=1 and the cut-off of the problem), "default" for the optimiser without any argument, or
"published" for the settings of the problem.

Records are one small file per run, in DIR/LABEL/PROBLEM/. Runs that are done are not repeated: the
same command resumes after an interruption, and further seeds or methods are added to those there.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import hig
from experiments._cli.argument_types import positive_float, positive_int
from experiments._measure import command
from experiments._problems import FOLDERS
from experiments._robustness.case import Record
from experiments._robustness.plan import Plan
from experiments._robustness.records import labels, load_all, read_results, results_of
from experiments._robustness.summary import comparison, defaults, table
from experiments._robustness.sweep import begin, default_label, sweep
from experiments._robustness.variants import Variant
from experiments._run.options import DTYPES
from experiments._run.signals import EXIT_STATUS, STOPPED
from experiments._saved.folders import make_folder
from experiments._saved.result_files import ERRORS, SUFFIX, ResultFileError, fail, note
from experiments._study.summary import filled

DEFAULT = Plan()
BEGIN, END = "<!-- begin: robustness -->", "<!-- end: robustness -->"
OF_DEFAULTS = "<!-- begin: defaults -->", "<!-- end: defaults -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status: 1 if runs have failed, 2 for errors."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.into and options.table is None:
        parser.error("--into needs --table: give both, or leave it out")
    if options.defaults and len(options.table or []) != 1:
        parser.error("--defaults needs --table NAME: give the name of one label")
    if options.table and len(options.table) > 2:
        parser.error(f"--table takes at most two names, got {len(options.table)}; give one or two")
    try:
        if options.table is not None:
            return _tables(options)
        return _runs(parser, options)
    except ERRORS as error:
        return fail(error)


def _tables(options: argparse.Namespace) -> int:
    """Print a table of one label, or the comparison of two; returns the exit status."""
    found = [_records(name, options.output) for name in options.table or [options.label]]
    if options.defaults:
        text, marks = defaults(found[0]), OF_DEFAULTS
    else:
        text, marks = table(found[0]) if len(found) == 1 else comparison(*found), (BEGIN, END)
    pages = {page: filled(page, text, *marks) for page in options.into}
    for page, whole in pages.items():
        hig.files.write_atomically(page, whole.encode())
    print(text)
    return 0


def _records(name: str, out: Path) -> list[Record]:
    """Read the records of a label, or of a result file."""
    if name.endswith(SUFFIX):
        return read_results(Path(name))
    records = load_all(out, name)
    if not records:
        there = ", ".join(labels(out)) or "no runs"
        raise ResultFileError(
            f"{out} has no runs of the label {name}, it has {there}; give another one, or a "
            f"result file (*{SUFFIX})"
        )
    return records


def _runs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Run all cases, print their table and save a result file; returns the exit status."""
    plan = Plan(
        *(tuple(values) for values in (options.problems, options.methods, options.batch)),
        *(options.seeds, options.seconds, options.dtype),
    )
    try:
        cases = plan.cases(options.label)
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    make_folder(options.output, "--output")
    begun = begin()
    failed, stopped = sweep(cases, options.output, options.workers, begun)
    records = load_all(options.output, options.label)
    if records:
        print(table(records))
        path = options.output / f"{options.label}{SUFFIX}"
        results = results_of(records)
        command.save_results("robustness", begun, {path: results})
        if len(results["revisions"]) > 1:
            note(
                f"{options.label} has runs of several revisions: {', '.join(results['revisions'])}"
            )
    if stopped:
        print(
            f"{STOPPED[stopped]}; the same command resumes, with --label {options.label} also "
            "after a change of the code",
            file=sys.stderr,
        )
        return EXIT_STATUS[STOPPED[stopped]]
    return 1 if failed else 0


def _variant(text: str) -> Variant:
    try:
        return Variant.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _label(text: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", text):
        raise argparse.ArgumentTypeError(
            f"must be a word of letters, digits and . + - _, got {text!r}; give such as before"
        )
    return text


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("robustness", __doc__)
    parser.add_argument(
        "--problems", nargs="+", choices=tuple(FOLDERS), default=DEFAULT.problems, metavar="NAME",
        help=f"default {' '.join(DEFAULT.problems)}",
    )  # fmt: skip
    parser.add_argument(
        "--methods", nargs="+", type=_variant, default=DEFAULT.variants,
        metavar="METHOD", help=f"see above (default {' '.join(map(str, DEFAULT.variants))})",
    )  # fmt: skip
    parser.add_argument(
        "--batch", nargs="+", type=positive_float, default=DEFAULT.batches, metavar="FACTOR",
        help="batch sizes over that of the settings of the problem (default 1 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=positive_int, default=DEFAULT.seeds, metavar="N", help="seeds 0 to N-1 (20)"
    )
    parser.add_argument(
        "--seconds", type=positive_float, default=DEFAULT.seconds, metavar="S",
        help="processor time of the training of each run (15)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="float32")
    parser.add_argument(
        "--workers", type=positive_int, default=1, metavar="N", help="runs side by side (1)"
    )
    parser.add_argument(
        "--label", type=_label, default=default_label(),
        help="name of the code under test (default: its version and revision, %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--output", "--out", type=Path, default=Path("results/robustness"), metavar="DIR",
        help="folder of the records (default results/robustness)",
    )  # fmt: skip
    parser.add_argument(
        "--table", nargs="*", metavar="NAME",
        help="run nothing: the table of all runs of the label; of the label or result file of this "
        "name; or, of two names, their comparison",
    )  # fmt: skip
    parser.add_argument(
        "--defaults", action="store_true",
        help="with --table NAME: the median by default beside that of the best other settings",
    )  # fmt: skip
    parser.add_argument(
        "--into", type=Path, nargs="+", default=(), metavar="FILE",
        help=f"pages that get the table, after the mark {BEGIN} ({OF_DEFAULTS[0]})",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
