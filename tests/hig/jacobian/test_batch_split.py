import pytest
import torch

from hig._jacobian.batch_split import Split, check_reduction
from hig._torch.ranks import Ranks


class Other(Ranks):
    """This process as the second of three; the others hold the same tensor."""

    def __init__(self):
        super().__init__()
        self.rank, self.size = 1, 3

    def every(self, tensor):
        return [tensor] * 3


def test_rows_follow_one_another():
    split = Split(Other(), [2, 3, 1], 4)
    assert split.rows == 24
    assert [split.rows_of(rank) for rank in range(3)] == [slice(0, 8), slice(8, 20), slice(20, 24)]
    assert split.own == slice(8, 20)


def test_weights_make_the_mean_over_all_samples():
    assert Split(Other(), [2, 3, 1], 4).weight("mean") == 0.5
    assert Split(Other(), [2, 3, 1], 4).weight("sum") == 1.0
    assert Split(Ranks(), [5], 4).weight("mean") == 1.0


@pytest.mark.parametrize("each", [1, 4])
def test_shorter_tensors_are_filled_up_and_cut(each):
    split = Split(Other(), [4, 3, 1], 4)
    own = torch.arange(3.0 * each * 2).view(3 * each, 2)
    found = split.everyones(own)
    assert [len(part) for part in found] == [4 * each, 3 * each, each]
    assert torch.equal(found[1], own)
    assert not found[0][3 * each :].any()
    assert split.joined(own).shape == (8 * each, 2)


def test_a_reduction_that_is_none():
    with pytest.raises(ValueError, match=r"reduction must be one of .*, got 'max'"):
        check_reduction("max")
