"""States saved and loaded: bit for bit, copies, and nothing of another optimiser."""

import copy
import io

import pytest
import torch
from torch import nn

import hig
from hig._kronecker.layer_state import outline
from tests.hig.networks import build, least_squares

HALF = [torch.float16, torch.bfloat16]


class Spectral(nn.Module):
    """A real layer before complex weights."""

    def __init__(self, dtype):
        super().__init__()
        self.layer = nn.Linear(4, 6, dtype=dtype)
        self.weights = nn.Parameter(torch.randn(4, dtype=dtype.to_complex()))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(self.layer(x)) * self.weights, n=6)


def problem(name, dtype):
    if name != "spectral":
        network, inputs = build(name, dtype)
    else:
        torch.manual_seed(0)
        network, inputs = Spectral(dtype), torch.randn(5, 4, dtype=dtype)
    return network, least_squares(network, inputs)


CASES = [
    *[(name, dtype) for name in ("mlp", "conv2d", "layer norm", "spectral")
      for dtype in (torch.float32, torch.float64)],
    *[("mlp", dtype) for dtype in HALF],
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_saved_run_resumes_bit_for_bit(name, dtype):
    network, closure = problem(name, dtype)
    options = {"lr": 0.01, "decay": 0.5, "probe_every": 3, "refresh_every": 6}
    optimizer = hig.KroneckerHIG(network.parameters(), **options)
    for _ in range(4):
        optimizer.step(closure)
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    for _ in range(5):
        optimizer.step(closure)
    file.seek(0)
    weights, memory = torch.load(file, weights_only=True)
    other_network, other_closure = problem(name, dtype)
    other_network.load_state_dict(weights)
    other = hig.KroneckerHIG(other_network.parameters(), **options)
    other.load_state_dict(memory)
    for _ in range(5):
        other.step(other_closure)
    for one, two in zip(network.parameters(), other_network.parameters(), strict=True):
        assert torch.equal(one, two)
    assert other.state["count"] == {"steps": 9} and memory["state"]["count"] == {"steps": 4}
    assert other.report.layers == optimizer.report.layers
    assert other.report.left_to_adam == optimizer.report.left_to_adam


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_tensors_are_copies(dtype):
    network, closure = problem("mlp", dtype)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
    optimizer.step(closure)
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    other = hig.KroneckerHIG(copy.deepcopy(network).parameters(), lr=0.01)
    other.load_state_dict(saved)
    mine = {id(v) for state in optimizer.state.values() for v in state.values()}
    for state in other.state.values():
        for name, value in state.items():
            if torch.is_tensor(value):
                assert id(value) not in mine, name
                value.fill_(7.0)
    for key, state in kept["state"].items():
        for name, value in state.items():
            if torch.is_tensor(value):
                assert torch.equal(saved["state"][key][name], value), name
    assert saved["param_groups"] == kept["param_groups"]


def test_hooks_of_users_see_the_state_before_it_is_copied():
    network, closure = problem("mlp", torch.float32)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
    optimizer.step(closure)
    saved = optimizer.state_dict()
    other = hig.KroneckerHIG(network.parameters(), lr=0.01)

    def without_count(_, state):
        return {**state, "state": {**state["state"], "count": {"steps": 40}}}

    other.register_load_state_dict_pre_hook(without_count)
    other.load_state_dict(saved)
    assert other.state["count"] == {"steps": 40}


def other_shapes():
    network, closure = build("mlp", torch.float32)[0], None
    network[0] = nn.Linear(5, 8)
    closure = least_squares(network, torch.randn(5, 5))
    optimizer = hig.KroneckerHIG(network.parameters())
    optimizer.step(closure)
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (other_shapes, ValueError, r"parameter 0 has shape \(8, 5\), the optimizer's needs"),
        (lambda: {}, ValueError, "no count of steps.*KroneckerHIG.state"),
        (lambda: None, TypeError, "must be a dictionary, got None"),
    ],
)
def test_states_that_do_not_fit_change_nothing(make, error, text):
    network, closure = problem("mlp", torch.float32)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
    optimizer.step(closure)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error, match=text):
        optimizer.load_state_dict(make())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, state in before["state"].items():
        for name, value in state.items():
            now = after["state"][key][name]
            assert torch.equal(now, value) if torch.is_tensor(value) else now == value


def test_an_outline_has_counts_and_shapes():
    state = {"step": 3, "exp_avg": torch.ones(2, 3)}
    assert outline(state) == [("exp_avg", (2, 3)), ("step", 3)]
