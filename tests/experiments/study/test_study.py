"""The study from its command line, on runs that take no time and on real ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hig
from experiments import study
from experiments._study import execution
from experiments._study.execution import result_of, run_job, run_jobs
from experiments._study.jobs import Job, comparison_jobs, tuning_jobs
from experiments._study.table import PRESETS
from experiments._study.winners import finalists, winners
from tests.experiments.made import results_of_a_run

TOY = Job("comparison", "conditioning_toy", "hig", ("--seed", "3", "--time-budget", "0.05"), 0.05)


@pytest.fixture
def instant(monkeypatch):
    """Runs that write their results at once: the loss is the distance of the rate from 0.3."""
    calls = []

    def run(module, arguments, log):
        calls.append([module, *arguments])
        place = arguments[arguments.index("--out") + 1]
        rate = float(arguments[arguments.index("--lr") + 1]) if "--lr" in arguments else 1.0
        loss = abs(np.log(rate / 0.3)) + 0.1
        stopped = "non-finite: loss" if rate >= 1 and "gn" in module else "time budget"
        hig.save_results(f"{place}/run.pickle", results_of_a_run((1.0, loss), stopped=stopped))
        if "--save-weights" in arguments:
            Path(place, "run_network.weights").touch()
        return int(stopped != "time budget")

    monkeypatch.setattr(execution, "run_module", run)
    return calls


def test_a_whole_study_and_its_repetition(instant, tmp_path, capsys):
    assert study.main(["--preset", "smoke", "--out", str(tmp_path)]) == 0
    first = len(instant)
    assert first == 30
    grid = json.loads((tmp_path / "smoke" / "winners.json").read_text())
    won = {(entry["problem"], entry["method"]): entry["won"] for entry in grid}
    assert won["conditioning_toy", "hig"] == {"lr": 0.3, "rcond": 1e-6}  # 1 is farther away
    assert won["conditioning_toy", "gn"] == {"lr": 0.3, "rcond": 1e-6}  # 1 has diverged
    tried = next(entry for entry in grid if entry["method"] == "gn")["tried"]
    assert [point["loss"] for point in tried] == [pytest.approx(0.1), None]
    relays = [command for command in instant if "--init-from" in command]
    assert len(relays) == 2 and all("relay_first" in str(command) for command in relays)
    told = [command for command in instant if "comparison/conditioning_toy/hig" in str(command)]
    assert len(told) == 2 and all("0.3" in command for command in told)
    assert all("processor" in command and "--resume" in command for command in instant)
    assert "comparison 12/12" in capsys.readouterr().err
    assert study.main(["--preset", "smoke", "--out", str(tmp_path)]) == 0
    assert len(instant) == first  # nothing is done twice


def test_the_best_of_the_grid_are_tried_for_longer(monkeypatch, instant, tmp_path, capsys):
    preset = replace(PRESETS["smoke"], tuning_seconds=0.5, finalists=2, rates=(0.1, 0.4, 3.0))
    monkeypatch.setattr(study, "PRESETS", {"smoke": preset})
    line = ["--preset", "smoke", "--problems", "conditioning_toy", "--out", str(tmp_path)]
    assert study.main(line) == 0
    assert "finals 7/7" in capsys.readouterr().err  # two of HIG and Gauss-Newton, three of Adam
    grid = json.loads((tmp_path / "smoke" / "winners.json").read_text())
    (adam,) = (entry for entry in grid if entry["method"] == "adam")
    assert {(point["lr"], point["schedule"]) for point in adam["finals"]} == {
        (0.4, "constant"), (0.4, "cosine"), (0.1, "cosine"),
    }  # fmt: skip
    longer = [command for command in instant if "1000" in command and "0.2" in command]
    assert len(longer) == 7
    assert adam["won"]["lr"] == 0.4


def test_the_smallest_step_size_has_none_below_it(instant, tmp_path):
    preset = replace(PRESETS["smoke"], tuning_seconds=0.5, finalists=2, rates=(0.4, 3.0))
    grid = tuning_jobs(preset)
    for job, _ in grid:
        run_job(job, tmp_path)
    best = finalists(grid, tmp_path, 2)["conditioning_toy", "adam"]
    assert sorted(point["schedule"] for point in best) == ["constant", "cosine"]
    assert {point["lr"] for point in best} == {0.4}


def test_one_problem_alone(instant, tmp_path):
    assert study.main(["--problems", "conditioning_toy", "--out", str(tmp_path)]) == 0
    assert {command[0].split(".")[1] for command in instant} == {"conditioning_toy"}
    with pytest.raises(SystemExit, match="2"):
        study.main(["--problems", "pendulum", "--out", str(tmp_path)])


def test_failures_are_told_and_tried_again(monkeypatch, tmp_path, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(execution, "run_module", lambda *_: 2)
        assert study.main(["--problems", "conditioning_toy", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr().err
    assert "FAILED (2)" in captured and "log.txt" in captured
    assert result_of(tmp_path / "smoke" / TOY.place) is None


def test_listing_runs_nothing(instant, tmp_path, capsys):
    assert study.main(["--preset", "desk", "--list", "--out", str(tmp_path / "none")]) == 0
    captured = capsys.readouterr()
    assert not instant and not (tmp_path / "none").exists()
    lines = captured.out.splitlines()
    assert all(line.startswith("python -m experiments.") for line in lines)
    assert any("--lr TUNED" in line for line in lines)
    assert f"{len(lines)} runs" in captured.err


def test_a_grid_without_results_has_its_smallest_rate(tmp_path):
    grid = tuning_jobs(PRESETS["smoke"])
    assert winners(grid, tmp_path)["conditioning_toy", "hig"]["lr"] == 0.3


def test_a_checkpoint_is_no_result(tmp_path):
    hig.save_results(tmp_path / "run.pickle", results_of_a_run())
    assert result_of(tmp_path) == tmp_path / "run.pickle"
    (tmp_path / "run.checkpoint").touch()
    assert result_of(tmp_path) is None


def test_real_runs(tmp_path):
    told = []
    (outcome,) = run_jobs([TOY], tmp_path, 1, told.append)
    assert told == [outcome] and outcome.done, outcome.log.read_text()
    found = hig.load_results(result_of(tmp_path / TOY.place))
    assert found["seed"] == 3 and found["sim_par"]["clock"] == "processor"
    assert run_job(TOY, tmp_path).status == 0  # from the file
    wrong = Job("comparison", "conditioning_toy", "hig", ("--seed", "x"), 1.0)
    assert not run_job(wrong, tmp_path).done
    assert "--seed" in (tmp_path / wrong.place / "log.txt").read_text()


def test_a_cluster_of_this_machine(tmp_path):
    pytest.importorskip("submitit")
    told = []
    outcomes = execution.run_on_cluster([TOY], tmp_path, "local", {}, told.append)
    assert outcomes == told and outcomes[0].done


def test_a_cluster_without_submitit_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(SystemExit, match=r"hig\[cluster\]"):
        study.main(["--cluster", "slurm", "--out", str(tmp_path)])


def test_comparisons_have_every_seed():
    jobs = comparison_jobs(PRESETS["desk"], {})
    seeds = {job.arguments[job.arguments.index("--seed") + 1] for job in jobs}
    assert seeds == {"0", "1", "2"}
