"""Code under ``torch.compile`` gives the same steps, in a closure or as a closure."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import hig
from tests.textbook import flat

# ``torch.compile`` itself warns of what it meets, and of nothing that concerns a step.
pytestmark = [
    pytest.mark.filterwarnings("default::UserWarning"),
    pytest.mark.filterwarnings("ignore:Using .torch.compile.module.* global hooks:UserWarning"),
]

NETWORKS = {
    "linear": lambda: (nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), (6, 4)),
    "batch_norm": lambda: (
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)),
        (6, 4),
    ),
    "convolution": lambda: (
        nn.Sequential(
            nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
        ),
        (6, 1, 4),
    ),
}


def simulate(controls):
    return (2 * controls.sin()).cumsum(1)


def square(prediction):
    return (prediction - 1).square().mean()


def values_after_steps(network, make, place=None, backend=None):
    """All parameters and buffers after three steps, and the engine of the last one."""
    torch.manual_seed(0)
    model, shape = NETWORKS[network]()
    inputs = torch.randn(shape)
    parts = {"network": model, "simulator": simulate, "loss": square}
    if place in parts:
        parts[place] = torch.compile(parts[place], backend=backend)

    def closure():
        prediction = parts["simulator"](parts["network"](inputs))
        return parts["loss"](prediction), prediction

    if place == "closure":
        closure = torch.compile(closure, backend=backend)
    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.step(closure)
    return flat([*model.parameters(), *model.buffers()]), optimizer.report.engine


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("place", ["network", "simulator", "loss", "closure"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", ["fixed", "trust"])
def test_compiled_parts(network, place, backend, rule):
    def make(parameters):
        return hig.HIG(parameters, lr=0.1, step_rule=rule)

    found, engine = values_after_steps(network, make, place, backend)
    expected, same_engine = values_after_steps(network, make)
    torch.testing.assert_close(found, expected)
    assert engine == same_engine


# In a process of its own: what torch.compile does depends on all that was compiled before.
CONTINUES = """
import torch
from torch import nn

import hig

compiled = []


def backend(graph, inputs):
    compiled.append(graph)
    return graph.forward


network = nn.Linear(3, 2)
wrapped, inputs = torch.compile(network, backend=backend), torch.randn(4, 3)


def closure():
    prediction = wrapped(inputs)
    return prediction.square().mean(), prediction


hig.HIG(network.parameters(), lr=0.1, step_rule="fixed").step(closure)
inside = len(compiled)
wrapped(inputs)
print(inside, len(compiled))
"""


def test_compilation_continues_outside_of_a_step():
    command = [sys.executable, "-c", CONTINUES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]
