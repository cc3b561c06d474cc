"""The study from its command line, on runs that take no time and on real ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import hig
from experiments import study
from experiments._robustness.records import done, save
from experiments._study import execution
from experiments._study.cluster import run_on_cluster
from experiments._study.execution import result_of, run_job, run_jobs
from experiments._study.jobs import Job, comparison_jobs, tuning_jobs
from experiments._study.table import PRESETS
from experiments._study.winners import finalists, winners
from tests.experiments.made import results_of_a_run
from tests.experiments.robustness.made import record

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

    def sweep(cases, out, workers, begun):
        new = [case for case in cases if done(case, out) is None]
        calls.extend([f"experiments.{case.problem}", "many seeds"] for case in new)
        for case in new:
            save(replace(record(), case=case), out)
        return 0, 0

    monkeypatch.setattr(execution, "run_module", run)
    monkeypatch.setattr(study, "sweep", sweep)
    return calls


def test_a_whole_study_and_its_repetition(instant, tmp_path, capsys):
    assert study.main(["--preset", "smoke", "--out", str(tmp_path)]) == 0
    first = len(instant)
    assert first == 32
    grid = json.loads((tmp_path / "smoke" / "winners.json").read_text())
    won = {(entry["problem"], entry["method"]): entry["won"] for entry in grid}
    assert won["conditioning_toy", "hig"] == {"lr": 0.3, "rcond": 1e-6}  # 1 is farther away
    assert won["conditioning_toy", "gn"] == {"lr": 0.3, "rcond": 1e-6}  # 1 has diverged
    tried = next(entry for entry in grid if entry["method"] == "gn")["tried"]
    assert [point["loss"] for point in tried] == [pytest.approx(0.1), None]
    assert sum("many seeds" in command for command in instant) == 2
    seeds = hig.load_results(tmp_path / "smoke" / "robustness.pickle")
    assert seeds["label"] == "smoke" and seeds["runs"]["seed"].tolist() == [0, 1]
    relays = [command for command in instant if "--init-from" in command]
    assert len(relays) == 2 and all("relay_first" in str(command) for command in relays)
    reported = [command for command in instant if "comparison/conditioning_toy/hig" in str(command)]
    assert len(reported) == 2 and all("0.3" in command for command in reported)
    trained = [command for command in instant if "many seeds" not in command]
    assert all("processor" in command and "--resume" in command for command in trained)
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


def fails(monkeypatch, instant, chosen):
    """Let runs fail whose command line has a word; returns a list of those that did."""
    whole, failed = execution.run_module, []

    def run(module, arguments, log):
        if chosen not in (module, *arguments):
            return whole(module, arguments, log)
        failed.append(arguments)
        log.write_text("first\nno such device\n")
        return 2

    monkeypatch.setattr(execution, "run_module", run)
    return failed


def test_three_failures_in_a_row_end_it(monkeypatch, instant, tmp_path):
    line = ["--problems", "conditioning_toy", "--workers", "1", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        failed = fails(patch, instant, "1000")
        with pytest.raises(SystemExit, match=r"(?s)3 runs in a row .* 2 \(no such device\); see"):
            study.main(line)
        assert len(failed) == 3
    assert not (tmp_path / "smoke" / "winners.json").exists()
    assert study.main(line) == 0


def test_an_incomplete_grid_has_no_winners(monkeypatch, instant, tmp_path, capsys):
    line = ["--problems", "conditioning_toy", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        fails(patch, instant, "experiments.conditioning_toy.submit_adam")
        with pytest.raises(SystemExit, match="2 of 6 runs of the tuning have no result"):
            study.main(line)
    reported = capsys.readouterr().err
    assert "FAILED (2)" in reported and "log.txt: no such device" in reported
    assert not (tmp_path / "smoke" / "winners.json").exists()
    assert study.main(line) == 0


def test_failures_of_what_is_reported_are_reported_and_tried_again(
    monkeypatch, instant, tmp_path, capsys
):
    line = ["--problems", "conditioning_toy", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        failed = fails(patch, instant, "experiments.conditioning_toy.submit_lm")
        assert study.main(line) == 1
    assert len(failed) == 2
    assert capsys.readouterr().err.count("failed with status 2: see") == 2
    assert study.main(line) == 0


def test_a_part_of_the_problems_leaves_the_winners_of_others(instant, tmp_path):
    winners_file = tmp_path / "smoke" / "winners.json"
    assert study.main(["--out", str(tmp_path)]) == 0
    whole = json.loads(winners_file.read_text())
    assert study.main(["--problems", "conditioning_toy", "--out", str(tmp_path)]) == 0
    assert sorted(json.loads(winners_file.read_text()), key=str) == sorted(whole, key=str)
    winners_file.write_text("{")  # damaged
    assert study.main(["--out", str(tmp_path)]) == 0
    assert json.loads(winners_file.read_text()) == whole


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_damaged_results_are_made_again(instant, tmp_path, content):
    assert study.main(["--problems", "conditioning_toy", "--out", str(tmp_path)]) == 0
    count = len(instant)
    path = next((tmp_path / "smoke" / "comparison").rglob("*.pickle"))
    if content is None:
        hig.save_results(path, {"of": "something else"})
    else:
        path.write_bytes(content)
    next((tmp_path / "smoke" / "relay_first").rglob("*.weights")).unlink()
    shutil.rmtree(tmp_path / "smoke" / "relay")
    assert study.main(["--problems", "conditioning_toy", "--out", str(tmp_path)]) == 0
    assert len(instant) == count + 4  # the two relays, and what one of them begins with


def test_what_is_in_the_way_of_a_run(instant, tmp_path):
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "tuning").write_text("a file")
    with pytest.raises(SystemExit, match=r"of a run cannot be made: .*; remove the file"):
        study.main(["--problems", "conditioning_toy", "--out", str(tmp_path)])


def test_one_study_at_a_time(instant, tmp_path):
    (tmp_path / "smoke").mkdir()
    lock = FileLock(tmp_path / "smoke" / "study.lock")
    with lock, pytest.raises(SystemExit, match="another study is running in"):
        study.main(["--out", str(tmp_path)])
    assert not instant


def test_listing_runs_nothing(instant, tmp_path, capsys):
    assert study.main(["--preset", "desk", "--list", "--out", str(tmp_path / "none")]) == 0
    captured = capsys.readouterr()
    assert not instant and not (tmp_path / "none").exists()
    lines = captured.out.splitlines()
    assert all(line.startswith("python -m experiments.") for line in lines)
    assert any("--lr TUNED" in line for line in lines)
    assert f"{len(lines) - 1} runs" in captured.err
    assert lines[-1].startswith("python -m experiments.robustness --problems nonlinear_oscillators")
    assert lines[-1].endswith("--batch 1 0.5 --seeds 20 --seconds 15")
    assert "and 600 short runs of many seeds, 2.5 h of training time" in captured.err


def test_many_seeds_of_chosen_problems(instant, tmp_path, capsys):
    line = ["--list", "--problems", "poisson"]
    assert study.main(["--preset", "desk", *line]) == 0
    assert "experiments.robustness" not in capsys.readouterr().out
    line[-1] = "cart_pole"
    assert study.main(["--preset", "desk", *line]) == 0
    assert "experiments.robustness --problems cart_pole --methods" in capsys.readouterr().out


@pytest.mark.parametrize(("failed", "signal", "status"), [(1, 0, "1 runs of many"), (0, 2, 130)])
def test_many_seeds_that_fail_or_are_interrupted(instant, monkeypatch, tmp_path, failed, signal,
                                                 status):  # fmt: skip
    monkeypatch.setattr(study, "sweep", lambda *_: (failed, signal))
    with pytest.raises(SystemExit) as stop:
        study.main(["--preset", "smoke", "--out", str(tmp_path)])
    assert stop.value.code == status or status in str(stop.value.code)
    assert not (tmp_path / "smoke" / "robustness.pickle").exists()


def test_a_grid_without_results_has_its_smallest_rate(tmp_path):
    grid = tuning_jobs(PRESETS["smoke"])
    assert winners(grid, tmp_path)["conditioning_toy", "hig"]["lr"] == 0.3


def test_a_checkpoint_is_no_result(tmp_path):
    hig.save_results(tmp_path / "run.pickle", results_of_a_run())
    assert result_of(tmp_path) == tmp_path / "run.pickle"
    (tmp_path / "run.checkpoint").touch()
    assert result_of(tmp_path) is None


def test_real_runs(tmp_path):
    reported = []
    (outcome,) = run_jobs([TOY], tmp_path, 1, reported.append)
    assert reported == [outcome] and outcome.done, outcome.log.read_text()
    found = hig.load_results(result_of(tmp_path / TOY.place))
    assert found["seed"] == 3 and found["sim_par"]["clock"] == "processor"
    assert run_job(TOY, tmp_path).status == 0  # from the file
    wrong = Job("comparison", "conditioning_toy", "hig", ("--seed", "x"), 1.0)
    assert not run_job(wrong, tmp_path).done
    assert "--seed" in (tmp_path / wrong.place / "log.txt").read_text()


def test_a_cluster_of_this_machine(tmp_path):
    pytest.importorskip("submitit")
    reported = []
    outcomes = run_on_cluster([TOY], tmp_path, "local", {}, 1, reported.append)
    assert outcomes == reported and outcomes[0].done


def test_a_cluster_without_submitit_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(SystemExit, match=r"hig\[cluster\]"):
        study.main(["--cluster", "slurm", "--out", str(tmp_path)])


@pytest.mark.parametrize("parameter", ["no_such_name=1", "timeout_min=abc"])
def test_what_a_cluster_cannot_use(parameter, tmp_path):
    pytest.importorskip("submitit")
    given = ["--cluster", "local", "--cluster-parameter", parameter, "--out", str(tmp_path)]
    with pytest.raises(
        SystemExit, match=rf"(?s)cannot use local .*{parameter}.*--cluster-parameter"
    ):
        study.main(given)


def test_comparisons_have_every_seed():
    jobs = comparison_jobs(PRESETS["desk"], {})
    seeds = {job.arguments[job.arguments.index("--seed") + 1] for job in jobs}
    assert seeds == {"0", "1", "2"}
