import math
from pathlib import Path

import numpy as np
import pytest

import hig
from experiments._saved.result_files import ResultFileError
from experiments._saved.runs import read_runs, run_of
from tests.experiments.made import results_of_a_run, save


def run(quantity="test", **changes):
    return run_of(Path("run.pickle"), results_of_a_run(**changes), quantity)


def test_numbers_of_a_run():
    found = run(losses=[3.0, 0.5, 2.0, 1.0])
    assert (found.final, found.best, found.duration, found.epochs) == (1.0, 0.5, 30.0, 6.0)
    assert math.isnan(found.steps)
    assert run(step_time=np.arange(7.0)).steps == 7
    for samples in ("train_size", "points_interior"):  # 2 steps an epoch, 4 epochs
        settings = {samples: 100, "batch_size": 64}
        assert run(sim_par=settings, step_time=np.arange(3.0)).steps == 8
    assert run("train").final == 2 * run().final
    assert run(stopped="non-finite: the batch loss at epoch 2 is nan").stopped == "non-finite"


def test_time_to_a_target_is_that_of_the_first_evaluation_there():
    found = run(losses=[3.0, 0.5, 2.0, 0.1])
    assert [found.seconds_to(target) for target in (5, 0.5, 0.4)] == [0.0, 10.0, 30.0]
    assert math.isnan(found.seconds_to(0.05))


def test_time_adds_to_that_of_the_earlier_run():
    found = run(pretraining="HIG", pretraining_time=100.0)
    assert (found.duration, found.seconds_to(0.1)) == (120.0, 110.0)


def test_losses_that_are_not_finite_are_no_low_ones():
    found = run(losses=[1.0, 0.5, math.nan])
    assert (found.final, found.best) == (math.inf, 0.5)
    assert run(losses=[1.0, -math.inf]).best == 1.0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"time": np.arange(2.0)}, r"shapes \(3,\), \(2,\), \(3,\)"),
        ({"losses": []}, r"at least 1, and have shapes \(0,\)"),
        ({"test_loss": "low"}, "are not numbers"),
    ],
)
def test_results_that_are_not_as_they_should_be(changes, text):
    with pytest.raises(ResultFileError, match=text):
        run(**changes)


def test_results_of_something_else(tmp_path):
    path = tmp_path / "times.pickle"
    hig.save_results(path, {"label": "HIG", "rows": 3})
    with pytest.raises(ResultFileError, match=r"it has no 'problem'; it has label, rows\. give"):
        read_runs([path], "test")
    with pytest.raises(ResultFileError, match="no training runs in"):
        read_runs([tmp_path], "test")


def test_folders_may_hold_other_results_too(tmp_path, capsys):
    hig.save_results(tmp_path / "times.pickle", {"label": "HIG", "rows": 3})
    paths = [save(tmp_path / f"{seed}.pickle", seed=seed) for seed in (1, 2)]
    assert [found.path for found in read_runs([tmp_path], "test")] == paths
    assert "times.pickle is left out, it is not of a training run" in capsys.readouterr().err


def test_of_two_files_of_one_seed_the_newest_is_taken(tmp_path, capsys):
    new = save(tmp_path / "new.pickle", written=300)
    old = save(tmp_path / "old.pickle", written=100)
    for paths in ([old, new], [new, old], [new, new]):
        assert [found.path for found in read_runs(paths, "test")] == [new]
        assert "has the same label 'HIG' and seed 0" in capsys.readouterr().err


def test_runs_that_differ_in_anything_else_all_stay(tmp_path, capsys):
    changes = [
        {},
        {"seed": 1},
        {"label": "HIG (trust)"},
        {"problem": "toy"},
        {"sim_par": {"init_from": "adam_seed1_network.weights"}},
    ]
    paths = [save(tmp_path / f"{i}.pickle", **change) for i, change in enumerate(changes)]
    assert len(read_runs(paths, "test")) == len(changes)
    assert not capsys.readouterr().err
