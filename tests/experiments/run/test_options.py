from pathlib import Path

import pytest

from experiments import Options


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "time_budget": 2.0}])
def test_exactly_one_length(length):
    with pytest.raises(ValueError, match="either epochs or a time budget, got"):
        Options(out=Path(), **length)


def test_the_processor_clock_is_for_one_thread():
    assert Options(out=Path(), epochs=1, clock="processor", threads=1).threads == 1
    with pytest.raises(ValueError, match="time of all threads, got 2; give --threads 1"):
        Options(out=Path(), epochs=1, clock="processor", threads=2)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"out": 3}, TypeError, "out must be a str or a path, got 3"),
        ({"init_from": 3}, TypeError, "init_from must be a str or a path"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": True}, TypeError, "epochs must be a whole number, got True"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"threads": 1.5}, TypeError, "threads must be a whole number, got 1.5"),
        ({"evaluate_every": float("nan")}, ValueError, "evaluate_every must be positive"),
        ({"checkpoint_every": "1"}, TypeError, "checkpoint_every must be a number"),
        ({"epochs": None, "time_budget": -1.0}, ValueError, "time_budget must be positive"),
        ({"average": 1.0}, ValueError, "average must be between 0 and 1, got 1.0"),
        ({"device": "tpu"}, ValueError, "device must be one of torch, got 'tpu'"),
        ({"device": None}, ValueError, "device must be one of torch, got None"),
    ],
)
def test_what_is_refused(changes, error, match):
    with pytest.raises(error, match=match):
        Options(**{"out": Path("results"), "epochs": 1, **changes})


def test_paths_may_be_texts():
    options = Options(out="results", epochs=1, init_from="a.weights")
    assert (options.out, options.init_from) == (Path("results"), Path("a.weights"))
