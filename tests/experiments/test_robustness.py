"""The command: runs, resumes, tables and pages."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

import hig
from experiments import robustness
from experiments._robustness.records import load_all, results_of, save
from experiments._robustness.summary import table
from tests.experiments.robustness.made import record

LINE = ["--problems", "conditioning_toy", "--methods", "hig", "--batch", "1"]


def test_runs_table_file_and_a_second_command(tmp_path, capsys):
    line = [*LINE, "--seconds", "0.1", "--output", str(tmp_path), "--label", "now"]
    assert robustness.main([*line, "--seeds", "2", "--workers", "2"]) == 0
    captured = capsys.readouterr()
    assert "0 of 2 runs are done" in captured.err and "2/2, " in captured.err
    assert "conditioning_toy hig:trust batch 128 seed 1: 4.8" in captured.err
    records = load_all(tmp_path, "now")
    assert table(records) in captured.out
    path = tmp_path / "now.pickle"
    assert f"python -m plots.robustness {path} --out" in captured.out
    results = hig.load_results(path)
    assert results["label"] == "now" and results["runs"]["seed"].tolist() == [0, 1]
    assert results["origin"].keys() == {"command", "revision", "started", "hig_revision"}

    assert robustness.main([*line, "--seeds", "3"]) == 0
    captured = capsys.readouterr()
    assert "2 of 3 runs are done" in captured.err and "1/1, " in captured.err
    assert load_all(tmp_path, "now")[:2] == records  # not repeated
    assert "several revisions" not in captured.err


def test_a_label_with_runs_of_several_revisions(tmp_path, capsys):
    save(record(0, problem="conditioning_toy", seconds=0.1, label="now"), tmp_path)
    line = [*LINE, "--seconds", "0.1", "--output", str(tmp_path), "--label", "now", "--seeds", "2"]
    assert robustness.main(line) == 0
    assert "note: now has runs of several revisions: " in capsys.readouterr().err


def test_runs_that_fail(tmp_path, capsys):
    line = ["--problems", "conditioning_toy", "--batch", "1000", "--output", str(tmp_path)]
    assert robustness.main([*line, "--methods", "hig", "--seconds", "0.1"]) == 1
    captured = capsys.readouterr()
    assert (
        captured.err.count("FAILED (the batch size must be at most") == 3
    )  # and not those of 20 seeds
    assert captured.out == "" and not list(tmp_path.glob("*.pickle"))


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_an_interrupted_command_resumes(tmp_path, capsys, number, status, word):
    line = [*LINE, "--label", "now", "--output", str(tmp_path), "--seeds", "2"]

    def interrupt():
        while not multiprocessing.active_children():  # until the first run has begun
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert robustness.main([*line, "--seconds", "600"]) == status
    thread.join()
    assert f"{word}; the same command resumes" in capsys.readouterr().err
    assert load_all(tmp_path) == [] and not multiprocessing.active_children()
    assert robustness.main([*line, "--seconds", "0.1"]) == 0
    assert len(load_all(tmp_path)) == 2


@pytest.fixture
def two(tmp_path):
    for seed in range(3):
        save(record(seed, end=0.002, label="old"), tmp_path)
        save(record(seed, end=0.001, label="new"), tmp_path)
    return tmp_path


def test_tables_without_a_run(two, capsys):
    out = ["--output", str(two)]
    assert robustness.main(["--table", "--label", "old", *out]) == 0
    assert capsys.readouterr().out.rstrip() == table(load_all(two, "old"))
    path = two / "kept.pickle"
    hig.save_results(path, {"origin": {}, **results_of(load_all(two, "new"))})
    assert robustness.main(["--table", "old", str(path), *out]) == 0
    assert "2.0e-3 → 1.0e-3" in capsys.readouterr().out
    assert robustness.main(["--table", "other", *out]) == 2
    text = "has no runs of the label other, it has new, old; give another one, or a result file"
    assert text in capsys.readouterr().err
    assert robustness.main(["--table", str(two / "none.pickle"), *out]) == 2
    assert "no result file" in capsys.readouterr().err


def test_pages_get_the_table(two, capsys):
    page, other = two / "page.md", two / "other.md"
    page.write_text(f"a\n{robustness.BEGIN}\nold text\n{robustness.END}\nb\n")
    other.write_text("no marks")
    line = ["--table", "old", "--output", str(two), "--into"]
    assert robustness.main([*line, str(page)]) == 0
    text = page.read_text()
    assert table(load_all(two, "old")) in text and "old text" not in text
    assert text.startswith("a\n") and text.endswith("\nb\n")
    assert robustness.main([*line, str(page), str(other)]) == 2
    assert f"must have the lines {robustness.BEGIN} and" in capsys.readouterr().err
    assert page.read_text() == text
    page.write_text(f"a\n{robustness.OF_DEFAULTS[0]}\n{robustness.OF_DEFAULTS[1]}\n")
    assert robustness.main([*line[:2], "--defaults", *line[2:], str(page)]) == 0
    assert "no runs by default" in page.read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--problems", "pendulum"], "invalid choice: 'pendulum'"),
        (["--problems", "multitask/toy"], "has no settings for hig, gn, lm"),
        (["--methods", "adam"], "the method must be one of hig, gn, lm, got 'adam'"),
        (["--methods", "hig:x"], "the rule must be one of"),
        (["--batch", "0"], "must be positive and finite, got 0"),
        (["--seeds", "0"], "must be at least 1, got 0"),
        (["--seconds", "-1"], "must be positive and finite, got -1"),
        (["--label", "../x"], "must be a word of letters, digits and . + - _, got '../x'"),
        (["--label", ""], "must be a word of letters"),
        (["--into", "page.md"], "--into needs --table"),
        (["--defaults"], "--defaults needs --table NAME"),
        (["--defaults", "--table", "a", "b"], "--defaults needs --table NAME"),
        (["--table", "a", "b", "c"], "--table takes at most two names, got 3"),
    ],
)
def test_errors_of_the_command_line(line, message, capsys):
    with pytest.raises(SystemExit) as stop:
        robustness.main(line)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_names_the_defaults(capsys):
    with pytest.raises(SystemExit):
        robustness.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "hig:trust gn:trust lm:trust" in text and "pinn/burgers cart_pole" in text
