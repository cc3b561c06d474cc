from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

import hig
from experiments import Options
from experiments.poisson import pretraining
from problems import Settings
from problems.conditioning_toy import ConditioningToy


@dataclass(frozen=True)
class Small(ConditioningToy):
    train_size: int = 8
    test_size: int = 4
    settings: ClassVar[dict[str, Settings]] = {
        "hig": Settings(batch_size=8, lr=0.1),
        "adam": Settings(batch_size=4, lr=1e-3),
    }


SMALL = Small()


@pytest.fixture
def options(tmp_path):
    return Options(out=tmp_path, time_budget=0.02, quiet=True)


def test_each_continues_from_each(options, tmp_path):
    results = pretraining.pretraining(SMALL, 0.01, 4, options)
    assert [run["label"] for run in results] == [
        "Adam",
        "Adam (after Adam)",
        "HIG (batch 4, after Adam)",
        "HIG (batch 4)",
        "Adam (after HIG (batch 4))",
        "HIG (batch 4, after HIG (batch 4))",
    ]
    assert len(list(tmp_path.glob("*.pickle"))) == 6
    for first, *others in (results[:3], results[3:]):
        assert first["simulation_time"] >= 0.01
        for run in others:
            assert run["simulation_time"] >= 0.02
            assert run["pretraining_time"] == first["simulation_time"]
            assert run["test_loss"][0] == first["test_loss"][-1]


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "Poisson", lambda: SMALL)
    line = "--pretrain-time 0.01 --time-budget 0.02 --seed 4 --batch-size-hig 2 --quiet"
    pretraining.main([*line.split(), "--out", str(tmp_path)])
    files = sorted(path.name for path in tmp_path.glob("*.pickle"))
    assert len(files) == 6
    assert all(file.endswith("_seed4.pickle") for file in files)
    assert hig.load_results(tmp_path / files[-1])["sim_par"]["batch_size"] == 2
    assert f"python -m plots.loss {tmp_path}/*.pickle --log-x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ({"stopped": "interrupted"}, 130),
        ({"stopped": "non-finite: x", "label": "Adam"}, "error: Adam left no weights: non-finite"),
    ],
)
def test_a_first_run_that_fails_ends_the_experiment(results, code, options, monkeypatch):
    runs = []
    monkeypatch.setattr(pretraining, "run", lambda *given: runs.append(given) or results)
    with pytest.raises(SystemExit) as stop:
        pretraining.pretraining(SMALL, 0.01, 4, replace(options, seed=1))
    assert str(stop.value.code).startswith(str(code))
    assert len(runs) == 1
