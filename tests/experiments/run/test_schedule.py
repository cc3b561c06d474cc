from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments._run.options import Options
from experiments._run.schedule import SHORTEST, EpochSchedule, growing, schedule
from problems import NonlinearOscillators
from problems.conditioning_toy import ConditioningToy

OPTIONS = Options(out=Path("unused"), epochs=1)


def evaluated(times):
    by_time = growing()
    return np.array([t for step, t in enumerate(times, 1) if by_time.due(step, t)])


def test_by_epoch():
    by_epoch = EpochSchedule(3)
    assert [step for step in range(1, 10) if by_epoch.due(step, 0.0)] == [3, 6, 9]


def test_by_time_five_percent_apart():
    times = evaluated(np.arange(1, 100_000) * 1e-3)
    late = times[times > 2]
    ratios = late[1:] / late[:-1]
    assert ratios.min() >= 1.05
    assert ratios.max() < 1.052
    assert times[-1] > 95
    # An hour has room for two hundred of them.
    assert len(times) < 120


def test_by_time_not_closer_than_the_floor():
    early = evaluated(np.arange(1, 1000) * 1e-3)
    assert np.diff(early).min() >= SHORTEST - 1e-9
    assert np.diff(early).max() < SHORTEST + 2e-3
    assert len(early) == pytest.approx(0.999 / SHORTEST, abs=1)


def test_by_time_every_slow_step_once():
    assert evaluated([60.0, 120.0, 180.0, 182.0]).tolist() == [60, 120, 180]


def test_the_problem_decides():
    by_epoch = schedule(NonlinearOscillators(), 2, OPTIONS)
    assert [by_epoch.due(step, 100.0 * step) for step in (1, 2, 3)] == [False, True, False]
    by_time = schedule(ConditioningToy(), 2, OPTIONS)
    assert [by_time.due(step, 100.0 * step) for step in (1, 2, 3)] == [True, True, True]


def test_evenly_by_time_where_the_options_say_so():
    options = replace(OPTIONS, evaluate_every=2.0)
    for problem in (NonlinearOscillators(), ConditioningToy()):
        even = schedule(problem, 1, options)
        times = [0.5, 1.9, 2.0, 2.1, 3.9, 4.5, 5.0, 11.0, 11.5, 12.0]
        expected = [False, False, True, False, False, True, False, True, False, True]
        assert [even.due(step, time) for step, time in enumerate(times)] == expected
