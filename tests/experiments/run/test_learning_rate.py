import math
from dataclasses import replace

import pytest
import torch

import hig
from experiments import Options, run
from experiments._methods import METHODS, MuonAdamW
from experiments._run import setup
from experiments._run.learning_rate import factor, set_learning_rate
from tests.experiments.clocks import SteppingClock
from tests.experiments.runs import TINY


def test_constant():
    assert factor("constant", 0, 0.0) == factor("constant", 10**6, 1.0) == 1


def test_half_a_cosine_to_a_tenth():
    assert factor("cosine", 5000, 0.5) == pytest.approx(0.55)
    assert factor("cosine", 5000, 0.25) == pytest.approx(0.1 + 0.45 * (1 + math.sqrt(0.5)))
    assert factor("cosine", 5000, 1.0) == pytest.approx(0.1)
    assert factor("cosine", 5000, 1.7) == pytest.approx(0.1)


def test_warm_up_of_100_steps_or_a_hundredth_of_the_run():
    long = [factor("cosine", step, step / 10**6) for step in range(200)]
    assert long[:100] == pytest.approx([(step + 1) / 100 for step in range(100)], rel=1e-6)
    assert long[150] == pytest.approx(1, rel=1e-6)
    short = [factor("cosine", step, step / 1000) for step in range(20)]
    assert short[5] == pytest.approx(0.5, rel=1e-2)
    assert short[12] == pytest.approx(1, rel=1e-2)
    assert all(value > 0 for value in long + short)


def test_no_warm_up_of_steps_that_begin_short_by_themselves():
    assert factor("cosine", 0, 0.0, warms_up=False) == 1
    assert factor("cosine", 0, 0.5, warms_up=False) == factor("cosine", 5000, 0.5)


def test_all_groups_are_set():
    network = torch.nn.Linear(2, 2)
    optimizer = MuonAdamW(list(network.parameters()), lr=0.1)
    set_learning_rate(optimizer, 0.3)
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.3, 0.3]


@pytest.mark.parametrize("length", [{"epochs": 6}, {"time_budget": 24.0}])
def test_a_run_follows_the_schedule(length, tmp_path, monkeypatch):
    seen = []
    original = torch.optim.Adam.step

    def step(self, closure):
        seen.append(self.param_groups[0]["lr"])
        return original(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    monkeypatch.setattr(setup, "TrainingClock", SteppingClock)
    settings = replace(TINY.settings["adam"], batch_size=4, schedule="cosine", lr=1e-3)
    results = run(TINY, "adam", settings, Options(out=tmp_path, quiet=True, **length))
    assert "cosine" in results["label"]
    peak = seen.index(max(seen))
    assert max(seen) <= 1e-3
    assert seen[peak:] == sorted(seen[peak:], reverse=True)
    assert seen[-1] < 2e-4


def test_a_jacobian_run_follows_the_schedule_without_a_warm_up(tmp_path, monkeypatch):
    seen = []
    original = hig.HIG.step

    def step(self, closure):
        seen.append(self.param_groups[0]["lr"])
        return original(self, closure)

    monkeypatch.setattr(hig.HIG, "step", step)
    monkeypatch.setattr(setup, "TrainingClock", SteppingClock)
    settings = replace(TINY.settings["hig"], batch_size=4, schedule="cosine", lr=0.5)
    run(TINY, "hig", settings, Options(out=tmp_path, quiet=True, time_budget=24.0))
    assert seen[0] == 0.5
    assert seen == sorted(seen, reverse=True)
    assert 0.05 <= seen[-1] < 0.1


def test_jacobians_of_several_losses_have_no_schedule():
    assert "schedule" in METHODS["adam"].options
    assert "schedule" in METHODS["hig"].options
    assert "schedule" not in METHODS["multihig"].options
