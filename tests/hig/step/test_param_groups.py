"""Parameter groups by themselves; what optimisers make of them is in `test_optimizer.py`."""

import pytest
import torch

from hig import NonFiniteError
from hig._step.param_groups import (
    check_group_keys,
    check_group_lr,
    check_one_lr,
    check_parameters_finite,
)


def group(lr=1.0, dtype=torch.float32):
    return {"params": [torch.zeros(2, dtype=dtype)], "lr": lr}


@pytest.mark.parametrize("key", ["lr", "param_names", "initial_lr", "max_momentum"])
def test_settings_of_torch_and_of_the_optimizer_pass(key):
    check_group_keys({"params": [], key: 1.0}, {"lr": 1.0})


def test_what_is_no_group_is_for_torch_to_refuse():
    check_group_keys([torch.zeros(2)], {"lr": 1.0})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"params": [], "rcond": 1e-3}, "take 'params', 'lr', got 'rcond'; check its spelling"),
        ({"lr": 1.0}, "got one without 'params'; add"),
    ],
)
def test_settings_without_effect_are_refused(given, text):
    with pytest.raises(ValueError, match=text):
        check_group_keys(given, {"lr": 1.0})


@pytest.mark.parametrize(
    ("lr", "dtype", "error"),
    [
        (65504.0, torch.float16, None),
        (7e4, torch.float16, ValueError),
        (7e4, torch.float32, None),
        (1e39, torch.float32, ValueError),
        (1e39, torch.float64, None),
        (torch.tensor(0.5), torch.float32, None),
        (-1.0, torch.float32, ValueError),
        ("1", torch.float32, TypeError),
    ],
)
def test_learning_rates_that_the_dtype_holds(lr, dtype, error):
    if error is None:
        check_group_lr(group(lr, dtype))
        return
    with pytest.raises(error, match="lr must be"):
        check_group_lr(group(lr, dtype))


def test_one_learning_rate():
    check_one_lr([0.5, 0.5])
    with pytest.raises(ValueError, match=r"must have one lr, got 0\.1, 2: a direction"):
        check_one_lr([2.0, 0.1, 2.0])


def test_only_after_very_large_steps_parameters_are_looked_at():
    spoiled = [torch.zeros(2), torch.tensor([1.0, float("inf")])]
    check_parameters_finite(spoiled, None)
    check_parameters_finite(spoiled, 1e6)
    check_parameters_finite(spoiled[:1], 2e6)
    with pytest.raises(NonFiniteError, match=r"a step of size 2e\+06 leaves NaN or Inf"):
        check_parameters_finite(spoiled, 2e6)
