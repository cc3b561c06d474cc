"""Gradients that hold NaN or Inf: a scaler finds them in ``.grad``, and no other step is made."""

import gc

import pytest
import torch
from torch import nn

import hig
from hig.conflictfree import (
    AlternatingBackward,
    ConFIG_update,
    ConFIGOperator,
    IMTLGOperator,
    LatestLossRecorder,
    PCGradOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
    apply_gradient_vector,
    backward,
    get_gradient_vector,
)
from tests.textbook import flat

OPERATORS = pytest.mark.parametrize("kind", [ConFIGOperator, PCGradOperator, IMTLGOperator])
MEMORIES = pytest.mark.parametrize("kind", [PseudoMomentumOperator, SeparateMomentumOperator])


def network_and_losses():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    x = torch.randn(32, 4)

    def losses():
        with torch.autocast("cpu", dtype=torch.float16):
            y = network(x)
        return [600 * (y[:, k].float() - t).square().mean() for k, t in ((0, 1), (1, -1))]

    return network, losses


def write(network, operator, losses, scaler, way):
    """All losses into ``.grad``, in one of the ways in which scripts are written."""
    if way == "backward":
        scaled = [scaler.scale(loss) for loss in losses]
        backward(scaled, network.parameters(), operator, non_finite="pass")
        return
    gradients = []
    for loss in losses:
        network.zero_grad()
        scaler.scale(loss).backward(retain_graph=True)
        gradients.append(get_gradient_vector(network))
    if way == "update":
        operator.update_gradient(network, gradients)
    elif way == "function":
        apply_gradient_vector(network, ConFIG_update(gradients))
    else:
        apply_gradient_vector(network, operator.calculate_gradient(torch.stack(gradients)))


def train(write_all, optimizer, losses, steps=60):
    """Losses before and after, and how many steps the scaler has left out."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    totals, skipped = [], 0
    for step in range(steps):
        optimizer.zero_grad()
        found = losses()
        totals.append(sum(loss.item() for loss in found))
        write_all(found, scaler, step)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < scale
    return totals[0], totals[-1], skipped


@OPERATORS
@pytest.mark.parametrize("way", ["update", "apply", "backward", "function"])
@pytest.mark.parametrize("fused", [False, True])  # fused ones take part in scaling themselves
def test_a_scaler_finds_them(kind, way, fused):
    network, losses = network_and_losses()
    operator = kind()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, fused=fused)
    before, after, skipped = train(
        lambda found, scaler, step: write(network, operator, found, scaler, way), optimizer, losses
    )
    assert skipped > 5
    assert after < before / 10


@MEMORIES
@pytest.mark.parametrize("way", ["update", "alternating"])
def test_a_scaler_finds_them_before_the_memory_does(kind, way):
    network, losses = network_and_losses()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    operator = kind(2)
    alternating = AlternatingBackward(network, 2, operator)

    def write_one(found, scaler, step):
        if way == "alternating":
            scaled = scaler.scale(found[alternating.next_loss])
            alternating.backward(scaled, non_finite="pass")
            return
        network.zero_grad()
        scaler.scale(found[step % 2]).backward()
        operator.update_gradient(network, step % 2, get_gradient_vector(network))

    before, after, skipped = train(write_one, optimizer, losses, 120)
    assert skipped > 5
    assert after < 0.8 * before  # directions have no scale of their own: it divides the step
    assert all(torch.isfinite(moment).all() for moment in operator.m)


@OPERATORS
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("losses", [2, 3, 5])
def test_the_direction_is_nan_and_so_is_the_report(kind, value, losses):
    rows = torch.ones(losses, 4, dtype=torch.float64)
    rows[1, 2] = value
    for grads in (rows, list(rows), tuple(rows), iter(rows)):
        operator = kind()
        direction = operator.calculate_gradient(grads)
        assert direction.dtype == torch.float64
        assert direction.shape == (4,)
        assert direction.isnan().all()
        assert all(cosine != cosine for cosine in operator.report.cosines)
    assert torch.isfinite(operator.calculate_gradient(torch.eye(4)[:losses])).all()


def direction_in_grad(network, rows):
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ConFIGOperator().update_gradient(network, rows)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
def test_a_step_without_a_scaler_is_refused_and_changes_nothing(make):
    network = nn.Linear(3, 1, bias=False)
    before = network.weight.clone()
    optimizer = make(network.parameters(), lr=0.1)
    direction_in_grad(network, torch.tensor([[1.0, 0, 0], [0, float("nan"), 0]]))

    def closure():
        raise AssertionError("the step went on")

    for _ in range(2):  # it is refused as often as it is tried
        with pytest.raises(hig.NonFiniteError, match=r"loss 1 \(1 entries\) of 3 .*smaller step"):
            optimizer.step(closure)
    assert torch.equal(network.weight, before)
    assert not optimizer.state_dict()["state"] or make is torch.optim.LBFGS


@pytest.mark.parametrize("remedy", ["zero_grad", "finite direction", "finite numbers"])
def test_steps_continue_once_the_direction_is_gone(remedy):
    network = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    direction_in_grad(network, torch.tensor([[1.0, 0, 0], [0, float("inf"), 0]]))
    if remedy == "zero_grad":
        optimizer.zero_grad()
    elif remedy == "finite direction":
        ConFIGOperator().update_gradient(network, torch.eye(3)[:2])
    else:
        torch.nan_to_num_(network.weight.grad)
    optimizer.step()
    assert torch.isfinite(network.weight).all()
    network(torch.tensor([[float("nan")] * 3])).sum().backward()
    optimizer.step()  # what torch makes of other gradients is its own


def test_other_networks_may_step():
    network, other = nn.Linear(3, 1, bias=False), nn.Linear(3, 1)
    direction_in_grad(network, torch.tensor([[1.0, 0, 0], [0, float("inf"), 0]]))
    other(torch.tensor([[float("nan")] * 3])).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert other.weight.isnan().all()


def test_networks_that_are_gone_are_forgotten():
    from hig.conflictfree import _non_finite

    for _ in range(3):
        network = nn.Linear(3, 1, bias=False)
        direction_in_grad(network, torch.tensor([[1.0, 0, 0], [0, float("inf"), 0]]))
    key = id(network.weight)
    del network
    gc.collect()
    direction_in_grad(last := nn.Linear(3, 1, bias=False), torch.full((2, 3), float("inf")))
    assert _non_finite._watch.texts.keys() <= {id(last.weight), key}
    assert len(_non_finite._watch.texts) == 1


@MEMORIES
def test_a_memory_is_left_alone(kind):
    operator = kind(2, loss_recorder=LatestLossRecorder(2))
    bad = torch.tensor([1.0, float("inf")])
    assert operator.calculate_gradient(1, bad, 5.0).isnan().all()  # even as the first of all
    assert operator.m is None
    operator.calculate_gradient([0, 1], torch.eye(2), [1.0, 2.0])
    before = operator.state_dict()
    assert operator.calculate_gradient([1, 0], [bad, torch.ones(2)], [5.0, 6.0]).isnan().all()
    after = operator.state_dict()
    assert after["t_grads"] == before["t_grads"] == [1, 1]
    assert after["loss_recorder"] == before["loss_recorder"]
    for name in ("m", "s"):
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize("operator", [ConFIGOperator(), PseudoMomentumOperator(2), torch.sum])
def test_the_short_form_raises_unless_it_is_asked_to_pass(operator):
    network = nn.Linear(2, 1, bias=False)
    losses = [network(torch.ones(2)).sum(), network(torch.tensor([1.0, float("inf")])).sum()]
    with pytest.raises(hig.NonFiniteError, match="gradient of loss 1 "):
        backward(losses, network, operator, retain_graph=True)
    assert network.weight.grad is None
    backward(losses, network, operator, non_finite="pass")
    assert network.weight.grad.isnan().all()
    with pytest.raises(hig.NonFiniteError, match="gradient of loss 1 "):
        torch.optim.SGD(network.parameters(), 0.1).step()
    assert torch.isfinite(flat(network.parameters())).all()
    with pytest.raises(ValueError, match="non_finite must be one of"):
        backward(losses, network, operator, non_finite="skip")
