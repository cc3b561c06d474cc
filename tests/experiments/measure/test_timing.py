import mmap
import time

import numpy as np
import pytest

from experiments._measure.timing import interleaved_seconds, median_ratio, peak_bytes
from experiments._run.clock import CLOCKS
from tests.experiments.clocks import FakeTime


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(CLOCKS, "wall", reading := FakeTime())
    return reading


def test_functions_are_called_in_turn_and_timed(fake):
    calls = []

    def slow():
        calls.append("slow")
        fake.sleep(2.0)

    functions = {"slow": slow, "fast": lambda: calls.append("fast")}
    seconds = interleaved_seconds(functions, rounds=3, warm_up=1, device="cpu")
    assert calls == ["slow", "fast"] * 4
    assert seconds == {"slow": [2.0] * 3, "fast": [0.0] * 3}


def test_slow_functions_have_fewer_turns(fake):
    functions = {"slow": lambda: fake.sleep(2.0), "fast": lambda: fake.sleep(0.125)}
    seconds = interleaved_seconds(functions, rounds=3, warm_up=2, device="cpu", patience=1.0)
    assert seconds == {"slow": [2.0], "fast": [0.125] * 3}
    assert median_ratio(seconds["slow"], seconds["fast"]) == 16


def test_processor_time_leaves_waiting_out():
    functions = {"asleep": lambda: time.sleep(0.05), "awake": lambda: sum(range(100_000))}
    seconds = interleaved_seconds(functions, 1, 0, "cpu", clock="processor")
    assert seconds["asleep"][0] < 0.05
    assert seconds["awake"][0] > 0


def test_ratios_are_taken_round_by_round():
    # A machine that slows down threefold in the last rounds changes nothing.
    assert median_ratio([2.0, 2.0, 6.0, 6.0], [1.0, 1.0, 3.0, 3.0]) == pytest.approx(2)


def test_peak_memory_counts_what_is_freed_again():
    def allocate():
        # Pages of its own: the heap may have as much that was freed before and is still resident.
        np.frombuffer(mmap.mmap(-1, 80 * 2**20), np.uint8)[:] = 1

    assert 79 * 2**20 < peak_bytes(allocate, "cpu") < 120 * 2**20
    assert peak_bytes(lambda: None, "cpu") < 5 * 2**20
