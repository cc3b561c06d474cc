import numpy as np
import pytest

from experiments._schedule import SHORTEST, EpochSchedule, TimeSchedule, schedule
from problems import NonlinearOscillators
from problems.conditioning_toy import ConditioningToy


def evaluated(times):
    by_time = TimeSchedule()
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
    by_epoch = schedule(NonlinearOscillators(), 2)
    assert [by_epoch.due(step, 100.0 * step) for step in (1, 2, 3)] == [False, True, False]
    by_time = schedule(ConditioningToy(), 2)
    assert [by_time.due(step, 100.0 * step) for step in (1, 2, 3)] == [True, True, True]
