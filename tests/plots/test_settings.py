"""Settings that differ between runs, and what they end at."""

import numpy as np
import pytest

from plots import _settings
from plots._files import PlotError


def with_settings(run_file, **settings):
    return run_file(sim_par={"seed": 0, "out": "a", "lr": 1.0, "hidden": (2, 3)} | settings)


def test_what_differs_within_a_method(run_file):
    base = with_settings(run_file)
    assert _settings.varied([base, with_settings(run_file, seed=1, out="b")]) == []
    assert _settings.varied([base, with_settings(run_file, lr=2.0, momentum=0.5)]) == [
        "lr", "momentum",
    ]  # fmt: skip
    adam = run_file(method="adam", sim_par={"lr": 3e-4})
    assert _settings.varied([base, adam]) == []


def test_values_and_their_texts(run_file):
    file = with_settings(run_file, rule="trust", same=True)
    assert _settings.value(file, "lr") == 1.0
    assert _settings.value(file, "hidden") == "2-3"
    assert _settings.value(file, "same") == "True"
    with pytest.raises(PlotError, match="no setting 'rate'; --setting can be seed, out, lr, hidde"):
        _settings.value(file, "rate")
    assert [_settings.text(value) for value in (1e-7, 0.25, 3, "auto")] == [
        "1e-7", "0.25", "3", "auto",
    ]  # fmt: skip


def test_numbers_come_before_texts():
    assert _settings.in_order([1e-2, "auto", 1e-4, "none", 1e-2]) == [1e-4, 1e-2, "auto", "none"]


def test_what_diverges_ends_nowhere(run_file):
    assert _settings.final(run_file(test_loss=np.array([1.0, 0.5])), "test") == 0.5
    assert _settings.final(run_file(test_loss=np.array([1.0, np.nan])), "test") == np.inf
    assert _settings.final(run_file(stopped="non-finite: loss"), "test") == np.inf
    assert _settings.final(run_file(stopped="time budget"), "train") > 0


def test_names_are_without_what_is_special(run_file):
    assert _settings.name(run_file(label="HIG (trust, lr 3)")) == "HIG"
