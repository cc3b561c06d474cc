"""Tensors that a closure changes in place are after a step as after one evaluation at its start."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import hig
from hig._step import damped_steps
from hig._torch.buffers import Buffers, may_write

INPUTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
STEPS = {
    "trust": lambda p: hig.HIG(p, step_rule="trust"),
    "line_search": lambda p: hig.HIG(p, step_rule="line_search", lr=0.1),
    "levenberg": lambda p: hig.LevenbergMarquardt(p, lr=0.5),
    "rows": lambda p: hig.LevenbergMarquardt(p, lr=0.5, engine="rows"),
    "lanczos": lambda p: hig.HIG(p, step_rule="trust", method="lanczos", rcond=1e-3),
}


class Counting(nn.Module):
    """Changes tensors in every way that torch sees."""

    def __init__(self):
        super().__init__()
        for name in (
            "count",
            "mean",
            "entry",
            "data",
            "detached",
            "rebound",
            "out",
            "each",
            "array",
        ):
            self.register_buffer(name, torch.zeros(3))
        self.register_buffer("growing", torch.zeros(0))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.target = nn.Linear(3, 3)  # not of the optimizer, and not without gradients
        self.plain = torch.zeros(3)

    def forward(self, x):
        self.count += 1
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
            self.entry[1] += 1
            self.data.data.add_(1)
            self.detached.detach()[0].add_(1)
            self.rebound = self.rebound + 1
            torch.add(self.out, 1, out=self.out)
            torch._foreach_add_([self.each, self.plain], 1)
            self.array.numpy()[0] += 1
            self.growing.data = torch.cat([self.growing, torch.ones(1)])
            self.frozen.clamp_(max=0.5 * self.frozen.max().item())
            for parameter in self.target.parameters():
                parameter.mul_(0.9)
        return x


class Renormalised(nn.Module):
    """An embedding, not of the optimizer, whose rows are made shorter when they are looked up."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 3, max_norm=0.5)
        self.embedding.weight.requires_grad_(False)

    def forward(self, x):
        return x + self.embedding(torch.arange(len(x)))


class Sometimes(nn.Module):
    """Writes in all calls but the first, so that forward pass and trial differ in it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 1:
            self.seen += 1
        return x


def sequence(*parts):
    return nn.Sequential(*parts)


NETWORKS = {
    "batch_norm": lambda: sequence(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
    "cumulative": lambda: sequence(
        nn.Linear(3, 5), nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 2)
    ),
    "instance_norm": lambda: sequence(
        nn.Linear(3, 6), nn.Unflatten(1, (2, 3)),
        nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(6, 2),
    ),
    "spectral_norm": lambda: sequence(
        parametrizations.spectral_norm(nn.Linear(3, 5)), nn.Tanh(), nn.Linear(5, 2)
    ),
    "counting": lambda: sequence(Counting(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
    "renormalised": lambda: sequence(Renormalised(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
}  # fmt: skip


def problem(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()

    def closure():
        prediction = network(INPUTS)
        return (prediction - 1).square().mean(), prediction

    left_out = {
        id(p)
        for module in network.modules()
        if isinstance(module, Counting | Renormalised)
        for p in module.parameters()
    }
    return network, [p for p in network.parameters() if id(p) not in left_out], closure


def outside_of(network, parameters):
    """All tensors of a network that are not moved."""
    moved = {id(p) for p in parameters}
    tensors = {n: t for n, t in network.state_dict(keep_vars=True).items() if id(t) not in moved}
    if isinstance(network[0], Counting):
        tensors["plain"] = network[0].plain
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_a_step_leaves_those_of_one_evaluation(name, make):
    network, parameters, closure = problem(name)
    optimizer = make(parameters)
    for _ in range(6):
        twin = copy.deepcopy(network)
        twin(INPUTS)
        expected = outside_of(twin, trained(twin, network, parameters))
        optimizer.step(closure)
        assert_equal(outside_of(network, parameters), expected)


def trained(twin, network, parameters):
    moved = {id(p) for p in parameters}
    names = {name for name, p in network.named_parameters() if id(p) in moved}
    return [p for name, p in twin.named_parameters() if name in names]


@pytest.mark.parametrize("name", NETWORKS)
def test_diagnose_leaves_all_as_it_was(name):
    network, parameters, closure = problem(name)
    closure()
    before, rebound = outside_of(network, parameters), {id(b) for b in network.buffers()}
    state = torch.get_rng_state()
    hig.diagnose(parameters, closure)
    assert_equal(outside_of(network, parameters), before)
    assert {id(b) for b in network.buffers()} == rebound
    assert torch.equal(torch.get_rng_state(), state)


def test_diagnose_draws_the_numbers_of_a_step_and_gives_them_back():
    network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    x = torch.randn(6, 3)

    def closure():
        prediction = network(x)
        return prediction.square().mean(), prediction

    state = torch.get_rng_state()
    expected = float(closure()[0].detach())
    torch.set_rng_state(state)
    assert hig.diagnose(network.parameters(), closure).loss == pytest.approx(expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_an_evaluation_that_raises_leaves_no_trace(make):
    network, parameters, closure = problem("batch_norm")
    calls = []

    def failing():
        calls.append(1)
        outcome = closure()
        if len(calls) == 2:
            raise ZeroDivisionError
        return outcome

    with pytest.raises(ZeroDivisionError):
        make(parameters).step(failing)
    assert int(network[1].num_batches_tracked) == 1


@pytest.mark.parametrize("attempts", [1, 3])
def test_trials_that_are_taken_back(attempts, monkeypatch):
    network, parameters, closure = problem("batch_norm")
    before, calls = [p.detach().clone() for p in parameters], []

    def worse_elsewhere():
        loss, prediction = closure()
        elsewhere = not all(map(torch.equal, parameters, before))
        calls.append(elsewhere)
        return loss * (100 if elsewhere else 1), prediction

    optimizer = hig.LevenbergMarquardt(parameters, lr=0.5)
    monkeypatch.setattr(damped_steps, "MOST_ATTEMPTS", attempts)
    optimizer.step(worse_elsewhere)
    assert sum(calls) == attempts
    assert all(map(torch.equal, parameters, before))
    assert int(network[1].num_batches_tracked) == 1


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
@pytest.mark.parametrize(
    "compiled",
    [
        torch.jit.script,
        lambda network: torch.compile(network, backend="eager"),
        lambda network: torch.compile(network, backend="aot_eager"),
    ],
    ids=["script", "eager", "aot_eager"],
)
def test_compiled_networks(compiled):
    network, _, _ = problem("batch_norm")
    compiled = compiled(network)

    def closure():
        prediction = compiled(INPUTS)
        return (prediction - 1).square().mean(), prediction

    optimizer = hig.LevenbergMarquardt(compiled.parameters(), lr=0.5)
    for _ in range(6):
        optimizer.step(closure)
    (count,) = [b for name, b in compiled.named_buffers() if name.endswith("num_batches_tracked")]
    assert int(count) == 6
    hig.diagnose(compiled.parameters(), closure)
    assert int(count) == 6


def test_what_is_written_only_in_some_calls():
    network = nn.Sequential(Sometimes(), nn.Linear(3, 2))
    x = torch.randn(6, 3)

    def closure():
        prediction = network(x)
        return prediction.square().mean(), prediction

    optimizer = hig.LevenbergMarquardt(network.parameters(), lr=0.5)
    for _ in range(8):
        network[0].calls = 0
        optimizer.step(closure)
        assert network[0].calls > 1
    assert float(network[0].seen) == 0


def test_statistics_that_are_switched_on_late():
    network, parameters, closure = problem("batch_norm")
    network.eval()
    optimizer = hig.LevenbergMarquardt(parameters, lr=0.5)
    for _ in range(20):
        optimizer.step(closure)
    network.train()
    for _ in range(3):
        optimizer.step(closure)
    assert int(network[1].num_batches_tracked) == 3


def test_other_tensors_keep_their_values_and_versions():
    """A graph that was made before the trial can still be used."""
    scale = torch.ones(3)
    x = torch.randn(4, 3, requires_grad=True)
    before = (x * scale).sum()
    buffers = Buffers(())
    with buffers:
        scale.mul_(2)
        scale[0] = 5
    assert buffers.restore()
    assert torch.equal(scale, torch.ones(3))
    (gradient,) = torch.autograd.grad(before, x)
    assert torch.equal(gradient, torch.ones(4, 3))


def test_what_a_computation_makes_for_itself_is_not_kept():
    buffers = Buffers(())
    with buffers:
        for _ in range(5):
            torch.zeros(3).add_(1)
    assert not buffers._saved
    assert not buffers.restore()


@pytest.mark.parametrize(
    ("function", "effect"),
    [
        (torch.Tensor.add_, "first"),
        (torch.Tensor.__setitem__, "first"),
        (torch.Tensor.__iadd__, "first"),
        (torch._foreach_mul_, "first"),
        (nn.init.zeros_, "first"),
        (torch.Tensor.numpy, "first"),
        (nn.functional.batch_norm, "any"),
        (torch.native_batch_norm, "any"),
        (nn.functional.instance_norm, "any"),
        (torch.ops.aten.add_, "any"),
        (torch.ops.aten.add_.Tensor, "any"),
        (torch.Tensor.detach, "alias"),
        (torch.Tensor.add, ""),
        (torch.Tensor.__add__, ""),
        (torch.Tensor.__len__, ""),
        (torch.ops.aten.add.Tensor, ""),
        (nn.functional.linear, ""),
        (nn.functional.layer_norm, ""),
    ],
)
def test_which_functions_write(function, effect):
    assert may_write(function) == effect
