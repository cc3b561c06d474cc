"""Runs in processes of their own."""

import os
import signal

from experiments._robustness.records import done, save
from experiments._robustness.side_by_side import SideBySide
from experiments._run.signals import Signals
from tests.experiments.robustness.made import case, record

ORIGIN = {"command": "python"}


def toy(seed, **changes):
    return case(seed, problem="conditioning_toy", **{"seconds": 0.1} | changes)


def run(cases, out, report, workers=2):
    with Signals(quiet=True) as signals:
        SideBySide(out, workers, ORIGIN).run(cases, signals, report)
        return signals.number


def test_done_runs_are_not_repeated(tmp_path):
    cases = [toy(seed) for seed in range(3)]
    save(record(1, problem="conditioning_toy", seconds=0.1, end=0.25), tmp_path)
    reported = []
    stopped = run(cases, tmp_path, lambda *of: reported.append(of))
    assert stopped == 0 and sorted(one.seed for one, *_ in reported) == [0, 2]
    assert all((status, text) == (0, "") for _, status, text in reported)
    assert done(cases[1], tmp_path).end == 0.25
    found = done(cases[2], tmp_path)
    assert found.trained >= 0.1 and found.origin == ORIGIN and found.machine["threads"] == 1


def test_a_run_that_fails_leaves_the_others(tmp_path):
    cases = [toy(0, batch=10**6), toy(1)]
    reported = []
    run(cases, tmp_path, lambda *of: reported.append(of), workers=1)
    (failed, status, text), (worked, *rest) = reported
    assert (failed, worked) == tuple(cases) and status == 1 and rest == [0, ""]
    assert text.startswith("the batch size must be at most 1024")
    assert done(cases[0], tmp_path) is None and done(cases[1], tmp_path) is not None


def test_the_report_may_end_it(tmp_path):
    reported = []

    def report(*_):
        reported.append(1)
        return True

    run([toy(seed) for seed in range(5)], tmp_path, report, workers=1)
    assert len(reported) == 1


def test_a_signal_ends_the_runs_without_partial_records(tmp_path):
    cases = [toy(0), toy(1, seconds=600.0), toy(2)]

    def report(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(cases, tmp_path, report, workers=1) == signal.SIGTERM
    assert [done(one, tmp_path) is not None for one in cases] == [True, False, False]
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [tmp_path / cases[0].place]


def test_a_running_one_is_ended(tmp_path):
    cases = [toy(0), toy(1, seconds=600.0)]

    def report(*_):
        os.kill(os.getpid(), signal.SIGINT)

    assert run(cases, tmp_path, report, workers=2) == signal.SIGINT
    assert done(cases[0], tmp_path) is not None and done(cases[1], tmp_path) is None
