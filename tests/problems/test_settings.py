"""Settings refuse numbers out of range before a run is named by them."""

import math

import pytest

from problems import Settings


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0; give"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be a whole number, got 2.0"),
        ({"lr": 0.0}, ValueError, "lr must be positive and finite, got 0.0"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, positive and finite, got '0.1'"),
        ({"rcond": 1.0}, ValueError, r"rcond must be in \[0, 1\), got 1.0"),
        ({"kappa": math.nan}, ValueError, r"kappa must be in \[-1, 1\], got nan"),
        ({"damping": -1.0}, ValueError, "damping must be positive and finite, got -1.0"),
        ({"lanczos_steps": 0}, ValueError, "lanczos_steps must be at least 1, got 0"),
    ],
)
def test_what_is_refused(changes, error, match):
    with pytest.raises(error, match=match):
        Settings(**{"batch_size": 4, "lr": 0.1, **changes})
