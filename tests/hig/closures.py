"""Closures that trials evaluate without a graph; ``graph_closures`` has all others."""

import random

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
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
def adapted_by_a_functional_gradient():
    """An inner step of gradient descent, as in meta-learning."""
    network, inputs = mlp(), points(8, 2)

    def inner(parameters):
        return functional_call(network, parameters, inputs).square().mean()

    def predict():
        parameters = dict(network.named_parameters())
        slopes = grad(inner)(parameters)
        adapted = {name: p - 0.1 * slopes[name] for name, p in parameters.items()}
        return functional_call(network, adapted, inputs)

    return network, predict


@closure_kind(Graph.NONE)
def attention_in_evaluation_mode():
    """Fused kernels without gradients."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    network = nn.Sequential(nn.Linear(2, 4), layer, nn.Flatten(), nn.Linear(12, 2)).double()
    return applied(network.eval(), points(8, 3, 2))


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
