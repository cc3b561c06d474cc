"""Whole trainings with ``conflictfree`` and with this package, step by step."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.hig.conflictfree.matrices import random_matrix
from tests.hig.conflictfree.original import (
    OPERATORS,
    OURS,
    THEIRS,
    get,
    gradient_of,
    of,
    ones,
    weights_model,
)
from tests.textbook import flat, relative_error

pytestmark = pytest.mark.usefixtures("least_squares")


def network_and_losses(losses, dtype=torch.float64):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, losses)).to(dtype)
    inputs = torch.linspace(-1, 1, 16, dtype=dtype).unsqueeze(1)
    targets = torch.cat([(k + 1) * (inputs * (k + 1)).sin() for k in range(losses)], 1)
    functions = [
        lambda k=k: (network(inputs) - targets)[:, k].square().mean() for k in range(losses)
    ]
    return network, functions


def train(package, losses, operator, lr, steps, with_losses=False, apply=False):
    """All losses in every step, as the original's documentation writes it."""
    network, functions = network_and_losses(losses)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for _ in range(steps):
        values = [function() for function in functions]
        grads = [gradient_of(package, network, value) for value in values]
        detached = [value.detach() for value in values] if with_losses else None
        if apply:
            direction = operator.calculate_gradient(grads, detached)
            get(package, "utils", "apply_gradient_vector")(network, direction)
        else:
            operator.update_gradient(network, grads, detached)
        optimizer.step()
        yield flat(network.parameters())


def same_path(paths, tolerance=1e-6):
    for theirs, ours in zip(*paths, strict=True):
        assert relative_error(ours, theirs) < tolerance


@pytest.mark.parametrize("apply", [False, True])
@pytest.mark.parametrize("losses", [2, 3])
@pytest.mark.parametrize("name", OPERATORS)
def test_training_with_every_operator(name, losses, apply):
    paths = []
    for package in (THEIRS, OURS):
        operator = OPERATORS[name](of(package))
        if name.startswith("config"):
            operator.weight_model = ones(package, torch.float64)
        paths.append(list(train(package, losses, operator, 1e-2, 10, apply=apply)))
    same_path(paths)


def momentum_steps(package, losses, at_once, selector, operator_name, recorder):
    """Some losses per step, as the original's documentation writes it."""
    network, functions = network_and_losses(losses)
    gradient_operator = OPERATORS[operator_name](of(package))
    if operator_name.startswith("config"):
        model = weights_model if recorder else ones
        gradient_operator.weight_model = model(package, torch.float64)
    operator = get(package, "momentum_operator", "PseudoMomentumOperator")(
        losses,
        gradient_operator=gradient_operator,
        loss_recorder=get(package, "loss_recorder", recorder)(losses) if recorder else None,
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    np.random.seed(0)  # noqa: NPY002
    selector = get(package, "utils", selector)()
    for _ in range(4 * losses):
        indexes, chosen = selector.select(at_once, functions)
        indexes = list(indexes)  # the original cannot take the array that it gives
        chosen = chosen if isinstance(chosen, list) else [chosen]
        values = [function() for function in chosen]
        grads = [gradient_of(package, network, value) for value in values]
        detached = [value.detach() for value in values] if recorder else None
        operator.update_gradient(network, indexes, grads, detached)
        optimizer.step()
        yield flat(network.parameters())


@pytest.mark.parametrize("recorder", [None, "LatestLossRecorder"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("losses", "at_once", "selector"),
    [
        (2, 1, "OrderedSliceSelector"),
        (3, 1, "OrderedSliceSelector"),
        (3, 2, "OrderedSliceSelector"),
        (3, 1, "RandomSliceSelector"),
        (3, 2, "RandomSliceSelector"),
    ],
)
def test_training_with_momentum(losses, at_once, selector, operator, recorder):
    same_path(
        [
            list(momentum_steps(package, losses, at_once, selector, operator, recorder))
            for package in (THEIRS, OURS)
        ],
        1e-5,  # the first moments in the original are float32 zeros times 0.9
    )


def test_small_things_are_the_same():
    rows = random_matrix((3, 7))
    network, _ = network_and_losses(2)
    for name, arguments in (
        ("get_para_vector", (network,)),
        ("get_cos_similarity", (rows[0], rows[1])),
        ("unit_vector", (rows[0],)),
        ("estimate_conflict", (rows,)),
        ("transfer_coef_double", (rows[0, :2], *rows[:2], rows[2], rows[0])),
        ("has_zero", ([1, 2],)),
        ("has_zero", ([1, 0],)),
    ):
        theirs, ours = (get(package, "utils", name)(*arguments) for package in (THEIRS, OURS))
        for a, b in zip(np.atleast_1d(theirs), np.atleast_1d(ours), strict=True):
            assert np.allclose(a, b)
