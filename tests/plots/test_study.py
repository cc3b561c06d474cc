"""All figures of a kept study."""

import numpy as np
import pytest

import hig
from plots import _files, study
from tests.plots.conftest import (
    activation_results,
    example_results,
    jacobian_results,
    run_results,
    solution_results,
)
from tests.plots.test_robustness import made as many_seeds

SETTINGS = {"batch_size": 128, "train_size": 256}


@pytest.fixture
def kept(tmp_path):
    """Writes the files of a study: by part, folder and method; returns their folder."""

    def write(place, **changes):
        results = run_results(**{"sim_par": SETTINGS} | changes)
        hig.save_results(tmp_path / "desk" / f"{place}.pickle", results)
        return tmp_path / "desk"

    return write


def test_figures_of_a_problem(kept):
    spectra = jacobian_results()
    parts = {"state", "target", "control", "time", "control_time", "state_names"}
    swing = {key: value for key, value in example_results().items() if key in parts}
    kept("comparison/swing/hig_seed0", label="HIG (trust)", example=swing, **spectra)
    kept("comparison/swing/hig_seed1", label="HIG (trust)", seed=1, factor=2.0)
    kept("comparison/swing/adam_seed0", method="adam", label="Adam", factor=3.0)
    folder = kept("comparison/swing/lm_seed0", method="lm", label="LM", example=swing)
    found = study.figures(folder)
    assert list(found) == [
        f"swing_{name}" for name in ("loss", "target", "spectrum", "rank", "trajectory")
    ]
    curves = found["swing_loss"]()
    assert [axes.get_xlabel() for axes in curves.axes] == ["training time (s)", "steps"]
    assert [axes.get_xscale() for axes in curves.axes] == ["linear", "log"]
    assert {line.get_xdata()[0] for line in curves.axes[1].lines} == {4.0}  # without the start
    texts = [text.get_text() for text in curves.legends[0].get_texts()]
    assert texts == ["HIG", "LM", "Adam", "min–max of seeds"]  # without what is special
    titles = [axes.get_title(loc="left") for axes in found["swing_trajectory"]().axes]
    assert titles[:2] == ["HIG", "LM"]
    assert len(found["swing_spectrum"]().axes) == 1  # LM has none here


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ("density target_density populations target_populations", ["density", "populations"]),
        ("velocity force uncontrolled_velocity target_velocity", ["flow"]),
        ("start uncontrolled prediction truth quantity", ["smoke"]),
        ("prediction truth quantity", ["fields"]),
    ],
)
def test_examples_by_what_they_have(kept, keys, names):
    always = ("time", "control_time", "control", "position", "population_names")
    example = {key: example_results()[key] for key in (*keys.split(), *always)}
    found = study.figures(kept("comparison/p/hig_seed0", example=example))
    assert [name.removeprefix("p_") for name in found] == ["loss", "target", *names]
    assert all(found[f"p_{name}"]().axes for name in names)


def test_solutions_and_neurons(kept):
    kept("comparison/pinn/burgers/lm_seed0", problem="burgers", example=solution_results())
    folder = kept("comparison/toy/hig_seed0", problem="toy", **activation_results())
    found = study.figures(folder)
    assert "pinn_burgers_solution" in found and found["pinn_burgers_solution"]().axes
    assert found["toy_saturation"]().axes[0].get_xscale() == "log"


def test_ablations_and_relays(kept):
    for value in (-1.0, -0.5):
        settings = {**SETTINGS, "kappa": value}
        kept(f"kappa/toy/hig_{value}_seed0", label=f"HIG ({value})", sim_par=settings)
    kept("rcond_auto/toy/hig_seed0")
    kept("relay_first/toy/adam_seed0", method="adam", label="Adam")
    later = {"pretraining": "Adam (lr 1)", "pretraining_time": 8.0}
    kept("relay/toy/hig_after_adam_seed0", label="HIG (after Adam (lr 1))", **later)
    found = study.figures(kept("comparison/toy/hig_seed0"))
    assert list(found) == ["toy_loss", "toy_target", "toy_relay", "ablation_kappa"]
    assert found["ablation_kappa"]().axes[0].get_xlabel() == "kappa"
    texts = [text.get_text() for text in found["toy_relay"]().legends[0].get_texts()]
    assert texts == ["Adam, then HIG", "Adam"]
    first, second = sorted(found["toy_relay"]().axes[0].lines, key=lambda line: line.get_xdata()[0])
    assert first.get_xdata()[-1] == second.get_xdata()[0] == 8.0


def test_labels_stay_where_they_are_needed(kept):
    kept("comparison/toy/adam_1_seed0", method="adam", label="Adam (lr 1)")
    folder = kept("comparison/toy/adam_2_seed0", method="adam", label="Adam (lr 2)")
    texts = study.figures(folder)["toy_loss"]().legends[0].get_texts()
    assert [text.get_text() for text in texts] == ["Adam (lr 1)", "Adam (lr 2)"]


def test_what_diverges_leaves_at_the_top(kept):
    kept("comparison/toy/hig_seed0")
    rising = {"test_loss": np.logspace(0, 30, 9), "method": "gn", "label": "GN"}
    for axes in study.figures(kept("comparison/toy/gn_seed0", **rising))["toy_loss"]().axes:
        assert axes.get_ylim()[1] == pytest.approx(10.0)


def test_what_cannot_be_drawn_is_left_out_with_a_note(kept, tmp_path, capsys):
    folder = kept("comparison/toy/hig_seed0", points=1, **activation_results(points=1))
    assert study.main([str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "toy_saturation.png is left out: " in capsys.readouterr().err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"toy_loss.png", "toy_target.png"}


def test_files_are_small_and_the_same_every_time(kept, tmp_path, capsys):
    generator = np.random.default_rng(0)
    example = example_results() | {"density": generator.random((2, 400, 7))}
    example |= {"time": np.linspace(0, 1, 400)}
    keys = ("density", "time", "position", "target_density", "control", "control_time")
    shown = {key: example[key] for key in keys}
    folder = kept("comparison/dipole/hig_seed0", example=shown)
    contents = []
    for name in ("one", "two"):
        out = tmp_path / name
        assert study.main([str(folder), "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"3 figures written to {out}\n"
        contents.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {f"dipole_{name}.png" for name in ("loss", "target", "density")}
    assert all(len(data) <= 150_000 for data in contents[0].values())


def test_errors(kept, tmp_path, capsys):
    with pytest.raises(_files.PlotError, match="no result files in comparison/; give the output"):
        study.figures(tmp_path)
    assert study.main([str(tmp_path), "--out", str(tmp_path / "figures")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    folder = kept("comparison/toy/hig_seed0")
    (tmp_path / "file").touch()
    assert study.main([str(folder), "--out", str(tmp_path / "file")]) == 2
    assert "--out must be a folder that can be written to" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        study.main(["--help"])
    assert stop.value.code == 0
    assert "  python -m plots.study study/desk --out docs/images/study" in capsys.readouterr().out


def test_many_seeds_have_one_figure(kept, tmp_path):
    folder = kept("comparison/toy/hig_seed0", problem="toy")
    file = many_seeds(tmp_path, batches=(8,))
    hig.save_results(folder / "robustness.pickle", file.results)
    found = study.figures(folder)
    assert list(found)[-1] == "robustness" and len(found["robustness"]().axes) == 1
