"""Deferred checks, evaluated in one transfer, and the phase clock."""

import time

import pytest
import torch

from hig._torch.host import DeferredChecks, PhaseClock
from tests.hig.transfers import Transfers


def refuse(text):
    def otherwise():
        raise ValueError(text)

    return otherwise


def test_the_first_that_does_not_hold_is_raised():
    checks = DeferredChecks()
    checks.expect(torch.tensor(True), refuse("first"))
    checks.expect(torch.tensor([False]), refuse("second"))
    checks.expect(torch.tensor(False), refuse("third"))
    with pytest.raises(ValueError, match="second"):
        checks.settle()
    checks.settle()  # has been raised


def test_all_are_read_at_once():
    checks = DeferredChecks()
    for _ in range(5):
        checks.expect(torch.tensor(True), refuse("never"))
    with Transfers() as transfers:
        checks.settle()
        checks.settle()
    assert transfers.count == 1


def test_the_clock_adds_up_by_name(monkeypatch):
    readings = iter([1.0, 2.0, 10.0, 14.0, 20.0, 20.0])  # as each phase begins and ends
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    clock = PhaseClock()
    for name in ("gram", "gram", "direction"):
        with clock.phase(name):
            pass
    assert clock.seconds == {"gram": 5.0, "direction": 0.0}
    assert list(clock.seconds) == ["gram", "direction"]


def test_the_clock_counts_a_phase_that_fails():
    clock = PhaseClock()
    with pytest.raises(KeyError), clock.phase("gram"):
        raise KeyError
    assert "gram" in clock.seconds


def test_phases_show_under_the_profiler():
    clock = PhaseClock()
    with torch.autograd.profiler.profile(use_kineto=False) as profile, clock.phase("gram"):
        torch.ones(2)
    assert "hig: gram" in {event.name for event in profile.function_events}
    assert clock.seconds["gram"] > 0
