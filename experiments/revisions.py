"""Steps of this revision against the exact steps of another one, in turn in one run.

``python -m experiments.revisions CHECKOUT burgers_control:64`` takes exact and sketched steps and
those of Adam on a batch of 64, and exact steps of the package that lies in the directory CHECKOUT.
``--steps exact lm`` also takes steps of Levenberg-Marquardt, of both.
Each has a process of its own, with one thread, and steps when it is its turn. Times are those of
the processor; the peak of memory is that of a step before them.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from experiments._cli.argument_types import positive_int
from experiments._measure import command
from experiments._measure.engine_networks import MAKERS, make
from experiments._measure.timing import median_ratio
from experiments._problems import PROBLEMS
from experiments._provenance import machine

HERE = Path(__file__).resolve().parents[1]
WORKER = HERE / "experiments" / "_measure" / "revision_worker.py"
FIELD = "field"
STEPS = ("exact", "lm", "sketch", "adam")
DEFAULT = ("exact", "sketch", "adam")
# Steps that are compared with the same one of the other revision, the rest with its exact step.
COMPARED = ("exact", "lm")
OTHER = ", other revision"
# Seconds after which a step has no further turn.
PATIENCE = 60.0
COLUMNS = {
    "step": "{step}",
    " rounds": "{rounds}",
    " median ms": "{median_ms:.1f}",
    " min – max": "{min_ms:.1f} – {max_ms:.1f}",
    " times faster": "{speedup:.3g}",
    " peak MB": "{peak_mb:.1f}",
}


class Worker:
    """A process that takes one step at a time.

    Args:
        process: it runs ``revision_worker.py``.

    Attributes:
        peak_bytes: of a step.
    """

    def __init__(self, process: "subprocess.Popen[str]"):
        self._process = process
        self.peak_bytes = float(self._answer())

    def step(self) -> float:
        """Take a step and return its seconds."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"a step failed, with status {self._process.wait()}; the error is printed above"
            )
        return line


@contextmanager
def working(checkout: Path, request: Mapping[str, object]) -> Iterator[Worker]:
    """Run a worker with the packages of a checkout; ended at the end of the context."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER), json.dumps(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
    )
    try:
        yield Worker(process)
    finally:
        process.kill()
        process.communicate()


def compare(
    checkout: Path, case: str, batch: int, steps: Sequence[str], sketch: int, rounds: int
) -> list[dict[str, object]]:
    """Measure the steps of a case in turn.

    Args:
        checkout: directory of the other revision.
        case: "field", or the name of a problem.
        batch: samples.
        steps: those of this revision, of ``STEPS``.
        sketch: directions of a sketch.
        rounds: steps of each.

    Returns:
        One row per step, those of the other revision last: ``step``, ``rounds`` counted,
        ``median_ms``, ``min_ms``, ``max_ms``, ``speedup`` over the same step of the other revision,
        or its exact one (median of the ratios within a round) and ``peak_mb``.
    """
    request = {"case": _place(case), "batch": batch, "sketch": sketch}
    with ExitStack() as running:
        workers = {
            step: running.enter_context(working(HERE, request | {"step": step})) for step in steps
        }
        others = [step for step in COMPARED if step in steps] or [COMPARED[0]]
        for step in others:
            worker = running.enter_context(working(checkout, request | {"step": step}))
            workers[_there(step)] = worker
        seconds: dict[str, list[float]] = {step: [] for step in workers}
        for _ in range(rounds):
            for step, worker in workers.items():
                if sum(seconds[step]) < PATIENCE:
                    seconds[step].append(worker.step())
    return [
        {
            "step": step,
            **command.milliseconds(seconds[step]),
            "speedup": median_ratio(seconds[_compared_with(step, others)], seconds[step]),
            "peak_mb": worker.peak_bytes / 2**20,
        }
        for step, worker in workers.items()
    ]


def _there(step: str) -> str:
    """Return the name of a step of the other revision."""
    return f"{step}{OTHER}"


def _compared_with(step: str, others: Sequence[str]) -> str:
    """Return the name of the step of the other revision that one is compared with."""
    same = step.removesuffix(OTHER)
    return _there(same if same in others else others[0])


def _place(case: str) -> str:
    """Return the module and class of a problem; "field" and networks as they are."""
    if case == FIELD or case in MAKERS:
        return case
    kind = type(PROBLEMS[case]())
    return f"{kind.__module__}:{kind.__qualname__}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure from the command line."""
    options = _parser().parse_args(arguments)
    begun = command.begin(options)
    facts = machine("cpu") | {"clock": "processor, one thread", "other revision": options.label}
    command.print_facts(facts)
    measured = {}
    for case, batch in options.cases:
        rows = compare(options.checkout, case, batch, options.steps, options.sketch, options.rounds)
        measured[case] = {"batch_size": batch, "sketch": options.sketch, "steps": rows}
        print(f"\n{case}, batch {batch}, k = {options.sketch}\n\n{command.table(COLUMNS, rows)}")
    command.save_json(options.json, {"origin": begun, "machine": facts, "cases": measured})


def _case(text: str) -> tuple[str, int]:
    name, _, batch = text.partition(":")
    if name not in (FIELD, *MAKERS, *PROBLEMS):
        known = ", ".join([FIELD, *MAKERS, *PROBLEMS])
        raise argparse.ArgumentTypeError(f"must be one of {known}, got {name!r}")
    if name in MAKERS:
        return name, len(make(name).prediction())
    default = 1 if name == FIELD else PROBLEMS[name]().settings["hig"].batch_size
    return name, positive_int(batch) if batch else default


def _checkout(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / "hig" / "__init__.py").exists():
        raise argparse.ArgumentTypeError(
            f"holds no package hig: {text!r}; make a checkout by git worktree add DIR REVISION"
        )
    return path


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("revisions", __doc__)
    parser.add_argument("checkout", type=_checkout, help="directory of the other revision")
    parser.add_argument(
        "cases",
        nargs="+",
        type=_case,
        metavar="CASE[:BATCH]",
        help=f"of {FIELD} (a U-Net on a field of 64 × 64), {', '.join([*MAKERS, *PROBLEMS])}",
    )
    parser.add_argument(
        "--steps",
        nargs="*",
        choices=STEPS,
        default=DEFAULT,
        help=f"of this revision (default: {' '.join(DEFAULT)})",
    )
    parser.add_argument("--sketch", type=positive_int, default=4, metavar="K", help="(4)")
    parser.add_argument("--label", default="", help="name of the other revision, for the file")
    command.add_rounds(parser, 15, "steps of each (15)")
    command.add_json(parser)
    return parser


if __name__ == "__main__":
    main()
