import pytest
import torch

from experiments._run.batches import Batches, BatchSizeError
from problems import Poisson
from tests.experiments.runs import TINY, Fresh

SIZES = {"slices": 5, "draws": 4, "pools": 300}


def batches(kind, seed=0):
    problem = {"slices": TINY, "draws": Fresh(), "pools": Poisson(size=4)}[kind]
    train = problem.data(torch.Generator().manual_seed(7))[0]
    return Batches(problem, train, SIZES[kind], torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_a_state_is_restored_by_another(kind, taken):
    whole = batches(kind)
    for _ in range(taken):
        next(whole)
    other = batches(kind, seed=1)
    other.load_state_dict(whole.state_dict())
    for _ in range(5):
        expected, found = next(whole), next(other)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    again = batches(kind, seed=2)
    again.load_state_dict(other.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(next(other).values(), next(again).values(), strict=True)
    )


def test_fixed_slices_are_not_all_passed_over():
    whole = batches("slices")
    for _ in range(4 * 1000 + 2):  # four slices of at most 5 in 16 samples
        next(whole)
    assert whole.state_dict()["taken"] == 2


class Stubborn(Fresh):
    """Starts with another draw than the later ones."""

    def batches(self, train, size, generator):
        torch.rand(3, generator=generator)
        while True:
            yield self._draw(size, generator)


def test_batches_that_depend_on_more_than_the_generator_are_refused():
    def made():
        return Batches(Stubborn(), {"x": torch.zeros(4, 1)}, 2, torch.Generator())

    first, second = made(), made()
    next(first), next(first)
    with pytest.raises(RuntimeError, match=r"keeps more between its draws .* without --resume"):
        second.load_state_dict(first.state_dict())


@pytest.mark.parametrize("size", [17, 10**9])
def test_fixed_batches_are_not_cut_to_the_training_data(size):
    train, _ = TINY.data(torch.Generator())
    with pytest.raises(BatchSizeError, match=f"at most 16, .* got {size}; give 16 or fewer"):
        Batches(TINY, train, size, torch.Generator())
    assert next(Batches(TINY, train, 16, torch.Generator()))["start"].shape == (16, 4)
    fresh, _ = Fresh().data(torch.Generator())
    Batches(Fresh(), fresh, size, torch.Generator())  # which draws as many as are wanted
