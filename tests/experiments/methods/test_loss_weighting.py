"""Weightings against their formulas written out with plain numbers."""

import copy
import math

import pytest
import torch

from experiments._methods.loss_weighting import LearningRateAnnealing, MinMax, ReLoBRaLo

GRADIENTS = torch.tensor([[1.0, -4.0, 0.0], [0.5, 0.5, 2.0]])


def weights_of(operator, *losses):
    """Weights after a step for each of the losses, with the same gradients."""
    found = []
    for values in losses:
        direction = operator(GRADIENTS, [torch.tensor(value) for value in values])
        torch.testing.assert_close(direction, operator.weights.float() @ GRADIENTS)
        found.append(operator.weights.tolist())
    return found


@pytest.mark.parametrize("kind", [MinMax, ReLoBRaLo])
def test_the_first_step_is_that_of_the_sum(kind):
    assert weights_of(kind(), (3.0, 0.2)) == [[1.0, 1.0]]


def test_min_max_raises_all_weights_by_the_step_of_adam():
    _, second, third = weights_of(MinMax(lr=0.1), (3.0, 0.2), (3.0, 0.2), (3.0, 0.2))
    assert second == pytest.approx([1.1, 1.1])
    assert third == pytest.approx([1.2, 1.2])


def test_min_max_follows_the_larger_loss():
    operator = MinMax(lr=0.1)
    losses = [(1.0, 1.0)] + [(1.0, 1e-3)] * 20
    last = weights_of(operator, *losses)[-1]
    assert last[0] > last[1] + 0.5


def softmax(ratios):
    powers = [math.exp(ratio) for ratio in ratios]
    return [len(ratios) * power / sum(powers) for power in powers]


def test_relobralo_without_lookback():
    operator = ReLoBRaLo(beta=0.9, temperature=0.5, rho=1.0)
    _, second, third = weights_of(operator, (2.0, 1.0), (1.0, 1.0), (0.5, 2.0))
    expected = [0.9 + 0.1 * s for s in softmax([1 / (0.5 * 2), 1 / 0.5])]
    assert second == pytest.approx(expected)
    balance = softmax([0.5 / 0.5, 2 / 0.5])
    mixed = [0.9 * e + 0.1 * s for e, s in zip(expected, balance, strict=True)]
    assert third == pytest.approx(mixed)


def test_relobralo_that_always_looks_back():
    operator = ReLoBRaLo(beta=0.9, temperature=0.5, rho=0.0)
    third = weights_of(operator, (2.0, 1.0), (1.0, 1.0), (0.5, 2.0))[2]
    from_start, from_last = softmax([0.5 / (0.5 * 2), 2 / 0.5]), softmax([0.5 / 0.5, 2 / 0.5])
    pairs = zip(from_start, from_last, strict=True)
    assert third == pytest.approx([0.9 * a + 0.1 * b for a, b in pairs])


def test_relobralo_survives_a_loss_of_zero():
    operator = ReLoBRaLo()
    assert all(map(math.isfinite, weights_of(operator, (1.0, 0.0), (1.0, 0.0))[1]))


def test_annealing_brings_gradients_to_the_size_of_the_first():
    operator = LearningRateAnnealing(beta=0.75)
    first, second = weights_of(operator, (1.0, 1.0), (1.0, 1.0))
    assert first == pytest.approx([1.0, 0.75 + 0.25 * 4.0])
    assert second == pytest.approx([1.0, 0.75 * 1.75 + 0.25 * 4.0])


def test_annealing_leaves_a_loss_without_gradient_alone():
    operator = LearningRateAnnealing(beta=0.5)
    operator(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), [1.0, 0.0])
    assert operator.weights.tolist() == [1.0, 1.0]


def test_weights_need_losses():
    with pytest.raises(ValueError, match="needs the losses"):
        MinMax()(GRADIENTS)


@pytest.mark.parametrize("kind", [MinMax, lambda: ReLoBRaLo(rho=0.5), LearningRateAnnealing])
@pytest.mark.parametrize("steps", [0, 1, 6])
def test_a_state_is_restored_by_another(kind, steps):
    losses = [(2.0 / k, 0.1 * k) for k in range(1, 13)]
    whole = kind()
    weights_of(whole, *losses[:steps])
    state = copy.deepcopy(whole.state_dict())
    expected = weights_of(whole, *losses[steps:])
    other = kind()
    weights_of(other, (5.0, 7.0), (0.1, 3.0))  # which is to be forgotten
    other.load_state_dict(state)
    assert weights_of(other, *losses[steps:]) == expected
