"""Kept files of a study."""

import pickle

import numpy as np
import pytest

import hig
from experiments import __main__ as command
from experiments._robustness.records import results_of
from experiments._saved.result_files import ResultFileError
from experiments._study.keep import cut, differing, keep, value_text
from experiments._study.kept import read_kept
from tests.experiments.robustness.made import record
from tests.experiments.study.made import Made


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "results" / "desk")


def names(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_names_have_method_value_and_seed(made, tmp_path):
    for seed in (0, 1):
        made.run("comparison", "pinn/burgers", seed=seed)
        for kappa in (-1.0, -0.5):
            made.run("kappa", "toy", seed=seed, settings={"kappa": kappa})
        for momentum in (0.5, 0.9):
            pair = {"momentum": momentum, "momentum_kind": "plain"}
            made.run("momentum", "toy", seed=seed, settings=pair)
        made.run("relay", "toy", seed=seed, pretraining="Adam (lr 0.1)", pretraining_time=1.0)
    made.run("tuning", "toy", seed=1000)
    out = tmp_path / "study" / "desk"
    written = keep(made.folder, out)
    assert names(out) == [
        "comparison/pinn/burgers/hig_seed0.pickle",
        "comparison/pinn/burgers/hig_seed1.pickle",
        *(f"kappa/toy/hig_{k}_seed{s}.pickle" for k in ("-0.5", "-1") for s in (0, 1)),
        *(f"momentum/toy/hig_{m}_seed{s}.pickle" for m in ("0.5", "0.9") for s in (0, 1)),
        *(f"relay/toy/hig_after_adam_seed{s}.pickle" for s in (0, 1)),
        "winners.json",
    ]
    assert len(written) == 12
    assert keep(made.folder, out) == written  # again, over the files that are there


def test_only_the_first_seed_of_a_comparison_is_whole(made, tmp_path):
    for part in ("comparison", "kappa"):
        for seed in (2, 1):
            made.whole(part, "toy", seed)
    out = tmp_path / "kept"
    files = {path.relative_to(out).as_posix(): path for path in keep(made.folder, out)}
    large = {"example", "spectrum", "rank", "step_time", "step_size", "test_activation_mean"}
    for name, path in files.items():
        found = hig.load_results(path)
        is_whole = name == "comparison/toy/hig_seed1.pickle"
        assert large & set(found) == (large if is_whole else set()), name
        assert {"test_loss", "time", "epochs", "sim_par", "machine", "label"} <= set(found)
        assert found["test_loss"].tolist() == [1.0, 0.1, 0.01]


def test_one_example_and_some_steps(made):
    run = hig.load_results(made.whole("comparison", "toy") / "run.pickle")
    kept = cut(run, whole=True)
    assert kept["example"]["state"].tolist() == [run["example"]["state"][0].tolist()]
    assert kept["example"]["state"].dtype == np.float32
    assert kept["example"]["time"].tolist() == [0, 1, 2]
    assert kept["example"]["state_names"] == ["a", "b", "c", "d"]
    assert kept["step"].tolist() == list(range(4, 1701, 4))
    assert kept["rank"].tolist() == (kept["step"] - 1).tolist()
    assert kept["step_time"].tolist() == run["step_time"][3::4].tolist()
    assert len(run["rank"]) == 1700  # what was given is as it was
    few = cut(hig.load_results(made.whole("x", "toy", steps=3) / "run.pickle"), whole=True)
    assert few["step"].tolist() == [1, 2, 3] and few["rank"].tolist() == [0, 1, 2]


def test_solutions_are_kept_on_a_grid_of_some_places(made):
    sides = np.linspace(-1, 1, 101), np.linspace(0, 1, 30), np.linspace(0, 2, 11)
    points = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 3)
    example = {"points": points, "prediction": points[:, :1] ** 2, "unknowns": ["u"]}
    kept = cut({"example": example}, whole=True)["example"]
    places = [np.unique(column) for column in kept["points"].T]
    assert [len(one) for one in places] == [64, 30, 3]
    assert places[2].tolist() == [0, 1, 2] and len(kept["points"]) == 64 * 30 * 3
    np.testing.assert_allclose(kept["prediction"][:, 0], kept["points"][:, 0] ** 2, rtol=1e-5)
    functions = {"x": np.arange(5.0), "prediction": np.ones((5, 2))}
    assert cut({"example": functions}, whole=True)["example"]["prediction"].shape == (5, 2)


def test_no_file_has_the_folder_of_the_study(made, tmp_path):
    made.run("comparison", "toy", settings={"init_from": str(made.folder / "relay" / "a.weights")})
    (path,) = keep(made.folder, tmp_path / "kept")
    assert str(tmp_path) not in repr(hig.load_results(path))
    settings = hig.load_results(path)["sim_par"]
    assert settings["out"] == "comparison/toy/hig_1"
    assert settings["init_from"] == "relay/a.weights"


def test_runs_that_are_not_done_are_left_out(made, tmp_path):
    made.run("comparison", "toy")
    (made.run("comparison", "toy", seed=1) / "run.checkpoint").touch()
    assert [path.name for path in keep(made.folder, tmp_path / "kept")] == ["hig_seed0.pickle"]


def test_what_differs():
    runs = [{"sim_par": {"lr": 1.0, "seed": 0}}, {"sim_par": {"lr": 2.0, "seed": 1, "kappa": 0}}]
    assert differing(runs) == ["lr", "kappa"] and differing(runs[:1]) == []
    assert [value_text(v) for v in (1e-6, 0.5, "auto", (2, 3), None)] == [
        "1e-6", "0.5", "auto", "2-3", "None",
    ]  # fmt: skip


def test_a_study_and_what_is_kept_have_folders_of_their_own(made, tmp_path):
    made.run("comparison", "toy")
    before = names(made.folder)
    for out in (made.folder, made.folder / "kept", made.folder.parent):
        with pytest.raises(ResultFileError, match="in one folder with the study"):
            keep(made.folder, out)
    assert names(made.folder) == before


def test_what_is_kept_already(made, tmp_path):
    made.run("comparison", "toy")
    keep(made.folder, tmp_path / "kept")
    with pytest.raises(ResultFileError, match="that has been kept already"):
        keep(tmp_path / "kept", tmp_path / "again")


def test_runs_at_settings_that_have_won_once(made, tmp_path):
    entry = {"problem": "toy", "method": "hig", "tried": [], "won": {"lr": 0.1}}
    made.winners([entry])
    made.run("comparison", "toy", settings={"lr": 0.1})
    made.run("kappa", "toy", settings={"lr": 3.0})
    keep(made.folder, tmp_path / "kept")
    made.run("comparison", "toy", settings={"lr": 0.3})
    with pytest.raises(ResultFileError, match=r"hig_3 has lr 0.3, and 0.1 has won the grid"):
        keep(made.folder, tmp_path / "kept")


def test_what_has_won_is_written_as_on_a_command_line(made, tmp_path):
    won = {"batch-size": "64", "rcond": "auto"}
    made.winners([{"problem": "toy", "method": "hig", "tried": [], "won": won}])
    made.run("comparison", "toy", settings={"batch_size": 64, "rcond": "auto"})
    keep(made.folder, tmp_path / "kept")
    made.run("comparison", "toy", settings={"batch_size": 32, "rcond": "auto"})
    with pytest.raises(ResultFileError, match=r"has batch-size 32, and 64 has won"):
        keep(made.folder, tmp_path / "kept")


def test_files_of_something_else(made, tmp_path):
    place = made.run("comparison", "toy")
    hig.save_results(place / "run.pickle", {"of": "something else"})
    with pytest.raises(ResultFileError, match="is not of a training run"):
        keep(made.folder, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_errors(made, tmp_path, capsys):
    out = tmp_path / "kept"
    assert command.main(["keep", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "is not the folder of a study: it has no winners.json" in capsys.readouterr().err
    made.run("comparison", "toy")
    assert command.main(["keep", str(made.folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"1 files, 0.0 MB, in {out}\n"
    made.run("comparison", "toy")
    with pytest.raises(ResultFileError, match=r"hig_2 and .*hig_1 in .* have the same settings"):
        keep(made.folder, out)
    other = out / "kappa" / "toy" / "hig_seed0.pickle"
    other.parent.mkdir(parents=True)
    other.write_bytes(pickle.dumps({}))
    (made.folder / "comparison" / "toy" / "hig_2" / "run.pickle").unlink()
    with pytest.raises(ResultFileError, match=f"such as {other}; remove them"):
        keep(made.folder, out)


def test_runs_of_many_seeds_are_kept(made, tmp_path):
    made.run("comparison", "toy")
    seeds = [record(seed) for seed in range(2)]
    path = made.folder / "robustness.pickle"
    hig.save_results(path, {"origin": seeds[0].origin, **results_of(seeds)})
    out = tmp_path / "kept"
    assert out / "robustness.pickle" in keep(made.folder, out)
    assert read_kept(out).seeds == seeds
    assert names(out) == ["comparison/toy/hig_seed0.pickle", "robustness.pickle", "winners.json"]
    path.unlink()
    with pytest.raises(ResultFileError, match=r"has files of runs that .* has not, such as"):
        keep(made.folder, out)
