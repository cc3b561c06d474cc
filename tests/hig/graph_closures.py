"""Closures of every kind that trials evaluate, each with the graph that it needs."""

import functools
import random

import numpy as np
import torch

import hig
from hig._step.evaluation import Graph
from tests.hig.closures import CLOSURES, batch_norm, boxed, closure_kind, mlp, points, problem

__all__ = ["CLOSURES", "DIFFERING", "OPTIMIZERS", "mlp", "points", "problem"]

#: One optimizer of each kind that measures steps.
OPTIMIZERS = {
    "trust": lambda p: hig.HIG(p, step_rule="trust", rcond=1e-3),
    "line_search": lambda p: hig.HIG(p, step_rule="line_search", rcond=1e-3),
    "levenberg": lambda p: hig.LevenbergMarquardt(p, damping=0.1),
    "levenberg_trust": lambda p: hig.LevenbergMarquardt(p, damping=0.1, step_rule="trust"),
    "gauss_newton": lambda p: hig.GaussNewton(p, step_rule="trust", rcond=1e-2),
}

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
