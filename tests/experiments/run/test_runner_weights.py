"""Which weights a run starts from, evaluates and keeps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import hig
from experiments import Options, run
from experiments._run import loop, setup
from problems import Settings
from tests.experiments.runs import TINY, Failing, settings


def train_in_two_parts(problem, methods, settings, options):
    """The results of a run and of one that starts from its weights."""
    first = run(problem, methods[0], settings[0], replace(options, save_weights=True))
    weights = options.out / first["weights_file"]
    return first, run(problem, methods[1], settings[1], replace(options, init_from=weights))


def test_starting_from_weights(options, tmp_path):
    both = [settings("adam", lr=0.01), settings("sgd")]
    first, second = train_in_two_parts(TINY, ["adam", "sgd"], both, options)
    for key in ("train_loss", "test_loss"):
        assert second[key][0] == first[key][-1]
    assert second["label"].startswith("SGD (batch 8, ")
    assert second["label"].endswith(f", after {first['label']})")
    assert (second["pretraining"], second["pretraining_time"]) == (
        first["label"],
        first["simulation_time"],
    )
    assert second["time"][0] == 0
    assert second["sim_par"]["init_from"] == str(tmp_path / first["weights_file"])
    assert "pretraining" not in first
    assert len(list(tmp_path.glob("*.pickle"))) == 2
    assert len(list(tmp_path.glob("*_sgd_batch8_*_afteradambatch8lr0.01*_seed0.pickle"))) == 1


def test_plain_descent_in_two_parts_is_descent_in_one(options):
    whole = run(TINY, "sgd", settings("sgd"), replace(options, epochs=6))
    _, second = train_in_two_parts(TINY, ["sgd", "sgd"], 2 * [settings("sgd")], options)
    assert second["train_loss"].tolist() == whole["train_loss"][3:].tolist()


def test_fresh_samples_stay_fresh(fresh, options):
    train_in_two_parts(fresh, ["sgd", "hig"], list(fresh.settings.values()), options)
    drawn = torch.cat(fresh.drawn)
    assert len(drawn.unique()) == len(drawn) == 2 * 9 * 4


def test_without_being_asked_no_weights_are_written(options, tmp_path):
    assert "weights_file" not in run(TINY, "sgd", settings("sgd"), options)
    assert not list(tmp_path.glob("*.weights"))


def test_an_interrupted_run_saves_the_weights_of_an_evaluation(failing, options, monkeypatch):
    monkeypatch.setattr(Failing, "error", KeyboardInterrupt)  # in the second step of epoch 2
    first = run(failing, "adam", settings("adam"), replace(options, save_weights=True))
    weights = hig.load_results(options.out / first["weights_file"])
    assert weights["test_loss"] == first["test_loss"][-1]
    assert weights["training_time"] == first["time"][-1]
    second_options = replace(options, init_from=options.out / first["weights_file"])
    second = run(TINY, "adam", settings("adam"), second_options)
    assert second["test_loss"][0] == first["test_loss"][-1]


def test_weights_that_are_not_finite_are_not_written(options, tmp_path, capsys):
    diverging = replace(options, epochs=50, save_weights=True, quiet=False)
    # One batch is an epoch, so that the first weights that overflow are evaluated at once.
    results = run(TINY, "sgd", settings("sgd", lr=1e30, batch_size=16), diverging)
    assert results["stopped"].startswith("non-finite: the training loss")
    assert "weights_file" not in results
    assert not list(tmp_path.glob("*.weights"))
    assert "no weights: they are not finite" in capsys.readouterr().err


def test_starting_from_other_seeds_makes_files_of_their_own(options):
    labels = set()
    for seed in (0, 1):
        begun = replace(options, seed=seed, save_weights=True, epochs=1)
        weights = run(TINY, "sgd", settings("sgd"), begun)["weights_file"]
        second = replace(options, epochs=1, init_from=options.out / weights)
        labels.add(run(TINY, "adam", settings("adam"), second)["label"])
    assert len(labels) == 1
    assert len(list(options.out.glob("*_adam_*.pickle"))) == 2


def test_the_example_is_of_the_weights_of_the_last_evaluation(failing, options, monkeypatch):
    monkeypatch.setattr(Failing, "error", KeyboardInterrupt)
    example = Failing.example
    shown = []
    monkeypatch.setattr(
        Failing, "example", lambda self, net, batch: shown.append(net) or example(self, net, batch)
    )
    results = run(failing, "adam", settings("adam"), replace(options, save_weights=True))
    kept = hig.load_results(options.out / results["weights_file"])["weights"]
    for name, value in shown[0].state_dict().items():
        assert np.array_equal(value, kept[name])


def test_a_running_average_is_evaluated_and_kept(tmp_path, monkeypatch):
    """Written out: the mean starts at the first step, and each one after adds its share."""
    weights = []
    original = loop.take_step

    def watched(problem, method, network, optimizer, batch):
        loss = original(problem, method, network, optimizer, batch)
        weights.append([p.detach().clone() for p in network.parameters()])
        return loss

    monkeypatch.setattr(loop, "take_step", watched)
    options = Options(out=tmp_path, epochs=3, quiet=True, average=0.75, save_weights=True)
    results = run(TINY, "adam", Settings(4, lr=0.01), options)
    assert "average 0.75" in results["label"]
    mean = weights[0]
    for later in weights[1:]:
        mean = [0.75 * a + 0.25 * b for a, b in zip(mean, later, strict=True)]
    network = TINY.network()
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), mean, strict=True):
            parameter.copy_(value)
    _, test = TINY.data(setup.generator(0, setup.DATA_STREAM))
    test = {key: value.float() for key, value in test.items()}
    expected = TINY.data_loss(network, test, 100)
    assert results["test_loss"][-1] == pytest.approx(expected, rel=1e-5)
    kept = run(TINY, "adam", Settings(4, lr=0.01), replace(
        options, average=None, init_from=next(tmp_path.glob("*.weights"))
    ))  # fmt: skip
    assert kept["test_loss"][0] == pytest.approx(expected, rel=1e-5)
