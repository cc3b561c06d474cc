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
        "HIG: 5 of 60 s, 55 s left, 1 steps/s, test 2.50e-01, train 5.00e-01, "
        "batch 1.00e-03, epoch 0.50"
    )
    assert len(lines) == 4


def test_lines_of_epochs():
    lines = drive(EPOCHS, io.StringIO()).splitlines()
    assert lines[0] == (
        "HIG: epoch 0.50 of 4, 35 s left, 1 steps/s, test 2.50e-01, train 5.00e-01, batch 1.00e-03"
    )


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
