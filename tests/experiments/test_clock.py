import time

import pytest

from experiments._clock import TrainingClock


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
