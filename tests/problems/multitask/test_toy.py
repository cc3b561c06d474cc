import numpy as np
import pytest
import torch

from hig.conflictfree import ConFIGOperator
from problems.multitask.toy import STARTS, STEPS_PER_EPOCH, Toy
from tests.problems.multitask.descent import conflict_free, descend, losses_and_gradients, total

RATE, STEPS = 3e-3, 30000


@pytest.fixture(scope="module")
def descents():
    """Trajectories (steps + 1, starts, 2) of Adam and ConFIG."""
    return {
        total: descend(total, RATE, 2 * STEPS // 3),
        conflict_free: descend(conflict_free, RATE, STEPS),
    }


def random_positions(count):
    generator = np.random.default_rng(0)
    return generator.uniform(-10, 10, (count, 2))


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_landscape_is_that_of_the_formulas(scale):
    points = np.concatenate([random_positions(200), STARTS])
    expected_losses, expected_gradients = losses_and_gradients(points, scale)
    position = torch.tensor(points, requires_grad=True)
    losses = Toy(scale=scale).landscape(position)
    rows = [torch.autograd.grad(losses[:, i].sum(), position, retain_graph=True)[0] for i in (0, 1)]
    np.testing.assert_allclose(losses.detach(), expected_losses, rtol=1e-12)
    np.testing.assert_allclose(torch.stack(rows, 1), expected_gradients, rtol=1e-10, atol=1e-13)


def test_known_values():
    # At the bottom of a bowl, in a valley, and on the line where both are flat.
    position = torch.tensor([[7.0, -8.0], [-7 + 2 * np.tanh(3), 3.0], [4.0, 0.0]]).double()
    losses = Toy(scale=1.0).landscape(position)
    assert losses[0].tolist() == pytest.approx([-20 * np.tanh(4), -0.4 * np.tanh(4)])
    assert losses[1, 0] == pytest.approx(np.tanh(1.5) * (6 + np.log(5e-6)))
    assert losses[2].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_of_the_position(dtype):
    toy = Toy()
    losses = toy.losses(toy.network().to(dtype), {})
    assert {loss.dtype for loss in losses} == {toy.landscape(torch.ones(2, dtype=dtype)).dtype}
    assert losses[0].dtype == dtype


# -- the Pareto front ------------------------------------------------------------------------------


def test_gradients_are_opposite_on_the_front():
    front = Toy().front(51).numpy()
    _, gradients = losses_and_gradients(front)
    lengths = np.linalg.norm(gradients, axis=2)
    cosines = gradients.prod(1).sum(1) / lengths.prod(1).clip(1e-300)
    np.testing.assert_allclose(cosines[1:-1], -1, atol=1e-9)
    # At its ends one loss is at its minimum.
    assert lengths[0, 1] < 1e-12 and lengths[-1, 0] < 1e-12


def test_the_front_holds_the_minimum_of_every_weighted_sum():
    toy = Toy(scale=1.0)
    axis = torch.linspace(-11, 11, 441, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    losses = toy.landscape(grid)
    for weight, position in zip(torch.linspace(0, 1, 21).double(), toy.front(21), strict=True):
        weights = torch.stack([weight, 1 - weight])
        sums = losses @ weights
        assert toy.landscape(position) @ weights <= sums.min() + 1e-12
        assert (grid[sums.argmin()] - position).abs().max() < 0.06  # the spacing is 0.05


# -- what the publications report ------------------------------------------------------------------


def distance_to_front(positions):
    return np.linalg.norm(positions[:, None] - Toy().front(2001).numpy(), axis=2).min(1)


def test_adam_gets_stuck_from_one_start(descents):
    distance = distance_to_front(descents[total][-1])
    assert (np.flatnonzero(distance > 0.05) + 1).tolist() == [3]
    assert distance[2] > 5
    # From wall to wall of the valley of the second loss, hardly along it.
    third = descents[total][STEPS // 10 :, 2]
    slopes = losses_and_gradients(third)[1][:, 1, 0]
    assert slopes.min() < -10 and slopes.max() > 10
    assert np.ptp(third, axis=0).max() < 2


def test_config_reaches_the_front_from_all_starts(descents):
    assert distance_to_front(descents[conflict_free][-1]).max() < 0.05


def test_the_direction_of_that_descent_is_the_operators(descents):
    positions = descents[conflict_free][::100].reshape(-1, 2)
    _, gradients = losses_and_gradients(positions)
    units = gradients / np.linalg.norm(gradients, axis=2, keepdims=True)
    # The bisector of opposite gradients is rounding.
    gradients = gradients[np.linalg.norm(units.sum(1), axis=1) > 1e-3]
    assert len(gradients) > 500
    for matrix, direction in zip(gradients, conflict_free(gradients), strict=True):
        found = ConFIGOperator().calculate_gradient(torch.from_numpy(matrix))
        np.testing.assert_allclose(found, direction, atol=1e-8 * np.abs(matrix).max())


# -- the interface of a problem --------------------------------------------------------------------


@pytest.mark.parametrize("start", range(1, len(STARTS) + 1))
def test_the_network_is_the_start(start):
    toy = Toy(start=start)
    network = toy.network()
    assert toy.predict(network, {}).tolist() == [pytest.approx(STARTS[start - 1])]
    losses = toy.losses(network, {})
    assert len(losses) == len(toy.loss_names) == 2
    assert toy.loss(toy.predict(network, {}), {}).item() == sum(losses).item()
    assert [toy.single_loss(network, {}, i).item() for i in (0, 1)] == [x.item() for x in losses]
    pairs = toy.loss_pairs(network, {})
    assert [loss.item() for loss, _ in pairs] == [loss.item() for loss in losses]
    assert all(prediction.shape == (1, 2) for _, prediction in pairs)


def test_networks_do_not_share_their_position():
    toy = Toy()
    with torch.no_grad():
        toy.network().position.zero_()
    assert toy.network().position.tolist() == list(STARTS[0])


def test_metrics_and_data():
    toy = Toy(start=4)
    train, test = toy.data(torch.Generator())
    assert (len(train["nothing"]), len(test["nothing"])) == (STEPS_PER_EPOCH, 1)
    network = toy.network()
    metrics = toy.metrics(network, test)
    assert metrics["position"].tolist() == [-7.5, -0.5]
    torch.testing.assert_close(metrics["losses"], torch.stack(toy.losses(network, test)))


def test_example_is_the_landscape():
    toy = Toy()
    example = toy.example(toy.network(), {})
    i, j = 17, 40
    position = torch.tensor([example["x"][i], example["y"][j]], dtype=torch.float64)
    np.testing.assert_allclose(example["landscape"][i, j], toy.landscape(position), rtol=1e-4)
    np.testing.assert_allclose(example["front"], toy.front(), rtol=1e-6)
    assert example["loss_names"] == ["first", "second"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": 6}, "start must be from 1 to 5, got 6"),
        ({"start": 0}, "start must be at least 1, got 0; the default is 1"),
        ({"scale": -1.0}, "scale must be positive and finite, got -1.0; the default is 0.1"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        Toy(**fields)
