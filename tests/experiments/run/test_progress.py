import io
from pathlib import Path

import pytest

from experiments import Options
from experiments._run import progress as module
from experiments._run.progress import Progress

EPOCHS = Options(out=Path(), epochs=4)
BUDGET = Options(out=Path(), time_budget=60.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drive(options, stream, seconds=20):
    """One step per second of training."""
    with Progress("HIG", options, stream) as progress:
        progress.evaluated(0.5, 0.25)
        for second in range(1, seconds + 1):
            progress.stepped(epoch=second / 10, seconds=float(second), loss=1e-3)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("options", "done"),
    [(EPOCHS, ("50%|", "epoch 2.00/4,")), (BUDGET, ("33%|", "20/60 s,"))],
)
def test_the_bar_runs_over_the_budget(options, done):
    last = drive(options, Terminal()).split("\r")[-1]
    texts = ["HIG", *done, " left", "test 2.50e-01, train 5.00e-01, 1 steps/s, batch 1.00e-03"]
    assert all(text in last for text in texts) and last.endswith("\n")


@pytest.mark.parametrize(("interval", "shown"), [(0.0, 22), (1e9, 2)])
def test_a_log_file_gets_few_lines(interval, shown, monkeypatch):
    monkeypatch.setattr(module, "IN_LOG", interval)
    assert len(drive(BUDGET, io.StringIO()).split("\r")[1:]) == shown


def test_the_time_left_follows_from_steps_after_an_interruption():
    with Progress("HIG", BUDGET, io.StringIO()) as progress:
        progress.resumed(100, 5.0, 50.0)
        progress.stepped(5.1, 51.0, 1.0)
        shown = progress._bar.format_dict
    assert (shown["initial"], shown["n"]) == (50.0, 51.0)  # tqdm divides by what came since
    assert shown["postfix"].startswith("1.98 steps/s")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet(stream):
    target = stream()
    options = Options(out=Path(), epochs=4, quiet=True)
    assert drive(options, target) == ""
    Progress("HIG", options, target).say("done")
    assert target.getvalue() == ""
    Progress("HIG", options, target).warn("no checkpoint")
    assert target.getvalue() == "no checkpoint\n"


def test_texts_get_lines_of_their_own():
    stream = Terminal()
    with Progress("HIG", EPOCHS, stream) as progress:
        progress.say("done")
    assert "\rdone\n" in stream.getvalue().replace(" ", "")
