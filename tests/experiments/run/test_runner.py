"""Runs from their start to their results."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from experiments import run
from experiments._methods import METHODS
from experiments._run import loop, setup
from problems import NonlinearOscillators, Settings
from tests.experiments.clocks import SteppingClock
from tests.experiments.runs import TINY, Failing, Fresh, settings

SINGLE = [name for name, method in METHODS.items() if not method.several_losses]


JACOBIAN = [name for name in SINGLE if METHODS[name].jacobian]


@dataclass(frozen=True)
class Pixels(Fresh):
    """Whole numbers as data."""

    seen: ClassVar[list[torch.dtype]] = []

    def data(self, generator):
        bytes_ = torch.arange(12, dtype=torch.uint8).unsqueeze(1)
        return ({"bytes": bytes_, "x": bytes_.double() / 12},) * 2

    def batches(self, train, size, generator):
        self.seen.extend([train["bytes"].dtype, train["x"].dtype])
        while True:
            yield train


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whole_numbers_keep_their_dtype(dtype, options):
    Pixels.seen.clear()
    run(Pixels(), "sgd", Pixels.settings["sgd"], replace(options, dtype=dtype))
    assert Pixels.seen == [torch.uint8, getattr(torch, dtype)]


@pytest.mark.parametrize("method", SINGLE)
def test_every_method_lowers_the_loss(method, options):
    results = run(TINY, method, settings(method), options)
    assert results["train_loss"][-1] < results["train_loss"][0]
    assert results["stopped"] == "epochs"


@pytest.mark.parametrize("method", ["adam", *JACOBIAN])
def test_result_file_keeps_the_contract(method, options, saved):
    run(TINY, method, settings(method), options)
    results = saved()
    assert results["problem"] == "nonlinear_oscillators"
    assert results["method"] == method
    assert results["label"].startswith(METHODS[method].label)
    assert results["seed"] == 0
    assert results["epochs"].tolist() == [0, 1, 2, 3]
    for key in ("epochs", "train_loss", "test_loss", "time"):
        assert results[key].shape == (4,)
        assert results[key].dtype == np.float64
    assert results["time"][0] == 0
    assert np.all(np.diff(results["time"]) > 0)
    np.testing.assert_allclose(results["epoch_time"], np.diff(results["time"]))
    assert results["simulation_time"] == results["time"][-1]
    assert ("rank" in results) == METHODS[method].jacobian
    parameters = results["sim_par"]
    assert (parameters["batch_size"], parameters["time_steps"], parameters["dt"]) == (8, 8, 0.5)
    assert (parameters["dtype"], parameters["device"], parameters["epochs"]) == (
        "float32",
        "cpu",
        3,
    )
    assert {"hig", "torch", "numpy", "python", "device", "threads"} <= set(results["machine"])
    assert set(results["origin"]) == {"command", "revision", "started"}


@pytest.mark.parametrize("method", JACOBIAN)
def test_jacobian_methods_keep_their_reports(method, options, saved):
    run(TINY, method, settings(method, batch_size=6), options)  # batches of 6, 6 and 4
    results = saved()
    assert results["step_time"].shape == results["rank"].shape == results["step_size"].shape == (9,)
    assert np.all(np.diff(results["step_time"]) > 0)
    assert results["step_time"][-1] == results["simulation_time"]
    parameters = sum(p.numel() for p in TINY.network().parameters())
    assert (results["rows"], results["columns"]) == (24, parameters)
    assert np.all(results["rank"] <= 24)
    spectrum = results["spectrum"]
    assert spectrum["singular_values"].shape == (len(spectrum["epochs"]), 24)
    assert np.all(np.diff(spectrum["singular_values"], axis=1) <= 0)
    assert spectrum["epochs"][0] == 0
    assert all(isinstance(note, str) for note in results["notes"])


def test_parameters_are_also_text(options, tmp_path):
    run(TINY, "hig", settings("hig", rcond=1e-4), options)
    (path,) = tmp_path.glob("*.txt")
    lines = path.read_text("utf-8").splitlines()
    assert "rcond: 0.0001" in [line.strip() for line in lines]
    assert "stopped: epochs" in lines


def test_every_method_starts_from_the_same_point(options):
    one, two = (run(TINY, name, settings(name), options) for name in ("sgd", "soap"))
    assert one["train_loss"][0] == two["train_loss"][0]
    assert one["test_loss"][0] == two["test_loss"][0]


def test_precisions_share_data_and_initial_weights(options):
    single = run(TINY, "sgd", settings("sgd"), options)
    double = run(TINY, "sgd", settings("sgd"), replace(options, dtype="float64"))
    assert double["train_loss"][0] == pytest.approx(single["train_loss"][0], rel=1e-5)
    assert double["train_loss"][0] != single["train_loss"][0]


def test_batches_cover_every_sample_once_per_epoch(options):
    seen = []

    @dataclass(frozen=True)
    class Watched(NonlinearOscillators):
        def predict(self, network, batch):
            if torch.is_grad_enabled():
                seen.append(batch["start"])
            return super().predict(network, batch)

    problem = Watched(time_steps=8, dt=0.5, train_size=16, test_size=2)
    run(problem, "sgd", settings("sgd", batch_size=6), options)
    assert [len(batch) for batch in seen] == 3 * [6, 6, 4]
    epochs = [torch.cat(seen[i : i + 3]) for i in (0, 3, 6)]
    assert len(epochs[0].unique(dim=0)) == 16
    assert torch.equal(epochs[0], epochs[2])


@pytest.mark.parametrize("method", ["hig", "sgd"])
def test_time_budget_stops(method, options):
    budget = replace(options, epochs=None, time_budget=0.1, clock="processor")
    results = run(TINY, method, settings(method), budget)
    assert results["stopped"] == "time budget"
    # The step within which it was used up is the last one.
    assert results["simulation_time"] >= 0.1 > results["time"][-2]


def test_the_clock_is_the_users_choice(options):
    chosen = replace(options, clock="processor")
    results = run(TINY, "sgd", settings("sgd"), chosen)
    assert results["sim_par"]["clock"] == "processor"
    with pytest.raises(ValueError, match="clock must be one of wall, processor"):
        run(TINY, "sgd", settings("sgd"), replace(options, clock="sun"))


def test_time_budget_ends_within_an_epoch(options, monkeypatch):
    monkeypatch.setattr(setup, "TrainingClock", SteppingClock)
    budget = replace(options, epochs=None, time_budget=6.0)
    results = run(TINY, "sgd", settings("sgd", batch_size=4), budget)
    assert results["epochs"].tolist() == [0, 1, 1.5]
    assert results["time"].tolist() == [0, 4, 6]


def test_evaluation_by_time(fresh, options, monkeypatch):
    monkeypatch.setattr(setup, "TrainingClock", SteppingClock)
    results = run(fresh, "sgd", fresh.settings["sgd"], replace(options, epochs=10))
    # Each step takes a second: until 5 % of the time are more than that, all are evaluated.
    times = results["time"]
    assert times[:22].tolist() == list(range(22))
    assert 1 < np.diff(times[22:-1]).min() <= np.diff(times).max() <= 2
    assert times[-1] == 30  # three steps are an epoch
    np.testing.assert_allclose(results["epochs"], times / 3)


def test_sums_are_recorded_per_sample(fresh, options):
    results = run(fresh, "sgd", fresh.settings["sgd"], options)
    torch.manual_seed(0)
    network = fresh.network()
    _, test = fresh.data(setup.generator(0, setup.DATA_STREAM))
    error = network(test["x"].float()) - 2 * test["x"] - 1
    assert results["test_loss"][0] == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert results["test_distance"][0] == pytest.approx(error.abs().mean().item(), rel=1e-5)


def test_metrics_stand_next_to_the_losses(fresh, options):
    results = run(fresh, "sgd", fresh.settings["sgd"], options)
    evaluations = len(results["epochs"])
    assert results["test_distance"].shape == (evaluations,)
    assert results["test_weights"].shape == (evaluations, 1)
    assert "tested_by" not in results  # by the loss itself
    assert results["test_weights"].dtype == np.float64
    assert results["test_distance"][-1] < results["test_distance"][0]


def test_a_problem_without_example_leaves_it_out(fresh, options, saved):
    run(fresh, "hig", fresh.settings["hig"], options)
    assert "example" not in saved()


def test_fresh_batches_depend_on_the_seed_alone(fresh, options):
    def drawn(method, seed):
        fresh.drawn.clear()
        run(fresh, method, fresh.settings[method], replace(options, seed=seed))
        return torch.cat(fresh.drawn[:9])

    first = drawn("sgd", 0)
    assert torch.equal(first, drawn("hig", 0))
    assert not torch.equal(first, drawn("sgd", 1))
    train, _ = fresh.data(setup.generator(0, setup.DATA_STREAM))
    assert not np.intersect1d(first, train["x"]).size


def test_drawing_batches_takes_no_training_time(fresh, options, monkeypatch):
    running = []

    class Watched(SteppingClock):
        def __enter__(self):
            running.append(None)

        def __exit__(self, *error):
            running.pop()
            super().__exit__(*error)

    def draw(self, samples, generator, draw=Fresh._draw):
        assert not running
        return draw(self, samples, generator)

    monkeypatch.setattr(setup, "TrainingClock", Watched)
    monkeypatch.setattr(Fresh, "_draw", draw)
    run(fresh, "sgd", fresh.settings["sgd"], options)
    assert len(fresh.drawn) == 9


@pytest.mark.parametrize("method", ["adam", "hig"])
@pytest.mark.parametrize(
    ("error", "stopped"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (None, "non-finite: the "),  # the default of `Failing`
        (RuntimeError("the solver did not converge"), "failed: the solver did not converge"),
    ],
)
def test_a_run_that_ends_early_saves(error, stopped, method, failing, options, saved, monkeypatch):
    monkeypatch.setattr(Failing, "error", error)
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="did not converge"):
            run(failing, method, settings(method), options)
    else:
        run(failing, method, settings(method), options)
    assert saved()["stopped"].startswith(stopped)
    assert saved()["epochs"].tolist() == [0, 1]
    assert saved()["example"]["state"].shape == (3, 9, 4)


def test_interruption_before_anything_is_there(options, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "mean_loss", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, "adam", settings("adam"), options)
    assert not list(options.out.glob("*.pickle"))


def test_a_diverging_baseline_names_the_step_size(options):
    results = run(TINY, "sgd", settings("sgd", lr=1e4), replace(options, epochs=50))
    assert results["stopped"].startswith("non-finite: the ")
    assert "try a smaller one with --lr" in results["stopped"]


def test_unknown_method(options):
    with pytest.raises(ValueError, match="unknown method 'newton'; known are hig, gn"):
        run(TINY, "newton", settings("hig"), options)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["hig", "adam", "muon"])
def test_cuda(method, options):
    results = run(TINY, method, settings(method), replace(options, device="cuda"))
    assert results["train_loss"][-1] < results["train_loss"][0]


def test_number_of_threads(options, tmp_path):
    before = torch.get_num_threads()
    try:
        results = run(TINY, "adam", settings("adam"), replace(options, threads=before + 1))
        assert results["machine"]["threads"] == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_method_that_the_problem_has_no_settings_for(fresh, options):
    with pytest.raises(ValueError, match="fresh has no settings for 'adam'; it has them for sgd"):
        run(fresh, "adam", Settings(batch_size=4, lr=0.1), options)


def test_only_the_published_settings_are_called_published(options):
    problem, published = replace(TINY, train_size=512), TINY.settings["adam"]
    for given, expected in ((published, True), (replace(published, batch_size=256), False)):
        results = run(problem, "adam", given, replace(options, epochs=1))
        assert results["sim_par"]["published"] is expected


@pytest.mark.parametrize("quiet", [False, True])
def test_a_note_is_shown_with_its_step_when_it_first_comes(quiet, options, capsys):
    chosen = replace(settings("hig"), lr=1e-3, step_rule="trust")
    results = run(TINY, "hig", chosen, replace(options, quiet=quiet))
    text = "lr=0.001 takes that part of the steps"
    assert sum(text in note for note in results["notes"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if text in line]
    assert [line.strip().startswith("step 1: ") for line in lines] == [] if quiet else [True]
