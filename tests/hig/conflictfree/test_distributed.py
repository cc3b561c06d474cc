"""Several losses under ``DistributedDataParallel``: every process takes the same step."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hig
from hig.conflictfree import (
    AlternatingBackward,
    ConFIGOperator,
    PCGradOperator,
    PseudoMomentumOperator,
    backward,
    get_gradient_vector,
    loss_gradients,
)
from tests.hig import processes
from tests.textbook import flat, relative_error

OPTIONS = {
    "plain": {},
    "unused parameters": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "bucket views": {"gradient_as_bucket_view": True},
}


def make():
    """A network with a part that not every rank uses, and this rank's share of unequal batches."""
    torch.manual_seed(0)
    network = nn.ModuleDict(
        {"body": nn.Linear(3, 6), "first": nn.Linear(6, 1), "second": nn.Linear(6, 1)}
    ).double()
    inputs = torch.randn(7, 3, dtype=torch.float64).split([3, 4])
    return network, inputs


class Model(nn.Module):
    """Both heads; the second one is used by rank 1 alone if ``apart``."""

    def __init__(self, network, apart):
        super().__init__()
        self.network, self.apart = network, apart

    def forward(self, x, rank):
        hidden = self.network["body"](x).tanh()
        second = hidden.square().sum(1, keepdim=True)
        if not self.apart or rank == 1:
            second = second + self.network["second"](hidden)
        return torch.cat([self.network["first"](hidden), second], 1)


def losses_of(model, x, rank):
    first, second = model(x, rank).unbind(1)
    return [first.square().mean(), (second - 1).square().mean()]


def step(way, losses, parameters, alternating, memory, group):
    """One direction into ``.grad``."""
    if way == "AlternatingBackward":
        alternating.backward(losses[alternating.next_loss])
    elif way == "loss_gradients":
        matrix = loss_gradients(losses, parameters, process_group=group)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        PCGradOperator().update_gradient(parameters, matrix)
    else:
        operator = memory if way == "M-ConFIG" else ConFIGOperator()
        backward(losses, parameters, operator, process_group=group)


def path(way, network, losses, group, steps=6):
    """Return the parameters after some steps."""
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, 0.05)
    alternating = AlternatingBackward(parameters, 2, process_group=group)
    memory = PseudoMomentumOperator(2)
    for _ in range(steps):
        optimizer.zero_grad()
        step(way, losses(), parameters, alternating, memory, group)
        optimizer.step()
    return flat(parameters)


def train(rank, way, options, apart):
    """The end of this rank, and how far from that of one process with the mean of all losses."""
    network, inputs = make()
    model = DistributedDataParallel(Model(network, apart), **OPTIONS[options])
    end = path(way, network, lambda: losses_of(model, inputs[rank], rank), "auto")
    alone, _ = make()

    def mean_losses():
        pairs = (losses_of(Model(alone, apart), inputs[r], r) for r in range(2))
        return [sum(losses) / 2 for losses in zip(*pairs, strict=True)]

    return end.numpy().tobytes(), relative_error(end, path(way, alone, mean_losses, None))


WAYS = ["ConFIG", "M-ConFIG", "AlternatingBackward", "loss_gradients"]


def everything(rank):
    """All checks of this file: processes take long to start."""
    found = {}
    for options in OPTIONS:
        for way in WAYS:
            found[way, options] = train(rank, way, options, options == "unused parameters")
    found["one backward pass per loss"] = one_backward_per_loss(rank)
    found["faults"] = faults(rank)
    found["sharded"] = sharded(rank)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return processes.run(everything, 2, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_ranks_stay_together(way, options, ranks):
    (first, error), (second, other) = (found[way, options] for found in ranks)
    assert first == second
    assert max(error, other) < 1e-12


def one_backward_per_loss(rank):
    """As the original's scripts have it: DistributedDataParallel averages by itself."""
    network, inputs = make()
    model = DistributedDataParallel(Model(network, False))
    optimizer, operator = torch.optim.SGD(network.parameters(), 0.05), ConFIGOperator()
    for _ in range(4):
        gradients = []
        for k in range(2):
            optimizer.zero_grad()
            losses_of(model, inputs[rank], rank)[k].backward()
            gradients.append(get_gradient_vector(network, none_grad_mode="zero"))
        operator.update_gradient(network, gradients)
        optimizer.step()
    return flat(network.parameters()).numpy().tobytes()


def test_the_long_form_stays_together_too(ranks):
    first, second = (found["one backward pass per loss"] for found in ranks)
    assert first == second


def faults(rank):
    """Errors of one rank are errors of all, and leave ``.grad`` alone."""
    network, inputs = make()
    texts = []

    def attempt(losses, kind, **options):
        with pytest.raises(kind) as caught:
            backward(losses, network, **options)
        assert all(parameter.grad is None for parameter in network.parameters())
        texts.append(str(caught.value))

    model = Model(network, False)
    good = losses_of(model, inputs[rank], rank)
    bad = torch.tensor(1.0)
    attempt([good[0], bad if rank else good[1]], ValueError if rank else hig.RankError,
            retain_graph=True)  # fmt: skip
    attempt(good[: 1 + rank], ValueError, retain_graph=True)
    network["second"].requires_grad_(rank == 0)
    attempt(losses_of(model, inputs[rank], rank), ValueError)
    network["second"].requires_grad_()
    infinite = [loss * (float("inf") if rank else 1.0) for loss in good]
    attempt(infinite, hig.NonFiniteError, retain_graph=True)
    backward(good, network, process_group=None)
    alternating = AlternatingBackward(network, 2)
    alternating.next_loss = rank
    with pytest.raises(
        ValueError, match="next_loss must be the same on all process ranks, got 0 on rank"
    ):
        alternating.backward(losses_of(model, inputs[rank], rank)[0])
    return texts, flat(p.grad for p in network.parameters()).numpy().tobytes()


def test_faults_of_one_rank(ranks):
    (texts, first), (others, second) = (found["faults"] for found in ranks)
    assert "rank 1 failed with ValueError: loss 1 carries no gradient graph" in texts[0]
    assert "loss 1 carries no gradient graph" in others[0]
    for own in (texts, others):
        assert (
            "number of losses must be the same on all process ranks, got 1 on rank 0, 2 on"
            in own[1]
        )
        assert "number of entries must be the same on all process ranks" in own[2]
        assert "gradient of loss 0 " in own[3]
    assert first != second  # by process_group=None: each on its own


def sharded(rank):
    """Texts of the errors for parameters of which each process rank has a part."""
    from torch.distributed.fsdp import fully_shard

    texts = []
    for early in (True, False):
        network = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 2))
        for layer in (network[0], network[2], network):
            fully_shard(layer, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
        parameters = list(network.parameters())
        losses = [network(torch.ones(1, 4)).sum()]
        with pytest.raises(TypeError) as caught:
            backward(losses, parameters if early else network)
        texts.append(str(caught.value))
    return texts


def test_sharded_parameters_are_refused(ranks):
    for found in ranks:
        assert "parameter 0 is sharded across process ranks (DTensor)" in found["sharded"][0]
        for text in found["sharded"]:
            assert "as DistributedDataParallel does" in text
