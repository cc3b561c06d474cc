import torch
from torch import nn

from problems._networks import dense_network
from problems.pinn._jets import Jet, jet, propagate, tangents, taylor
from problems.pinn._pairs import difference_rule, pair_rows, propagate_side_by_side, start_pairs


def case():
    torch.manual_seed(0)
    network = dense_network([2, 6, 6, 3], nn.Tanh).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network, torch.randn(5, 2, 2, dtype=torch.float64)


def test_differences_carried_are_differences_of_what_is_carried():
    network, pairs = case()
    at = propagate(network, start_pairs(pairs), difference_rule)
    left, right = (jet(network, end, 1, 0) for end in pairs.unbind(1))
    first = Jet(at.value[::2], at.derivatives[::2])
    assert torch.equal(at.value[1::2], first.value)
    torch.testing.assert_close(first.value, left.value, rtol=1e-12, atol=1e-12)
    expected = torch.stack([
        left.derivatives[:, 0],
        right.value - left.value,
        right.derivatives[:, 0] - left.derivatives[:, 0],
    ], 1)  # fmt: skip
    torch.testing.assert_close(first.derivatives, expected, rtol=1e-11, atol=1e-12)
    rows = torch.stack([expected[:, 1], expected[:, 2]], 1).reshape(10, 3)
    torch.testing.assert_close(pair_rows(at), rows, rtol=1e-11, atol=1e-12)


def test_equal_ends_differ_by_nothing():
    network, pairs = case()
    pairs[:, 1] = pairs[:, 0]
    rows = pair_rows(propagate(network, start_pairs(pairs), difference_rule))
    assert torch.equal(rows, torch.zeros(10, 3, dtype=torch.float64))


def test_side_by_side_is_each_for_itself():
    network, pairs = case()
    points = torch.randn(4, 2, dtype=torch.float64)
    starts = [Jet(points, tangents(points, 2, 1)), start_pairs(pairs)]
    found = propagate_side_by_side(network, starts, [taylor(2, 1), difference_rule])
    alone = [jet(network, points, 2, 1), propagate(network, starts[1], difference_rule)]
    for together, single in zip(found, alone, strict=True):
        for a, b in zip(together, single, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
