"""Which losses come next."""

import numpy as np
import pytest
import torch

from hig.conflictfree import OrderedSliceSelector, RandomSliceSelector, has_zero


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_ordered_slices_go_round(n):
    selector, seen = OrderedSliceSelector(), []
    for _ in range(7):
        indexes, elements = selector.select(n, "abcde")
        assert elements == ("abcde"[indexes[0]] if n == 1 else ["abcde"[i] for i in indexes])
        seen += indexes
    assert seen == [i % 5 for i in range(7 * n)]
    assert selector.start_index == 7 * n % 5


@pytest.mark.parametrize("n", [1, 2, 5])
def test_random_slices(n):
    selector = RandomSliceSelector(np.random.default_rng(0))
    counts = np.zeros(5)
    for _ in range(300):
        indexes, elements = selector.select(n, "abcde")
        assert len(set(indexes)) == n
        assert all(type(index) is int for index in indexes)
        assert elements == ("abcde"[indexes[0]] if n == 1 else ["abcde"[i] for i in indexes])
        counts[indexes] += 1
    assert counts.min() > 0.6 * counts.max()


@pytest.mark.parametrize("kind", [OrderedSliceSelector, RandomSliceSelector])
@pytest.mark.parametrize("n", [0, 4, -1])
def test_slices_that_do_not_exist(kind, n):
    with pytest.raises(ValueError, match=f"n must be between 1 and .* 3, got {n}"):
        kind().select(n, "abc")


@pytest.mark.parametrize(
    "make", [OrderedSliceSelector, lambda: RandomSliceSelector(np.random.default_rng(3))]
)
def test_exact_resume(make, tmp_path):
    selector = make()
    selector.select(2, "abcde")
    torch.save(selector.state_dict(), tmp_path / "state")
    other = make()
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for _ in range(5):
        assert selector.select(2, "abcde") == other.select(2, "abcde")


def test_other_generators_and_states():
    with pytest.raises(TypeError, match="generator must be a numpy Generator, got 3"):
        RandomSliceSelector(3)
    with pytest.raises(ValueError, match="lacks start_index"):
        OrderedSliceSelector().load_state_dict({})
    with pytest.raises(ValueError, match="saved with a generator and this selector has none"):
        RandomSliceSelector().load_state_dict(
            RandomSliceSelector(np.random.default_rng(0)).state_dict()
        )
    RandomSliceSelector().load_state_dict(RandomSliceSelector().state_dict())


def test_numpys_global_seed_counts():
    picks = []
    for _ in range(2):
        np.random.seed(4)  # noqa: NPY002
        indexes, elements = RandomSliceSelector().select(3, range(10))
        assert isinstance(indexes, np.ndarray)  # as the original has it: scripts call its tolist
        assert indexes.tolist() == elements
        picks.append(elements)
    assert picks[0] == picks[1]


def test_has_zero():
    assert has_zero([1, 0])
    assert not has_zero([1, 2])
