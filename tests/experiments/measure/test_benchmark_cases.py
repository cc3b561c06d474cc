"""The cases of the benchmark take the same step."""

from dataclasses import replace

import pytest
import torch

from experiments._measure.benchmark_cases import Cases
from problems import NonlinearOscillators, Poisson, QuantumDipole
from tests.textbook import flat, relative_error

QUANTUM = QuantumDipole(time_steps=5, grid_points=6, hidden=(4,), train_size=8, test_size=2)
POISSON = Poisson(size=4, hidden=(5,), train_size=8, test_size=2)
TINY = NonlinearOscillators(time_steps=6, dt=0.5, hidden=(5,), train_size=8, test_size=4)


class Watched(Cases):
    """Keeps the networks that the cases make."""

    def __init__(self, problem):
        super().__init__(problem, batch_size=8, device="cpu")
        self.settings = replace(self.settings, lr=0.1, rcond=1e-3)
        self.made = []

    def network(self):
        self.made.append(super().network())
        return self.made[-1]


def after_one_step(make, problem=TINY):
    cases = Watched(problem)
    make(cases)()
    start = flat(cases.network().parameters())
    return flat(cases.made[0].parameters()) - start


@pytest.mark.parametrize("problem", [TINY, QUANTUM, POISSON])
@pytest.mark.parametrize("engine", ["auto", "layerwise", "rows"])
def test_the_textbook_takes_the_step_of_the_engines(problem, engine):
    expected = after_one_step(lambda cases: cases.half_inverse(engine=engine), problem)
    assert relative_error(after_one_step(Cases.textbook, problem), expected) < 1e-3


def test_adam_takes_the_same_step_through_both_loops():
    loop, rollout = (
        after_one_step(lambda c, r=r: c.adam(replace(TINY, rollout=r))) for r in ("loop", "auto")
    )
    assert loop.any()
    assert torch.allclose(loop, rollout, atol=1e-7)


def test_a_graph_is_for_a_gpu():
    cases = Cases(TINY, batch_size=2, device="cpu")
    assert "HIG auto, CUDA graph" not in cases.makers()
    with pytest.raises(ValueError, match="the parameters are on cpu"):
        cases.recorded()()


@pytest.mark.parametrize(("problem", "cases"), [(TINY, 8), (QUANTUM, 8), (POISSON, 7)])
def test_every_case_of_every_problem_runs(problem, cases):
    steps = Cases(problem, batch_size=2, device="cpu").makers()
    assert len(steps) == cases
    for make in steps.values():
        make()()
