"""A function sees the same random numbers again, and leaves no trace in the generators."""

import random

import numpy as np
import pytest
import torch

from hig._torch.random_state import RandomState

GENERATORS = {
    "torch": lambda: torch.rand(3).tolist(),
    "torch_normal": lambda: torch.randn(5).tolist(),
    "numpy": lambda: np.random.rand(3).tolist(),
    "numpy_one_normal": np.random.randn,  # every second one is taken from a cache
    "numpy_integers": lambda: np.random.randint(0, 1 << 30, 3).tolist(),
    "numpy_many": lambda: np.random.rand(2000).tolist(),
    "python": random.random,
    "python_one_normal": lambda: random.gauss(0, 1),
    "python_shuffle": lambda: random.sample(range(100), 5),
    "all": lambda: (float(torch.rand(())), np.random.rand(), random.random()),
}


@pytest.mark.parametrize("earlier", [0, 1])
@pytest.mark.parametrize("draw", GENERATORS.values(), ids=GENERATORS)
def test_numbers_come_again_and_leave_no_trace(draw, earlier):
    for _ in range(earlier):
        draw()
    state = RandomState(torch.device("cpu"))
    first = draw()
    assert [state.replay(draw) for _ in range(3)] == [first] * 3
    after = draw()
    again = RandomState(torch.device("cpu"))
    state.replay(draw)
    assert again.replay(draw) == draw() != after


@pytest.mark.parametrize("draw", GENERATORS.values(), ids=GENERATORS)
def test_an_error_leaves_no_trace(draw):
    state = RandomState(torch.device("cpu"))
    draw()
    now = RandomState(torch.device("cpu"))

    def interrupted():
        draw()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        state.replay(interrupted)
    expected = draw()
    assert now.replay(draw) == expected


def test_what_is_drawn_between_two_replays_goes_on():
    """A rule that draws step sizes from a global generator draws new ones."""
    state = RandomState(torch.device("cpu"))
    np.random.rand()
    drawn = []
    for _ in range(3):
        state.replay(np.random.rand)
        drawn.append(np.random.rand())
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.SFC64, np.random.Philox])
def test_other_bit_generators_of_numpy(kind):
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(kind(0))
    try:
        state = RandomState(torch.device("cpu"))
        first = np.random.randn(3).tolist()
        now = RandomState(torch.device("cpu"))
        assert state.replay(lambda: np.random.randn(3).tolist()) == first
        expected = np.random.randn(3).tolist()
        assert now.replay(lambda: np.random.randn(3).tolist()) == expected != first
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.parametrize("name", ["numpy", "python", "torch"])
def test_generators_that_are_not_used_are_left_alone(name):
    state = RandomState(torch.device("cpu"))
    draw, others = GENERATORS[name], [GENERATORS[n] for n in ("numpy", "python") if n != name]
    draw()
    state.replay(draw)
    before = RandomState(torch.device("cpu"))
    expected = [other() for other in others]
    assert [before.replay(other) for other in others][:0] == []
    assert before.replay(lambda: [other() for other in others]) == expected
