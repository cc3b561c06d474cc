"""The summary that a run ends with."""

from dataclasses import replace

import pytest

from experiments import run
from experiments._run import runner
from tests.experiments.runs import TINY, settings


@pytest.fixture
def printed(options, capsys):
    """Runs with changed options; returns the text on stderr."""

    def of_run(**changes):
        run(TINY, "adam", settings("adam"), replace(options, **changes))
        return capsys.readouterr().err

    return of_run


def test_quiet_runs_have_a_summary_where_it_is_asked_for(printed, options):
    assert printed() == ""
    text = printed(summary=True, save_weights=True)
    assert [line.split()[0] for line in text.splitlines()] == ["Adam", "last", "best", "files"]
    files = text.splitlines()[-1].split(maxsplit=1)[1].split(", ")
    assert files[0].startswith(str(options.out)) and len(files) == 3
    assert all((options.out / name.rpartition("/")[2]).exists() for name in files)


def test_where_the_events_are(printed, options):
    (line,) = [
        x for x in printed(summary=True, tensorboard=True).splitlines() if x.startswith("  events")
    ]
    folder = options.out / "tensorboard"
    assert line.split()[1] == str(next(folder.iterdir()))


@pytest.mark.parametrize(
    ("faults", "lines"),
    [
        ([], []),
        (["non-finite", "decomposition", "non-finite"], ["2 non-finite", "1 decomposition"]),
    ],
)
def test_faults_are_counted(faults, lines, printed, monkeypatch):
    original, events = runner.outcome, [{"kind": kind} for kind in faults]
    monkeypatch.setattr(runner, "outcome", lambda training: original(training) | {"faults": events})
    text = printed(summary=True).splitlines()
    assert [x.removeprefix("  faults ") for x in text if x.startswith("  faults")] == lines
