"""A function sees the same random numbers again, and leaves no trace in the generators."""

import random

import numpy as np
import pytest
import torch

from hig._torch.random_state import RandomState

CPU = torch.device("cpu")
NUMPY = np.random.mtrand._rand  # the generator behind ``np.random.rand`` and the like
GENERATORS = {
    "torch": lambda: torch.rand(3).tolist(),
    "torch_normal": lambda: torch.randn(5).tolist(),
    "numpy": lambda: NUMPY.rand(3).tolist(),
    "numpy_one_normal": lambda: NUMPY.randn(),  # every second one is taken from a cache
    "numpy_integers": lambda: NUMPY.randint(0, 1 << 30, 3).tolist(),
    "numpy_many": lambda: NUMPY.rand(2000).tolist(),
    "python": random.random,
    "python_one_normal": lambda: random.gauss(0, 1),
    "python_sample": lambda: random.sample(range(100), 5),
    "all": lambda: (float(torch.rand(())), NUMPY.rand(), random.random()),
}
BY_NAME = pytest.mark.parametrize("draw", GENERATORS.values(), ids=GENERATORS)


@pytest.mark.parametrize("earlier", [0, 1])
@BY_NAME
def test_numbers_come_again_and_leave_no_trace(draw, earlier):
    for _ in range(earlier):
        draw()
    state = RandomState(CPU)
    first = draw()
    second = RandomState(CPU)
    assert [state.replay(draw) for _ in range(3)] == [first] * 3
    following = draw()
    assert second.replay(draw) == following != first


@BY_NAME
def test_what_has_not_been_used_yet_is_put_back_too(draw):
    state = RandomState(CPU)
    assert state.replay(draw) == state.replay(draw) == draw()


@BY_NAME
def test_an_error_leaves_no_trace(draw):
    state = RandomState(CPU)
    draw()
    now = RandomState(CPU)

    def interrupted():
        draw()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        state.replay(interrupted)
    following = draw()
    assert now.replay(draw) == following


@BY_NAME
def test_unused_generators_of_the_host_are_forgotten(draw):
    of_host = draw not in (GENERATORS["torch"], GENERATORS["torch_normal"])
    state = RandomState(CPU)
    first = draw()
    assert state.keep_used() == of_host
    assert state.replay(draw) == first
    state = RandomState(CPU)
    assert not state.keep_used()
    assert not RandomState(CPU, host=False).keep_used()


def test_what_is_drawn_between_two_replays_goes_on():
    """A rule that draws step sizes from a global generator draws new ones."""
    state = RandomState(CPU)
    drawn = []
    for _ in range(3):
        state.replay(NUMPY.rand)
        drawn.append(NUMPY.rand())
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.SFC64, np.random.Philox])
def test_other_bit_generators_of_numpy(kind):
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(kind(0))
    try:
        state = RandomState(CPU)
        assert not RandomState(CPU).keep_used()
        first = NUMPY.randn()
        assert state.keep_used()
        second = RandomState(CPU)
        assert state.replay(NUMPY.randn) == first
        following = NUMPY.randn()
        assert second.replay(NUMPY.randn) == following != first
    finally:
        np.random.set_bit_generator(before)
