"""One loss per step."""

import pytest
import torch
from torch import nn

import hig
from hig.conflictfree import (
    AlternatingBackward,
    ConFIGOperator,
    LatestLossRecorder,
    PCGradOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
)
from tests.textbook import flat


def problem():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2))
    inputs = torch.linspace(-1, 1, 16).unsqueeze(1)
    targets = torch.cat([inputs.sin(), inputs.cos()], 1)

    def loss(index):
        return (network(inputs) - targets)[:, index].square().mean()

    return network, loss


@pytest.mark.parametrize("kind", [PseudoMomentumOperator, SeparateMomentumOperator])
def test_it_is_the_loop_that_users_write(kind):
    network, loss = problem()
    other, other_loss = problem()
    alternating, operator = AlternatingBackward(network, 2, kind(2)), kind(2)
    optimizers = [torch.optim.SGD(n.parameters(), lr=1e-2) for n in (network, other)]
    for step in range(6):
        assert alternating.next_loss == step % 2
        for optimizer in optimizers:
            optimizer.zero_grad()
        alternating.backward(loss(alternating.next_loss))
        other_loss(step % 2).backward()
        gradient = hig.conflictfree.get_gradient_vector(other)
        operator.update_gradient(other, step % 2, gradient)
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(flat(network.parameters()), flat(other.parameters()))


def test_grad_accumulates_and_unreached_parameters_have_none():
    first, second, unused = (nn.Parameter(torch.ones(2)) for _ in range(3))
    alternating = AlternatingBackward([first, second, unused], 2)
    alternating.backward(first.sum())
    assert torch.equal(first.grad, torch.zeros(2))
    assert second.grad is None
    first.grad += 5
    alternating.backward(second.sum())
    assert (first.grad > 5).all()
    assert second.grad.any()
    assert unused.grad is None


def test_exact_resume(tmp_path):
    def make(network):
        operator = PseudoMomentumOperator(
            2, gradient_operator=PCGradOperator(), loss_recorder=LatestLossRecorder(2)
        )
        return AlternatingBackward(network, 2, operator)

    network, loss = problem()
    alternating = make(network)
    for _ in range(3):
        alternating.backward(loss(alternating.next_loss))
    torch.save(alternating.state_dict(), tmp_path / "state")
    other = make(network)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for _ in range(3):
        assert other.next_loss == alternating.next_loss
        found = []
        for one in (alternating, other):
            network.zero_grad()
            one.backward(loss(one.next_loss))
            found.append(flat(p.grad for p in network.parameters()))
        assert torch.equal(*found)
    with pytest.raises(ValueError, match="state is of 4 parameters, got 2"):
        AlternatingBackward(nn.Linear(1, 1), 2).load_state_dict(alternating.state_dict())


def test_a_non_finite_gradient_changes_nothing():
    network, loss = problem()
    alternating = AlternatingBackward(network, 2)
    alternating.backward(loss(0))
    with pytest.raises(hig.NonFiniteError, match="gradient of loss 1 "):
        alternating.backward(loss(1) * float("nan"))
    assert alternating.next_loss == 1
    assert alternating.operator.t_grads == [1, 0]


def test_what_is_refused():
    with pytest.raises(ValueError, match="operator is for 3 losses, num_losses is 2"):
        AlternatingBackward(nn.Linear(1, 1), 2, PseudoMomentumOperator(3))
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        AlternatingBackward([torch.ones(2)], 2)
    wrapped = r"got ConFIGOperator; wrap it: PseudoMomentumOperator\(2, gradient_operator=...\)"
    with pytest.raises(TypeError, match=wrapped):
        AlternatingBackward(nn.Linear(1, 1), 2, ConFIGOperator())
    for count in (2.0, [1, 2], "2", nn.Linear(1, 1).parameters()):
        with pytest.raises(TypeError, match=r"num_losses must be a whole number, .*\(parameters, "):
            AlternatingBackward(nn.Linear(1, 1), count)
    with pytest.raises(ValueError, match="num_losses must be at least 1, got 0"):
        AlternatingBackward(nn.Linear(1, 1), 0)


def test_losses_of_another_network_are_refused_after_a_turn():
    _, loss = problem()
    alternating = AlternatingBackward(nn.Linear(1, 1), 2)
    alternating.backward(loss(0))  # a loss that reaches nothing counts as zero
    with pytest.raises(ValueError, match="no loss depends on any of the 2 parameters"):
        alternating.backward(loss(1))
    assert alternating.operator.t_grads == [1, 0]


@pytest.mark.parametrize("state", [{}, None, [1], {"next_loss": 0}])
def test_what_is_no_state(state):
    alternating = AlternatingBackward(nn.Linear(1, 1), 2)
    with pytest.raises(ValueError, match=r"the state lacks .*AlternatingBackward.state_dict\(\)"):
        alternating.load_state_dict(state)
