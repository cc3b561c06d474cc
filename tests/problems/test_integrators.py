import math

import pytest
import torch

from problems._integrators import rk4


def rotation(state, control):
    x, v = state.unbind(-1)
    return torch.stack([v, control - x], -1)


def error(steps):
    state = torch.tensor([1.0, 0.0], dtype=torch.float64)
    control = torch.zeros((), dtype=torch.float64)
    for _ in range(steps):
        state = rk4(rotation, state, control, 1.0 / steps)
    return (state - state.new_tensor([math.cos(1), -math.sin(1)])).norm().item()


def test_order_four():
    assert math.log2(error(20) / error(40)) == pytest.approx(4, abs=0.1)


def test_matches_the_taylor_series_to_fourth_order():
    # For x' = x one step is 1 + h + h²/2 + h³/6 + h⁴/24, whatever the weights of the stages.
    h = 0.3
    x = rk4(lambda s, c: s, torch.ones(1, dtype=torch.float64), torch.zeros(1), h)
    assert x.item() == pytest.approx(sum(h**k / math.factorial(k) for k in range(5)), rel=1e-14)
