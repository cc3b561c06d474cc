"""Memory of backward passes by the graph, against the memory that they are seen to hold."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hig._jacobian.capture import Capture
from hig._jacobian.rows import StreamedBlock
from hig._torch import batched_vjp as batched_vjp_module
from hig._torch.batched_vjp import (
    BatchedVJP,
    PassSizes,
    one_hot_cotangents,
)
from hig._torch.pass_memory import measure_pass


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all memory that operations have made and nobody has dropped."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if torch.is_tensor(t)}
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor):
                self._count(tensor.untyped_storage(), before)
        return result

    def _count(self, storage, before):
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self._known or address in before or not size:
            return
        self._known.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, address, size)

    def _drop(self, address, size):
        self._known.discard(address)
        self.now -= size


def equation(points=40, width=8):
    """A physics-informed network, derivatives by autograd."""
    layers = [nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    network = nn.Sequential(*layers, nn.Linear(width, 1)).double()
    z = torch.rand(points, 2, dtype=torch.float64).requires_grad_()
    u = network(z)
    (g,) = torch.autograd.grad(u.sum(), z, create_graph=True)
    (h,) = torch.autograd.grad(g[:, 0].sum(), z, create_graph=True)
    return g[:, 1:] + u * g[:, :1] - 0.01 * h[:, :1], list(network.parameters())


def fields(samples=2, size=12):
    """A small convolution network."""
    network = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 2, 3, padding=1))
    return network(torch.randn(samples, 2, size, size)), list(network.parameters())


def wide(state=4000, steps=12):
    """A time loop over a large state, controlled by few parameters."""
    network = nn.Linear(3, 4)
    control, shapes = network(torch.randn(2, 3)), torch.randn(4, state)
    u = torch.zeros(2, state)
    for _ in range(steps):
        u = u + 0.1 * torch.sin(u.roll(1, 1) - u) + 0.01 * control @ shapes
    return u.unflatten(1, (8, -1)).mean(2), list(network.parameters())


def refined(state=500):
    """One that is wide only in between."""
    layer = nn.Linear(2, 3)
    x = layer(torch.randn(4, 2))
    return (x @ torch.randn(3, state)).sin().cos() @ torch.randn(state, 2), list(layer.parameters())


CASES = {"equation": equation, "fields": fields, "wide": wide, "refined": refined}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk", [2, 8])
def test_what_a_batch_of_passes_holds(name, chunk):
    """Between a third (gradients that share memory) and twice (what operations need meanwhile)."""
    torch.manual_seed(0)
    prediction, parameters = CASES[name]()
    expected = measure_pass(prediction, parameters).peak
    cotangents = one_hot_cotangents(prediction)(0, chunk)
    with LiveBytes() as live:
        torch.autograd.grad(
            prediction, parameters, cotangents, retain_graph=True, is_grads_batched=True
        )
    assert expected / 3 < live.peak / chunk < 2 * expected


@pytest.mark.parametrize("name", CASES)
def test_the_default_stays_within_its_bound(name, monkeypatch):
    torch.manual_seed(0)
    prediction, parameters = CASES[name]()
    room = 6 * measure_pass(prediction, parameters).peak
    monkeypatch.setattr("hig._torch.batched_vjp.PASS_BYTES", room)
    monkeypatch.setattr("hig._torch.batched_vjp.CACHED_BYTES", 0)
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    passes = BatchedVJP().gradients(
        prediction, parameters, prediction.numel(), one_hot_cotangents(prediction), size
    )
    with LiveBytes() as live:
        for chosen, _ in passes:
            assert chosen.stop - chosen.start <= 6
    assert live.peak < 2 * room


@pytest.mark.parametrize("name", CASES)
def test_small_gradients_go_together_up_to_the_largest_bound(name, monkeypatch):
    torch.manual_seed(0)
    prediction, parameters = CASES[name]()
    held = measure_pass(prediction, parameters)
    monkeypatch.setattr("hig._torch.batched_vjp.PASS_BYTES", 1)
    monkeypatch.setattr("hig._torch.batched_vjp.CACHED_BYTES", 5 * held.largest)
    monkeypatch.setattr("hig._torch.batched_vjp.MOST_PASS_BYTES", 3 * max(held.peak, 8))

    def most():
        cotangents = one_hot_cotangents(prediction)
        passes = BatchedVJP().gradients(prediction, parameters, prediction.numel(), cotangents, 8)
        return max(chosen.stop - chosen.start for chosen, _ in passes)

    assert most() == 3
    monkeypatch.setattr("hig._torch.batched_vjp.MOST_PASS_BYTES", 2**30)
    assert most() == 5


@pytest.mark.parametrize(("state", "passes"), [(1000, 8), (40_000, 1)])
def test_rows_through_a_large_state_come_alone(monkeypatch, state, passes):
    prediction, parameters = wide(state)
    sizes = []
    original = torch.autograd.grad

    def grad(output, inputs, cotangents, **options):
        sizes.append(len(cotangents) if options.get("is_grads_batched") else 1)
        return original(output, inputs, cotangents, **options)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    StreamedBlock(prediction, parameters, BatchedVJP()).columns_of([(1, 0, 4)], 0, 8)
    assert set(sizes) == {passes}


def test_a_chain_of_known_sizes():
    x = torch.ones(10, dtype=torch.float64, requires_grad=True)
    y = x.exp()
    z = (y[:, None] * torch.ones(1, 7, dtype=torch.float64)).sin()
    prediction = z.sum(1)
    # sum -> sin (70) -> mul (70) -> unsqueeze; sin and mul are held together.
    found = measure_pass(prediction, [x])
    assert found.peak == 2 * 70 * 8
    assert found.largest == 70 * 8


def test_edges_end_the_way():
    x = torch.ones(10, 500, requires_grad=True)
    y = (x * 2).sum(1)
    edge = torch.autograd.graph.get_gradient_edge(y)
    prediction = y.sin()
    assert measure_pass(prediction, [edge]).peak == 2 * 10 * 4
    assert measure_pass(prediction, [x]).peak >= 10 * 500 * 4


def test_gradients_asked_for_are_held_to_the_end():
    x = torch.ones(100, requires_grad=True)
    first = x * 2
    second = first.sin()
    third = second.cos()
    edges = [torch.autograd.graph.get_gradient_edge(t) for t in (first, second, third)]
    assert measure_pass(third.exp(), edges).peak == 3 * 100 * 4
    assert measure_pass(third.exp(), edges[:1]).peak == 2 * 100 * 4


def test_branches_that_lead_nowhere_cost_nothing():
    x, other = (torch.ones(10, requires_grad=True) for _ in range(2))
    big = (other[:, None] * torch.ones(10, 1000)).sin().sum(1)
    prediction = x.sin() + big
    assert measure_pass(prediction, [x]).peak < 10 * 1000 * 4


def test_inputs_without_influence_and_the_output_itself():
    x, spare = torch.ones(10, requires_grad=True), torch.ones(5, requires_grad=True)
    prediction = x.sin()
    assert measure_pass(prediction, [spare]).peak == 0
    assert measure_pass(prediction, [spare, x]).peak == 2 * 10 * 4
    edge = torch.autograd.graph.get_gradient_edge(prediction)
    assert measure_pass(prediction, [edge]).peak == 10 * 4


def test_functions_with_several_outputs_and_none():
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone(), 3, x.sum()

        @staticmethod
        def backward(ctx, first, _, second):
            return first + second

    x = torch.ones(10, requires_grad=True)
    first, _, second = Function.apply(x.sin())
    assert measure_pass(first * second, [x]).peak >= 2 * 10 * 4


# -- remembered ---------------------------------------------------------------------------------


@pytest.fixture
def walks(monkeypatch):
    """The graphs that were gone through."""
    found, original = [], batched_vjp_module.measure_pass

    def measure(output, inputs):
        found.append(output)
        return original(output, inputs)

    monkeypatch.setattr(batched_vjp_module, "measure_pass", measure)
    return found


def loop(x, steps, width=4):
    state = x[:, :1] * torch.ones(1, width)
    for _ in range(steps):
        state = state.sin()
    return state.sum(1)


def test_the_same_graph_is_gone_through_once(walks):
    sizes, x = PassSizes(), torch.ones(5, 2, requires_grad=True)
    prediction = loop(x, 3)
    first = sizes.of(prediction, [x])
    assert sizes.of(prediction, [x]) is first
    assert len(walks) == 1


def test_steps_that_repeat_are_not_gone_through_again(walks):
    sizes, x = PassSizes(), torch.ones(5, 2, requires_grad=True)
    for _ in range(20):
        sizes.of(loop(x, 30), [x])
    assert len(walks) == 2  # the second time shows how far apart they are


def test_two_graphs_in_turn_are_remembered(walks):
    sizes, x = PassSizes(), torch.ones(5, 2, requires_grad=True)
    for _ in range(20):
        short, long = sizes.of(loop(x, 30, 2), [x]), sizes.of(loop(x, 50, 2), [x])
    assert len(walks) <= 3
    assert short == long  # a longer chain of the same width holds no more


def test_another_graph_is_noticed():
    sizes, x = PassSizes(), torch.ones(5, 2, requires_grad=True)
    for width in (4, 4, 4, 400, 400, 4):
        prediction = loop(x, 30, width)
        assert sizes.of(prediction, [x]) == measure_pass(prediction, [x])


def test_what_is_remembered_is_bounded():
    sizes, x = PassSizes(), torch.ones(5, 2, requires_grad=True)
    for steps in range(20, 120):
        sizes.of(loop(x, steps), [x])
    (known,) = sizes._known.values()
    assert len(known.sizes) <= batched_vjp_module.KNOWN + 1


def test_layer_edges(walks):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    sizes = PassSizes()
    for _ in range(5):
        with Capture(network.parameters()) as capture:
            prediction = network(torch.randn(6, 3))
        found = sizes.of(prediction, [use.edge for use in capture.uses])
    assert found.peak >= 6 * (4 + 2) * 4
    assert len(walks) == 2


def test_a_graph_is_gone_through_only_where_it_decides(walks):
    prediction, parameters = fields()
    for backward in (BatchedVJP(batched=False), BatchedVJP(chunk=1)):
        list(backward.gradients(prediction, parameters, 3, one_hot_cotangents(prediction), 8))
    list(BatchedVJP().gradients(prediction, parameters, 1, one_hot_cotangents(prediction), 8))
    assert walks == []
