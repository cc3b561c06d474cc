from pathlib import Path

import pytest

from experiments import Options


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "time_budget": 2.0}])
def test_exactly_one_length(length):
    with pytest.raises(ValueError, match="either epochs or a time budget, got"):
        Options(out=Path(), **length)


def test_the_processor_clock_is_for_one_thread():
    assert Options(out=Path(), epochs=1, clock="processor", threads=1).threads == 1
    with pytest.raises(ValueError, match="time of all threads, got 2; give --threads 1"):
        Options(out=Path(), epochs=1, clock="processor", threads=2)
