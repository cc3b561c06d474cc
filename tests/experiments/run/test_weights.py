from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hig
from experiments._run import weights
from experiments._run.weights import WeightsError

RUN = {"problem": "chain", "method": "adam", "label": "Adam", "seed": 3}


def network(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def saved(folder, seconds=2.0, earlier=None):
    latest = weights.snapshot(network(), seconds, test_loss=0.5)
    return weights.save(folder / "chain_adam_lr0.5_seed3.pickle", latest, RUN, earlier)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_keeps_every_weight(dtype, tmp_path):
    pretraining = weights.load(saved(tmp_path), "chain")
    other = network(seed=1).to(dtype)
    pretraining.put_into(other)
    for name, value in network().to(dtype).state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert (pretraining.label, pretraining.seconds, pretraining.runs) == ("Adam", 2.0, 1)


def test_file_is_plain_and_no_result_file(tmp_path):
    path = saved(tmp_path)
    assert path.name == "chain_adam_lr0.5_seed3_network.weights"
    assert list(tmp_path.glob("*.pickle")) == []
    assert not (tmp_path / "chain_adam_lr0.5_seed3.txt").exists()
    contents = hig.load_results(path)
    assert RUN.items() <= contents.items()
    assert (contents["training_time"], contents["test_loss"]) == (2.0, 0.5)
    assert all(type(array) is np.ndarray for array in contents["weights"].values())


def test_training_time_and_runs_add_up(tmp_path):
    first = weights.load(saved(tmp_path, seconds=2.0), "chain")
    second = weights.load(saved(tmp_path, seconds=3.0, earlier=first), "chain")
    assert (second.seconds, second.runs) == (5.0, 2)


def test_a_snapshot_is_a_copy():
    trained = network()
    latest = weights.snapshot(trained, 0.0, 0.0)
    before = latest.weights["0.weight"].copy()
    with torch.no_grad():
        trained[0].weight.zero_()
    assert np.array_equal(latest.weights["0.weight"], before)


def test_usable():
    trained = network()
    assert weights.snapshot(trained, 0.0, 0.5).usable
    assert not weights.snapshot(trained, 0.0, float("inf")).usable
    with torch.no_grad():
        trained[2].bias.fill_(torch.nan)
    assert not weights.snapshot(trained, 0.0, 0.5).usable


def test_other_shapes_leave_the_network_as_it_was(tmp_path):
    pretraining = weights.load(saved(tmp_path), "chain")
    other = network(seed=1, width=5)
    before = other[0].weight.detach().clone()
    message = r"'0.weight' in .* has shape \(4, 2\), in the network \(5, 2\): set the parameters"
    with pytest.raises(WeightsError, match=message):
        pretraining.put_into(other)
    assert torch.equal(other[0].weight, before)


def test_other_names(tmp_path):
    pretraining = weights.load(saved(tmp_path), "chain")
    with pytest.raises(WeightsError, match=r"are named 0.weight, .*; those of the network are w"):
        pretraining.put_into(nn.Linear(2, 1))


def test_other_problem(tmp_path):
    with pytest.raises(WeightsError, match="for problem chain, the run is on poisson; give"):
        weights.load(saved(tmp_path), "poisson")


def test_missing_file_lists_what_is_there(tmp_path):
    name = saved(tmp_path).name
    with pytest.raises(WeightsError, match=f"in its folder: {name}; a run with --save-weights"):
        weights.load(tmp_path / "other.weights", "chain")
    with pytest.raises(WeightsError, match="in its folder: none"):
        weights.load(tmp_path / "nowhere" / "other.weights", "chain")


def test_other_files(tmp_path):
    result, text = tmp_path / "result.pickle", tmp_path / "notes.weights"
    hig.save_results(result, RUN)
    text.write_text("no pickle")
    with pytest.raises(
        WeightsError, match=r"not a weights file, it has no 'weights'; give the \*_net"
    ):
        weights.load(result, "chain")
    with pytest.raises(WeightsError, match="is not a whole result file"):
        weights.load(text, "chain")


def test_a_folder_is_no_file():
    with pytest.raises(WeightsError, match="no weights file"):
        weights.load(Path(), "chain")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"runs": -5}, "'runs' in .* must be from 1 to 2\\*\\*32 - 1, got -5; give the"),
        ({"runs": 10**5000}, "'runs' in .* got a int that cannot be written out"),
        ({"seed": 10**4000}, "'seed' in .* must be from 0 to"),
        ({"training_time": float("nan")}, "'training_time' in .* must be non-negative and finite"),
        ({"label": "y" * 1001}, "'label' in .* must be a line of at most 1000 characters, got yyy"),
        ({"label": "a\n\x1b[31m"}, r"'label' in .* got a\\n\\x1b\[31m; give"),
        ({"problem": "\x1b[31m"}, r"for problem \\x1b\[31m, the run is on chain"),
    ],
)
def test_contents_out_of_range(changes, text, tmp_path):
    path = saved(tmp_path)
    hig.save_results(path, hig.load_results(path) | changes)
    with pytest.raises(WeightsError, match=text):
        weights.load(path, "chain")


def test_complex_weights(tmp_path):
    path = saved(tmp_path)
    contents = hig.load_results(path)
    contents["weights"]["0.bias"] = contents["weights"]["0.bias"] + 1j
    hig.save_results(path, contents)
    other = network(seed=1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(
        WeightsError, match="not numbers of a dtype of torch: they are complex; give"
    ):
        weights.load(path, "chain").put_into(other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
