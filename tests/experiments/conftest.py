"""Fixtures of the tests of a run."""

import pytest

import hig
from experiments import Options
from tests.experiments.runs import Failing, Fresh


@pytest.fixture
def fresh():
    Fresh.drawn.clear()
    return Fresh()


@pytest.fixture
def options(tmp_path):
    return Options(out=tmp_path, epochs=3, quiet=True)


@pytest.fixture
def saved(tmp_path):
    def load():
        (path,) = tmp_path.glob("*.pickle")
        return hig.load_results(path)

    return load


@pytest.fixture
def failing():
    Failing.calls.clear()
    return Failing(time_steps=8, dt=0.5, train_size=16, test_size=6)
