import time

import pytest

from experiments._run.clock import CLOCKS, TrainingClock
from tests.experiments.clocks import FakeTime


def test_counts_the_time_inside_only(monkeypatch):
    monkeypatch.setitem(CLOCKS, "wall", fake := FakeTime())
    clock = TrainingClock("cpu")
    with clock.running():
        fake.sleep(2.0)
    fake.sleep(5.0)
    assert clock.seconds == 2
    with clock.running():
        fake.sleep(1.0)
    assert clock.seconds == 3


def test_counts_when_the_body_raises(monkeypatch):
    monkeypatch.setitem(CLOCKS, "wall", fake := FakeTime())
    clock = TrainingClock("cpu")
    with pytest.raises(KeyboardInterrupt), clock.running():
        fake.sleep(1.0)
        raise KeyboardInterrupt
    assert clock.seconds == 1


def test_processor_time_leaves_waiting_out():
    wall, processor = TrainingClock("cpu"), TrainingClock("cpu", "processor")
    with wall.running(), processor.running():
        time.sleep(0.1)
        sum(range(100_000))
    assert wall.seconds >= 0.1
    assert 0 < processor.seconds < 0.09


def test_unknown_clocks_are_refused():
    with pytest.raises(ValueError, match="wall, processor, got 'sun'"):
        TrainingClock("cpu", "sun")
    with pytest.raises(ValueError, match="does not see the work of cuda:0; use the wall clock"):
        TrainingClock("cuda:0", "processor")
