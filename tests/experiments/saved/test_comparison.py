import math

import pytest

from experiments import __main__ as command
from tests.experiments.made import save


@pytest.fixture
def compared(tmp_path, capsys):
    """Saves runs, each given by what it changes, and compares them; returns the cells by line."""

    def compare(runs, *arguments):
        paths = [str(save(tmp_path / f"{i}.pickle", **run)) for i, run in enumerate(runs)]
        assert command.main(["compare", *paths, *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        tables = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
        pairs = zip(tables, lines, strict=True)
        return [cells if line[:1] == "|" else line for cells, line in pairs]

    return compare


def test_one_run(compared):
    assert compared([{}]) == [
        "## poisson",
        "",
        ["method", "seeds", "final test loss", "best", "training s", "steps", "epochs", "stopped"],
        [8 * "-", *(f"{n * '-'}:" for n in (6, 16, 5, 11, 6, 7)), 9 * "-"],
        ["HIG", "1", "0.01", "0.01", "20", "–", "4", "epochs"],
    ]


def test_columns_are_aligned(tmp_path, capsys):
    for seed, label in enumerate(("HIG", "Gauss–Newton (trust)")):
        save(tmp_path / f"{seed}.pickle", label=label, seed=seed)
    command.main(["compare", str(tmp_path)])
    _, _, *table = capsys.readouterr().out.splitlines()
    places = [[place for place, letter in enumerate(line) if letter == "|"] for line in table]
    assert len(table) == 4 and places[1:] == places[:-1]


def test_seeds_as_median_and_range(compared):
    runs = [
        {"seed": 0, "losses": [1.0, 0.1, 0.3], "stopped": "time budget"},
        {"seed": 1, "losses": [1.0, 0.4, 0.2], "stopped": "time budget"},
        {"seed": 2, "losses": [1.0, 0.5, math.nan], "stopped": "non-finite: the loss"},
    ]
    *_, row = compared(runs)
    assert row[:4] == ["HIG", "3", "0.3 (0.2 to not finite)", "0.2 (0.1 to 0.5)"]
    assert row[4:] == ["20", "–", "4", "time budget (2), non-finite (1)"]


def test_sorted_by_the_median_of_the_last_loss_with_diverged_ones_at_the_end(compared):
    runs = [
        {"label": "SGD", "losses": [1.0, math.nan]},
        {"label": "Adam", "losses": [1.0, 0.2]},
        {"label": "HIG", "losses": [1.0, 0.1], "seed": 0},
        {"label": "HIG", "losses": [1.0, 9.0], "seed": 1},
        {"label": "HIG", "losses": [1.0, 0.1], "seed": 2},
    ]
    assert [row[0] for row in compared(runs)[4:]] == ["HIG", "Adam", "SGD"]


def test_time_to_a_target_over_the_seeds_that_reach_it(compared):
    runs = [
        {"seed": 0, "losses": [1.0, 0.1, 0.01]},
        {"seed": 1, "losses": [1.0, 0.5, 0.1]},
        {"seed": 2, "losses": [1.0, 0.9, 0.8]},
        {"label": "Adam", "losses": [2.0, 2.0]},
    ]
    table = compared(runs, "--target", "0.1")
    assert [row[7] for row in table[2::2]] == ["s to 0.1", "15 (10 to 20), 2 of 3"]
    assert table[5][7] == "–, 0 of 1"


def test_each_problem_has_a_table_and_its_own_meaning_of_the_test_loss(compared):
    runs = [{}, {"problem": "burgers", "tested_by": "mean squared error"}]
    lines = compared(runs)
    assert lines[lines.index("## burgers") + 2] == "The test loss is the mean squared error."
    assert lines[lines.index("## poisson") + 2][0] == "method"
    trained = compared(runs, "--quantity", "train")
    assert "The test loss is the mean squared error." not in trained
    assert trained[2][2] == "final train loss" and trained[4][2] == "0.02"


def test_times_of_unlike_clocks_are_noted(tmp_path, capsys):
    save(tmp_path / "a.pickle")
    save(tmp_path / "b.pickle", seed=1, sim_par={"clock": "processor"}, machine="not a dict")
    assert command.main(["compare", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert error == "note: training times are not all of one clock: processor, wall\n"


def test_errors_have_no_traceback(tmp_path, capsys):
    (tmp_path / "broken.pickle").write_bytes(b"\x80\x04not a pickle")
    (tmp_path / "empty").mkdir()
    for name, text in {
        "none.pickle": "no result file",
        "broken.pickle": "is not a whole result file",
        "empty": "has no result files (*.pickle) in it; give another folder",
    }.items():
        assert command.main(["compare", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and text in error and name in error
