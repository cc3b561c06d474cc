import torch

from problems.pinn._sampling import grid, latin_hypercube, on_faces, weighted_choice

LOW, HIGH = (-1.0, 0.0, 5.0), (1.0, 0.5, 8.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_stratum_holds_exactly_one_point():
    points = latin_hypercube(50, LOW, HIGH, generator())
    assert (points.shape, points.dtype) == ((50, 3), torch.float64)
    for axis in range(3):
        relative = (points[:, axis] - LOW[axis]) / (HIGH[axis] - LOW[axis])
        assert (relative * 50).floor().sort().values.tolist() == list(range(50))


def test_places_within_a_stratum_and_orders_are_random():
    points = latin_hypercube(4000, (0.0, 0.0), (1.0, 1.0), generator())
    within = (points * 4000) % 1
    assert ((torch.histc(within, 4, 0, 1) - 2000).abs() < 200).all()
    assert torch.corrcoef(points.T)[0, 1].abs() < 0.06
    assert torch.corrcoef(torch.stack([points[:, 0], torch.arange(4000.0)]))[0, 1].abs() < 0.06


def test_the_generator_alone_decides():
    first = latin_hypercube(20, LOW, HIGH, generator(3))
    torch.manual_seed(77)
    assert torch.equal(first, latin_hypercube(20, LOW, HIGH, generator(3)))
    assert not torch.equal(first, latin_hypercube(20, LOW, HIGH, generator(4)))


def test_a_single_point_is_anywhere():
    points = latin_hypercube(1, LOW, HIGH, generator())
    assert points.shape == (1, 3)
    assert ((points >= torch.tensor(LOW)) & (points <= torch.tensor(HIGH))).all()


def test_faces_take_turns():
    points = latin_hypercube(10, LOW, HIGH, generator())
    before = points.clone()
    found = on_faces(points, LOW, HIGH, (0, 2))
    assert torch.equal(points, before)
    counts = [(found[:, axis] == end[axis]).sum().item() for axis in (0, 2) for end in (LOW, HIGH)]
    assert counts == [3, 3, 2, 2]
    # One coordinate of each point has moved, and none across the other axis.
    assert ((found != before).sum(1) == 1).all()
    assert torch.equal(found[:, 1], before[:, 1])


def test_large_weights_are_preferred_and_none_is_chosen_twice():
    weights = torch.tensor([1.0, 2.0, 4.0, 0.0])
    luck = torch.empty(4000, 4).exponential_(generator=generator())
    chosen = torch.stack([weighted_choice(weights, own, 2) for own in luck])
    assert (chosen[:, 0] != chosen[:, 1]).all()
    first = torch.bincount(chosen[:, 0], minlength=4) / 4000
    torch.testing.assert_close(first, weights / 7, atol=0.03, rtol=0)
    # Given the heaviest, the second follows from those left: 1 : 2.
    second = chosen[chosen[:, 0] == 2, 1]
    assert abs((second == 1).double().mean() - 2 / 3) < 0.04


def test_what_has_no_weight_comes_last():
    luck = torch.ones(5)
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 2.0])
    assert weighted_choice(weights, luck, 3).tolist() == [1, 4, 3]


def test_grid():
    points = grid((0.0, -1.0), (1.0, 1.0), (2, 3))
    assert points.tolist() == [[0, -1], [0, 0], [0, 1], [1, -1], [1, 0], [1, 1]]
