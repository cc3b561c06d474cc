from pathlib import Path

import pytest

from experiments import Options


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "time_budget": 2.0}])
def test_exactly_one_length(length):
    with pytest.raises(ValueError, match="either epochs or a time budget, got"):
        Options(out=Path(), **length)
