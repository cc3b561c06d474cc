"""Vectors of one length that belong to different parameters."""

import copy

import pytest
import torch
from torch import nn

from hig.conflictfree import (
    ConFIG_update,
    ConFIG_update_double,
    ConFIGOperator,
    IMTLGOperator,
    PCGradOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
    apply_gradient_vector,
    get_gradient_vector,
)
from tests.textbook import flat

MATCH = r"different parameters.*none_grad_mode='zero'"


class TwoHeads(nn.Module):
    """A shared layer with two heads of one size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.heads = nn.Linear(3, 4), nn.ModuleList([nn.Linear(4, 1) for _ in "ab"])

    def gradient(self, *heads, mode="skip"):
        self.zero_grad()
        x = torch.linspace(-1, 1, 15).view(5, 3)
        sum(self.heads[k](self.trunk(x).tanh()).square().mean() for k in heads).backward()
        return get_gradient_vector(self, none_grad_mode=mode)


@pytest.mark.parametrize(
    "combine",
    [
        ConFIG_update,
        lambda grads: ConFIG_update_double(*grads),
        ConFIGOperator().calculate_gradient,
        PCGradOperator().calculate_gradient,
        IMTLGOperator().calculate_gradient,
        lambda grads: PseudoMomentumOperator(2).calculate_gradient([0, 1], grads),
    ],
)
def test_heads_of_equal_size_are_not_mixed_up(combine):
    network = TwoHeads()
    grads = [network.gradient(0), network.gradient(1)]
    assert grads[0].shape == grads[1].shape
    with pytest.raises(ValueError, match=MATCH):
        combine(grads)
    zero = [network.gradient(k, mode="zero") for k in (0, 1)]
    assert combine(zero).shape == (flat(network.parameters()).numel(),)


@pytest.mark.parametrize("kind", [PseudoMomentumOperator, SeparateMomentumOperator])
def test_heads_of_equal_size_in_turn(kind):
    network, operator = TwoHeads(), kind(2)
    operator.calculate_gradient(0, network.gradient(0))
    with pytest.raises(ValueError, match=MATCH):
        operator.calculate_gradient(1, network.gradient(1))
    assert operator.t_grads == [1, 0]
    copied = copy.deepcopy(operator)
    with pytest.raises(ValueError, match=MATCH):
        copied.calculate_gradient(1, network.gradient(1))


def test_a_direction_goes_where_its_gradients_came_from():
    """Also where a later pass has left gradients in other parameters."""
    network = TwoHeads()
    grads = [network.gradient(0), 2 * network.gradient(0), network.gradient(0)]
    noted = [grads[0], grads[2]]
    expected = PCGradOperator().calculate_gradient(noted)
    network.gradient(1)
    PCGradOperator().update_gradient(network, noted)
    assert torch.equal(
        flat(p.grad for p in [*network.trunk.parameters(), *network.heads[0].parameters()]),
        expected,
    )
    # A product of vectors has no note: it goes where there are gradients, as in the original.
    network.gradient(1)
    apply_gradient_vector(network, grads[1])
    assert torch.equal(flat(p.grad for p in network.heads[1].parameters()), grads[1][-5:])


def test_a_vector_of_a_part_is_written_back_to_that_part():
    network = TwoHeads()
    vector = network.gradient(0)
    network.gradient(1)
    apply_gradient_vector(network, vector)
    assert torch.equal(flat(p.grad for p in network.heads[0].parameters()), vector[-5:])


def test_frozen_parameters_are_skipped_alike():
    network = TwoHeads()
    network.trunk.requires_grad_(False)
    grads = [network.gradient(0, 1), network.gradient(1, 0)]
    ConFIGOperator().update_gradient(network, grads)
    assert network.trunk.weight.grad is None
    assert network.heads[0].weight.grad is not None


def test_notes_survive_saving(tmp_path):
    network = TwoHeads()
    torch.save([network.gradient(0), network.gradient(1)], tmp_path / "vectors")
    with pytest.raises(ValueError, match=MATCH):
        ConFIG_update(torch.load(tmp_path / "vectors", weights_only=True))
