"""Tensors that a computation makes and changes in place keep their values; older ones do not."""

import pytest
import torch
from torch import nn

from hig._torch.buffers import Buffers
from tests.hig.torch.test_buffers import INPUTS, STEPS, problem

IN_PLACE = {
    "added": lambda y: torch.zeros(()).add_(y.sum()),
    "added_again": lambda y: torch.zeros(()).add_(y.sum()).add_(1),
    "out": lambda y: torch.add(y.detach(), 1, out=torch.empty_like(y)),
    "entry": lambda y: torch.zeros(4).index_fill_(0, torch.tensor([1]), 2.0),
    "view": lambda y: torch.zeros(4)[1:].add_(1),
    "data": lambda y: torch.zeros(3).data.add_(1),
    "several": lambda y: torch._foreach_add(list(torch.zeros(3).unbind()), 1)[0].mul_(3),
    "derivative": lambda y: torch.autograd.grad(y.sin().sum(), y)[0].mul_(2),
}


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("make", IN_PLACE.values(), ids=IN_PLACE)
def test_results_of_the_computation_keep_their_values(make, graph):
    """As a loss that is added up in place, or a prediction that the closure keeps for a log."""
    y = torch.ones(3, requires_grad=True)
    expected = make(y).detach().clone()
    buffers = Buffers(())
    with buffers, torch.set_grad_enabled(graph or make is IN_PLACE["derivative"]):
        result = make(y)
    assert not buffers.restore()
    assert torch.equal(result.detach(), expected)


OLDER = {
    "itself": lambda t: t.contiguous(),
    "same_dtype": lambda t: t.to(t.dtype),
    "view": lambda t: t.view(-1)[:2],
    "detached": lambda t: t.detach(),
    "data": lambda t: t.data,
    "in_place": lambda t: t.mul_(1),
    "transposed": lambda t: t[None].T,
    "split": lambda t: t.split(1)[0],
    "array": lambda t: torch.from_numpy(t.numpy()),
    "flag": lambda t: t.requires_grad_(False),
}


@pytest.mark.parametrize("alias", OLDER.values(), ids=OLDER)
@pytest.mark.parametrize("graph", [True, False])
def test_what_is_older_is_restored_whatever_it_is_called(alias, graph):
    tensor = torch.arange(3.0)
    buffers = Buffers(())
    with buffers, torch.set_grad_enabled(graph):
        alias(tensor).add_(1)
    assert not torch.equal(tensor, torch.arange(3.0))
    assert buffers.restore()
    assert torch.equal(tensor, torch.arange(3.0))


def test_gradients_that_a_closure_clears_are_restored():
    """They have no wrapper in Python until they are asked for, whose id may have been another's."""
    parameters = [torch.ones(2, requires_grad=True) for _ in range(50)]
    sum(p.sum() for p in parameters).backward()
    buffers = Buffers(parameters)
    with buffers, torch.no_grad():
        for parameter in parameters:
            torch.ones(2).add_(1)
            parameter.grad.zero_()
    assert buffers.restore()
    assert all(torch.equal(p.grad, torch.ones(2)) for p in parameters)


def test_functions_of_torch_func():
    """Inside a transform tensors have no storage that could be looked up."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    scale = torch.ones(3)
    buffers = Buffers(network.parameters())
    with buffers:
        scale.mul_(2)
        derivative = torch.func.vmap(torch.func.jacrev(lambda x: network(x.detach() + x)))(INPUTS)
    assert derivative.shape == (6, 3, 3)
    assert buffers.restore()
    assert torch.equal(scale, torch.ones(3))


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_a_loss_that_is_added_up_in_place(make):
    """Against the same loss by a sum; its value was that before the last addition."""
    results = []
    for in_place in (True, False):
        network, parameters, _ = problem("batch_norm")
        kept = {}

        def closure(network=network, kept=kept, in_place=in_place):
            prediction = network(INPUTS)
            if in_place:
                loss = torch.zeros(())
                loss += (prediction - 1).square().mean()
                scaled = torch.zeros(6, 2).add_(prediction.detach())
                kept["last"], kept["same"] = scaled, torch.equal(scaled, prediction)
            else:
                loss = (prediction - 1).square().mean()
            return loss, prediction

        optimizer = make(parameters)
        losses = [float(optimizer.step(closure)) for _ in range(6)]
        results.append((losses, torch.cat([p.detach().flatten() for p in parameters])))
        if in_place:
            assert kept["same"] and kept["last"].abs().sum() > 0
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
