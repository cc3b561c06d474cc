import time

import pytest

from experiments._run.clock import TrainingClock


def test_counts_the_time_inside_only():
    clock = TrainingClock("cpu")
    with clock.running():
        time.sleep(0.02)
    time.sleep(0.05)
    first = clock.seconds
    assert 0.02 <= first < 0.05
    with clock.running():
        time.sleep(0.02)
    assert clock.seconds >= first + 0.02


def test_counts_when_the_body_raises():
    clock = TrainingClock("cpu")
    with pytest.raises(KeyboardInterrupt), clock.running():
        time.sleep(0.01)
        raise KeyboardInterrupt
    assert clock.seconds >= 0.01


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
