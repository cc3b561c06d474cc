"""Runs that differ in nothing but the moment."""

import pytest

from experiments._study.keep import keep
from experiments._study.kept import read_kept
from experiments._study.repetitions import repetitions
from tests.experiments.study.made import Made


def test_runs_of_the_same_settings_and_seed(tmp_path):
    made = Made(tmp_path / "results")
    made.run("comparison", "toy", losses=(1, 0.5), settings={"kappa": 1})
    for part, end in (("kappa", 0.2), ("batch", 0.8), ("dtype", float("nan"))):
        made.run(part, "toy", losses=(1, end), settings={"rcond": 0.1})
        made.run(part, "toy", losses=(1, end), settings={"rcond": 0.1}, seed=1)
    made.run("lr", "toy", losses=(1, 0.4), settings={"rcond": 0.1}, seed=2)
    made.run("lr", "poisson", losses=(1, 0.1), settings={"rcond": 0.1}, seed=2)
    made.run("step_rule", "toy", losses=(1, 0.6), settings={"rcond": 0.1}, seed=2)
    made.run("momentum", "toy", losses=(1, 0.6), settings={"rcond": 0.2}, seed=2)
    keep(made.folder, tmp_path / "kept")
    # Of seeds 0 and 1 one has no finite loss, the rest are alone but for seed 2.
    assert repetitions(read_kept(tmp_path / "kept").parts) == [pytest.approx(1.5)]
