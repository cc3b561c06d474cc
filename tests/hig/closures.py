"""Closures of every kind that trials evaluate, each with the graph that it needs."""

import functools
import random

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import hig
from hig._step.evaluation import Graph

NUMPY = np.random.mtrand._rand  # the generator behind ``np.random.rand`` and the like
CLOSURES = {}


def closure_kind(graph):
    """Register a function that returns a network and a function of it that predicts."""

    def register(make):
        CLOSURES[make.__name__] = make, graph
        return make

    return register


def points(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()


def mlp():
    layers = nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)
    return nn.Sequential(*layers).double()


def problem(name):
    """Return network and closure of a kind."""
    torch.manual_seed(0)
    network, predict = CLOSURES[name][0]()

    def closure():
        prediction = predict()
        return 0.5 * (prediction - 0.3).square().sum(1).mean(), prediction

    return network, closure


def applied(network, inputs=None):
    inputs = points(8, 2) if inputs is None else inputs
    return network, lambda: network(inputs)


# -- no graph -------------------------------------------------------------------------------------


@closure_kind(Graph.NONE)
def plain():
    return applied(mlp())


@closure_kind(Graph.NONE)
def dropout():
    return applied(nn.Sequential(mlp(), nn.Dropout(0.3)))


@closure_kind(Graph.NONE)
def batch_norm():
    return applied(nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double())


@closure_kind(Graph.NONE)
def spectral_norm():
    network = nn.Sequential(parametrizations.spectral_norm(nn.Linear(2, 5)), nn.Linear(5, 2))
    return applied(network.double())


@closure_kind(Graph.NONE)
def weight_norm():
    network = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 5)), nn.Linear(5, 2))
    return applied(network.double())


@closure_kind(Graph.NONE)
def recurrent():
    network = nn.LSTM(2, 3, proj_size=2).double()
    sequence = points(4, 8, 2)
    return network, lambda: network(sequence)[0][-1]


@closure_kind(Graph.NONE)
def tied():
    network = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    network[2].weight = network[0].weight
    return applied(network)


@closure_kind(Graph.NONE)
def frozen_by_the_user():
    network = mlp()
    network[0].requires_grad_(False)
    return applied(network)


@closure_kind(Graph.NONE)
def head_of_a_network_that_is_not_frozen():
    body, head = mlp(), nn.Linear(2, 2).double()
    inputs = points(8, 2)
    return head, lambda: head(body(inputs))


@closure_kind(Graph.NONE)
def called_with_parameters():
    network, inputs = mlp(), points(8, 2)
    return network, lambda: functional_call(network, dict(network.named_parameters()), inputs)


@closure_kind(Graph.NONE)
def target_without_gradients():
    network, inputs = mlp(), points(8, 2)
    twin = mlp()

    def predict():
        with torch.no_grad():
            target = twin(inputs)
        with torch.inference_mode():
            scale = twin(inputs).abs().max().item()
        return network(inputs) - target / scale

    return network, predict


@closure_kind(Graph.NONE)
def gradients_enabled_inside():
    network = mlp()
    inputs = points(8, 2)

    @torch.enable_grad()
    def predict():
        x = inputs.clone().requires_grad_()
        y = network(x)
        return y + torch.autograd.grad(y[:, 0].sum(), x, create_graph=True)[0]

    return network, predict


@closure_kind(Graph.NONE)
def functional_derivative():
    network, inputs = mlp(), points(8, 2)
    return network, lambda: vmap(jacrev(network))(inputs).sum(1)


@closure_kind(Graph.NONE)
def checkpointed():
    network, inputs = mlp(), points(8, 2)
    return network, lambda: checkpoint(network, inputs, use_reentrant=False)


@closure_kind(Graph.NONE)
def compiled():
    network, inputs = mlp(), points(8, 2)
    compiled_network = torch.compile(network, backend="eager")
    return network, lambda: compiled_network(inputs)


@closure_kind(Graph.NONE)
def in_place():
    """Operations in place on what the closure makes itself."""
    network, inputs = mlp(), points(8, 2)

    def predict():
        y = torch.zeros(8, 2, dtype=torch.float64)
        y += network(inputs)
        y[:, 0].mul_(2)
        return y.tanh_()

    return network, predict


@closure_kind(Graph.NONE)
def rolled_out():
    network, inputs = mlp(), points(8, 2)

    def step(state, control):
        return state + 0.1 * torch.sin(state + control)

    def predict():
        controls = network(inputs).unsqueeze(1).expand(-1, 5, -1)
        return hig.rollout(step, inputs, controls)

    return network, predict


def boxed(simulate):
    """A black box whose derivative is that of a sine."""

    def linearise(x):
        return np.sin(x), np.cos(x)[:, :, None] * np.eye(2)

    network, inputs = mlp(), points(8, 2)
    box = hig.black_box(linearise, simulate)
    return network, lambda: box(network(inputs))


@closure_kind(Graph.NONE)
def black_box():
    return boxed(np.sin)


@closure_kind(Graph.NONE)
def black_box_in_other_last_digits():
    return boxed(lambda x: np.sin(x) * (1 + 1e-14))


@closure_kind(Graph.NONE)
def draws_from_numpy():
    network, inputs = mlp(), points(8, 2)
    return network, lambda: network(inputs) + torch.from_numpy(NUMPY.randn(8, 2))


@closure_kind(Graph.NONE)
def draws_from_python():
    network, inputs = mlp(), points(8, 2)
    return network, lambda: network(inputs) * random.gauss(1, 0.5)


@closure_kind(Graph.NONE)
def seeds_of_numpy():
    """As torchsde draws the entropy of its noise."""
    network, inputs = mlp(), points(8, 2)

    def predict():
        generator = torch.Generator().manual_seed(int(NUMPY.randint(0, 1 << 31)))
        return network(inputs) + torch.randn(8, 2, generator=generator).double()

    return network, predict


# -- gradients by the inputs ----------------------------------------------------------------------


@closure_kind(Graph.OF_INPUTS)
def differentiated_by_inputs():
    network, inputs = mlp(), points(8, 2)

    def predict():
        x = inputs.clone().requires_grad_()
        y = network(x)
        first = torch.autograd.grad(y[:, 0].sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)[0]
        return y + first + second

    return network, predict


@closure_kind(Graph.OF_INPUTS)
def inputs_that_always_require_gradients():
    network, inputs = mlp(), points(8, 2).requires_grad_()

    def predict():
        y = network(inputs)
        return y + torch.autograd.grad(y.sum(), inputs, create_graph=True)[0]

    return network, predict


@closure_kind(Graph.OF_INPUTS)
def backward_inside():
    network, inputs = mlp(), points(8, 2)

    def predict():
        x = inputs.clone().requires_grad_()
        network(x).square().sum().backward(inputs=[x])
        return network(inputs) + x.grad

    return network, predict


# -- a full graph ---------------------------------------------------------------------------------


@closure_kind(Graph.FULL)
def differentiated_by_parameters():
    network, inputs = mlp(), points(8, 2)

    def predict():
        y = network(inputs)
        (slope,) = torch.autograd.grad(y.sum(), network[0].weight, create_graph=True)
        return y + slope.square().sum()

    return network, predict


@closure_kind(Graph.FULL)
def differentiated_by_all_that_require_gradients():
    network, inputs = mlp(), points(8, 2)

    def predict():
        y = network(inputs)
        trained = [p for p in network.parameters() if p.requires_grad]
        size = sum(p.numel() for p in trained)
        slopes = torch.autograd.grad(y.sum(), trained, retain_graph=True) if trained else []
        return y * (1 + sum(float(s.sum()) for s in slopes) / size)

    return network, predict


def after(look):
    """A closure that looks at the graph of the network's output."""

    def make():
        network, inputs = mlp(), points(8, 2)

        def predict():
            y = network(inputs)
            look(y)
            return y

        return network, predict

    return make


def asserted(y):
    assert y.requires_grad


def raised(y):
    if not y.requires_grad:
        raise ValueError("gradients are off")


LOOKS = {
    "asserts": asserted,
    "raises": raised,
    "names_the_node": lambda y: y.grad_fn.name(),
    "follows_the_node": lambda y: y.grad_fn.next_functions[0],
    "hooks": lambda y: y.register_hook(lambda gradient: gradient),
    "retains": lambda y: y.retain_grad(),
}
for _name, _look in LOOKS.items():
    CLOSURES[_name] = after(_look), Graph.FULL


@closure_kind(Graph.FULL)
def another_term_with_a_graph():
    network, inputs = mlp(), points(8, 2)

    def predict():
        y = network(inputs)
        return y + y.tanh() if y.requires_grad else y

    return network, predict


@closure_kind(Graph.FULL)
def another_prediction_without_gradients():
    """With the same loss: half of the outputs are the same as before, and the others swapped."""
    network, inputs = mlp(), points(8, 2)

    def predict():
        y = network(inputs)
        return y if torch.is_grad_enabled() and y.requires_grad else y.flip(0)

    return network, predict


@closure_kind(Graph.FULL)
def black_box_of_another_simulator():
    return boxed(lambda x: np.sin(x) + 1e-4)  # a coarser one


# -- other numbers in every evaluation ------------------------------------------------------------


def drawing(make_source):
    """A closure whose target comes from a source of its own."""

    def make():
        network, inputs, source = mlp(), points(8, 2), make_source()
        return network, lambda: network(inputs) - source()

    return make


def loader():
    data = points(1000, 8, 2)
    return functools.partial(next, iter(data))


def counter():
    seen = []

    def value():
        seen.append(1)
        return 0.1 * len(seen)

    return value


def generator_of_numpy():
    generator = np.random.default_rng(0)
    return lambda: torch.from_numpy(generator.normal(size=(8, 2)))


def generator_of_torch():
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(8, 2, generator=generator)


def generator_of_python():
    return functools.partial(random.Random(0).gauss, 0, 1)


SOURCES = {
    "loader": loader,
    "counter": counter,
    "generator_of_numpy": generator_of_numpy,
    "generator_of_torch": generator_of_torch,
    "generator_of_python": generator_of_python,
}
DIFFERING = tuple(SOURCES)
for _name, _source in SOURCES.items():
    CLOSURES[_name] = drawing(_source), Graph.FULL


@closure_kind(Graph.FULL)
def drawing_with_batch_norm():
    network, inputs, source = batch_norm()[0], points(8, 2), generator_of_torch()
    return network, lambda: network(inputs) - source()


DIFFERING += ("drawing_with_batch_norm",)
