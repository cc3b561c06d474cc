import io
from pathlib import Path

import pytest

from experiments import Options
from experiments._run.progress import Progress

EPOCHS = Options(out=Path(), epochs=4)
BUDGET = Options(out=Path(), time_budget=60.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drive(options, stream, seconds=20, wall=1.0):
    """One step per second of training, which takes ``wall`` seconds on the wall clock."""
    clock = [0.0]
    with Progress("HIG", options, stream, now=lambda: clock[0]) as progress:
        progress.evaluated(0.5, 0.25)
        for second in range(1, seconds + 1):
            clock[0] += wall
            progress.stepped(epoch=second / 10, seconds=float(second), loss=1e-3)
    return stream.getvalue()


def test_lines_of_a_time_budget():
    lines = drive(BUDGET, io.StringIO()).splitlines()
    assert lines[0] == (
        "HIG: 5 of 60 s, 55 s left, test 2.50e-01, train 5.00e-01, 1 steps/s, "
        "batch 1.00e-03, epoch 0.50"
    )
    assert len(lines) == 4


def test_lines_of_epochs():
    lines = drive(EPOCHS, io.StringIO()).splitlines()
    assert lines[0] == (
        "HIG: epoch 0.50 of 4, 35 s left, test 2.50e-01, train 5.00e-01, 1 steps/s, batch 1.00e-03"
    )
    assert all("\r" not in line for line in lines)


@pytest.mark.parametrize(("wall", "left"), [(2.0, "01:54"), (60.0, "58:00"), (3600.0, "56:00:00")])
def test_time_left_is_that_on_the_wall(wall, left):
    lines = drive(BUDGET, io.StringIO(), 6, wall).splitlines()
    assert any(f" s, {left} left, " in line for line in lines)


def test_time_left_is_unknown_after_one_step_and_counts_from_where_a_run_goes_on():
    now, stream = [0.0], io.StringIO()
    with Progress("HIG", BUDGET, stream, now=lambda: now[0]) as progress:
        progress.resumed(100)
        for seconds in (50.0, 51.0):  # of training, the first 49 of them before the interruption
            now[0] += 10.0
            progress.stepped(1.0, seconds, 1.0)
    first, second = stream.getvalue().splitlines()
    assert first == "HIG: 50 of 60 s, 2.02 steps/s, batch 1.00e+00, epoch 1.00"
    assert second.startswith("HIG: 51 of 60 s, 90 s left, ")


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("options", [EPOCHS, BUDGET])
def test_the_bar_fits_the_terminal_and_no_number_is_cut(columns, options, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = drive(options, Terminal()).replace("\x1b[A", "").split("\r")
    assert all(len(line.rstrip("\n")) <= columns for line in shown)
    numbers = [part.strip() for line in shown for part in line.split(",")[1:]]
    whole = ("s left", "steps/s", "test 2.50e-01", "train 5.00e-01", "batch 1.00e-03", "epoch")
    assert all(any(text in number for text in whole) for number in numbers)
    for name, least in {"s left": 60, "test": 80, "batch": 200}.items():
        if columns >= least or columns == 20:
            assert any(name in number for number in numbers) == (columns >= least)


@pytest.mark.parametrize(("wall", "most"), [(1.0, 60), (100.0, 1000)])
def test_lines_grow_sparse(wall, most):
    lines = drive(Options(out=Path(), time_budget=1e6), io.StringIO(), 1000, wall).splitlines()
    assert len(lines) <= most


@pytest.mark.parametrize("options", [EPOCHS, BUDGET])
def test_bar_on_a_terminal(options):
    text = drive(options, Terminal())
    assert "HIG" in text
    assert "%|" in text
    assert ("/60 s" if options is BUDGET else "/4") in text
    assert "test 2.50e-01" in text
    assert text.endswith("\n")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet(stream):
    target = stream()
    options = Options(out=Path(), epochs=4, quiet=True)
    assert drive(options, target) == ""
    Progress("HIG", options, target).say("done")
    assert target.getvalue() == ""


def test_say():
    stream = io.StringIO()
    Progress("HIG", EPOCHS, stream).say("done")
    assert stream.getvalue() == "done\n"
