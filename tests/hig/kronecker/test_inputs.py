"""Steps with Kronecker factors on any layout of samples and in any precision."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import hig
from tests.textbook import flat, relative_error, step_of

DOUBLE = {"dtype": torch.float64}


def network_of(dtype=torch.float64, fan_in=3):
    torch.manual_seed(0)
    layers = nn.Linear(fan_in, 8), nn.Tanh(), nn.Linear(8, 2)
    return nn.Sequential(*layers).to(dtype)


def closure_of(predict, target=0.3):
    def closure():
        prediction = predict()
        return (prediction.double() - target).square().sum(), prediction

    return closure


def first_step(predict, **options):
    """The first step of a network, whose prediction is given, and its report."""
    network = network_of()
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01, **options)
    step = step_of(optimizer, closure_of(lambda: predict(network)))
    return step, optimizer.report


# -- whichever axis holds the samples --------------------------------------------------------------


def time_first(n, x):
    return n(x.transpose(0, 1)).transpose(0, 1)


LAYOUTS = {
    "time first": time_first,
    "one row for each sample and time": lambda n, x: n(x.flatten(0, 1)).view(12, 7, 2),
    "one sample at a time": lambda n, x: torch.stack([n(sample) for sample in x]),
    "one row at a time": lambda n, x: torch.stack(
        [torch.stack([n(row) for row in sample]) for sample in x]
    ),
    "parts of other sizes": lambda n, x: torch.cat([n(x[:5]), n(x[5:11]), n(x[11:])]),
    "not contiguous": lambda n, x: n(x.permute(2, 1, 0).contiguous().permute(2, 1, 0)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_steps_do_not_depend_on_the_layout(name):
    torch.manual_seed(1)
    inputs = torch.randn(12, 7, 3, **DOUBLE)
    expected, _ = first_step(lambda n: n(inputs))
    found, report = first_step(lambda n: LAYOUTS[name](n, inputs))
    assert (report.layers, report.others) == (2, 0)
    assert relative_error(found, expected) < 1e-8


@pytest.mark.parametrize("sizes", [[7] * 10, [5, 6, 7, 8, 9, 10, 6, 7, 8, 9]])
def test_nodes_of_graphs(sizes):
    """All graphs in one leading axis, whose length is a multiple of their number or not."""
    torch.manual_seed(1)
    inputs = torch.randn(sum(sizes), 3, **DOUBLE)
    graph = torch.repeat_interleave(torch.arange(10), torch.tensor(sizes))

    def pooled(network):
        return torch.zeros(10, 2, **DOUBLE).index_add(0, graph, network(inputs))

    order = torch.randperm(len(inputs))

    def permuted(network):
        return torch.zeros(10, 2, **DOUBLE).index_add(0, graph[order], network(inputs[order]))

    one, report = first_step(pooled)
    other, _ = first_step(permuted)
    assert (report.layers, report.others) == (2, 0)
    assert relative_error(one, other) < 1e-8


@pytest.mark.parametrize("module", [nn.Conv1d, nn.Conv2d])
def test_images_one_by_one(module):
    axes = 1 if module is nn.Conv1d else 2
    torch.manual_seed(0)
    network = nn.Sequential(module(2, 4, 2), nn.Tanh(), module(4, 2, 2, stride=2)).double()
    again = copy.deepcopy(network)
    images = torch.randn(3, 2, *[5] * axes, **DOUBLE)
    steps = []
    for own, predict in (
        (network, lambda: network(images)),
        (again, lambda: torch.stack([again(image) for image in images])),
    ):
        optimizer = hig.KroneckerHIG(own.parameters(), lr=0.01)
        steps.append(step_of(optimizer, closure_of(predict)))
        assert (optimizer.report.layers, optimizer.report.others) == (2, 0)
    assert relative_error(*steps) < 1e-8


class Marked(torch.Tensor):
    """A tensor of a class of its own, as libraries of meshes and images have."""


def test_inputs_of_another_class():
    torch.manual_seed(1)
    inputs = torch.randn(12, 3, **DOUBLE)
    expected, _ = first_step(lambda n: n(inputs))
    network = network_of()
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
    marked = inputs.as_subclass(Marked)
    found = step_of(optimizer, closure_of(lambda: network(marked).as_subclass(torch.Tensor)))
    assert torch.equal(found, expected)
    for state in (optimizer.state[p] for p in network.parameters()):
        assert {type(v) for v in state.values() if torch.is_tensor(v)} == {torch.Tensor}


# -- precision -------------------------------------------------------------------------------------

HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("where", ["inside", "around"])
def test_autocast(dtype, where):
    network = network_of(torch.float32)
    torch.manual_seed(1)
    inputs = torch.randn(8, 3)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)

    def closure():
        with torch.autocast("cpu", dtype=dtype):
            prediction = network(inputs)
        return (prediction.float() - 1).square().mean(), prediction

    losses = []
    for _ in range(50):
        with torch.autocast("cpu", dtype=dtype, enabled=where == "around"):
            losses.append(float(optimizer.step(closure)))
    assert losses[-1] < 0.1 * losses[0]
    assert optimizer.report.layers == 2 and optimizer.report.notes == []
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32
        kept = [v for v in optimizer.state[parameter].values() if torch.is_tensor(v)]
        assert kept and all(value.dtype == torch.float32 for value in kept)


def test_autocast_changes_a_step_by_its_rounding_alone():
    network = network_of(torch.float32)
    again = copy.deepcopy(network)
    torch.manual_seed(1)
    inputs = torch.randn(64, 3)

    def lower():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return again(inputs)

    expected = step_of(
        hig.KroneckerHIG(network.parameters(), lr=0.01), closure_of(lambda: network(inputs))
    )
    found = step_of(hig.KroneckerHIG(again.parameters(), lr=0.01), closure_of(lower))
    assert relative_error(found.double(), expected.double()) < 16 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("graft", ["global", "layer"])
def test_half_precision_parameters(dtype, graft):
    network = network_of(dtype)
    torch.manual_seed(1)
    inputs = torch.randn(8, 3, dtype=dtype)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01, graft=graft)
    closure = closure_of(lambda: network(inputs), target=1.0)
    losses = [float(optimizer.step(closure)) for _ in range(50)]
    assert losses[-1] < 0.1 * losses[0]
    assert all(p.dtype == dtype for p in network.parameters())
    state = optimizer.state[network[0].weight]
    assert state["inputs"].dtype == state["scale"].dtype == state["exp_avg"].dtype == torch.float32


def test_a_step_out_of_the_numbers_of_float16_is_taken_back():
    network = network_of(torch.float16)
    inputs = torch.ones(8, 3, dtype=torch.float16)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=6e4)
    start = flat(network.parameters())
    with pytest.raises(hig.NonFiniteError, match="leaves NaN or Inf in the parameters"):
        for _ in range(4):  # of some hundred thousand in all
            start = flat(network.parameters())
            optimizer.step(closure_of(lambda: network(inputs)))
    assert torch.equal(flat(network.parameters()), start)


@pytest.mark.parametrize(
    ("network_dtype", "simulator_dtype"),
    [(torch.float64, torch.float32), (torch.float32, torch.float64)],
)
def test_a_simulator_in_another_precision(network_dtype, simulator_dtype):
    network = network_of(network_dtype)
    torch.manual_seed(1)
    inputs = torch.randn(8, 3, dtype=network_dtype)
    expected, _ = first_step(lambda n: n(inputs.double()).sin())
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
    found = step_of(optimizer, closure_of(lambda: network(inputs).to(simulator_dtype).sin()))
    assert optimizer.report.layers == 2 and optimizer.report.notes == []
    assert relative_error(found.double(), expected) < 1e-3
    assert optimizer.state[network[0].weight]["inputs"].dtype == network_dtype


# -- complex, frozen, sparse, lazy parameters ------------------------------------------------------


class Spectral(nn.Module):
    """A real layer, complex weights and a frozen complex phase."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6, **DOUBLE)
        self.weights = nn.Parameter(torch.randn(4, dtype=torch.complex128))
        self.mixing = nn.Linear(4, 4, dtype=torch.complex128)
        phase = torch.polar(torch.ones(4, **DOUBLE), torch.linspace(0, 1, 4, **DOUBLE))
        self.phase = nn.Parameter(phase, requires_grad=False)
        self.count = nn.Parameter(torch.tensor(2), requires_grad=False)

    def forward(self, x):
        found = torch.fft.rfft(self.layer(x)) * self.weights * self.phase
        return self.count * torch.fft.irfft(self.mixing(found), n=6)


def test_complex_parameters_take_the_steps_of_adam():
    torch.manual_seed(0)
    network, inputs = Spectral(), torch.randn(5, 4, **DOUBLE)
    optimizer = hig.KroneckerHIG(network.named_parameters(), lr=0.01, eps=1e-6)
    closure = closure_of(lambda: network(inputs))
    trained = {n: p for n, p in network.named_parameters() if p.is_complex() and p.requires_grad}
    frozen = network.phase.clone()
    twins = {n: p.detach().clone().requires_grad_() for n, p in trained.items()}
    adam = torch.optim.Adam(twins.values(), lr=0.01, eps=1e-6)
    losses = []
    for _ in range(60):
        gradients = torch.autograd.grad(closure()[0], trained.values())
        for n, g in zip(trained, gradients, strict=True):
            twins[n].grad = g
        adam.step()
        losses.append(float(optimizer.step(closure)))
        for n, p in trained.items():
            torch.testing.assert_close(p.detach(), twins[n].detach(), rtol=1e-10, atol=1e-12)
    assert losses[-1] < 0.1 * losses[0]
    assert optimizer.report.layers == 1
    assert optimizer.report.left_to_adam.keys() == trained.keys()
    assert torch.equal(network.phase, frozen)


def test_frozen_parameters_of_other_dtypes_change_nothing():
    torch.manual_seed(0)
    network, inputs = Spectral(), torch.randn(5, 4, **DOUBLE)
    again = copy.deepcopy(network)
    closures = [closure_of(lambda own=own: own(inputs)) for own in (network, again)]
    with_all = hig.KroneckerHIG(network.parameters(), lr=0.01)
    without = hig.KroneckerHIG([p for p in again.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        with_all.step(closures[0])
        without.step(closures[1])
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_sparse_gradients_of_embeddings():
    """The steps are those of the same embedding with dense gradients."""
    networks = []
    for sparse in (False, True):
        torch.manual_seed(0)
        layers = nn.Embedding(10, 3, sparse=sparse), nn.Linear(3, 2)
        network = nn.Sequential(*layers).double()
        optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
        for step in range(4):
            chosen = (torch.arange(6) * (step + 1)) % 10
            optimizer.step(closure_of(lambda own=network, rows=chosen: own(rows)))
        assert (optimizer.report.layers, optimizer.report.others) == (1, 1)
        networks.append(network)
    dense, sparse = (flat(network.parameters()) for network in networks)
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-14)


def test_lazy_parameters():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LazyLinear(4), nn.LazyConv1d(2, 3)
            self.unused = nn.LazyLinear(7)

        def forward(self, x):
            return self.second(self.first(x).tanh()[:, None])

    network, inputs = Lazy(), torch.randn(6, 3)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
    closure = closure_of(lambda: network(inputs))
    losses = [float(optimizer.step(closure)) for _ in range(20)]
    assert losses[-1] < losses[0] and (optimizer.report.layers, optimizer.report.others) == (2, 0)
    elsewhere = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="frozen or uninitialized after the closure"):
        hig.KroneckerHIG(nn.LazyLinear(3).parameters()).step(closure_of(lambda: 2 * elsewhere))


def test_another_default_device_and_dtype():
    inputs = torch.randn(6, 3, **DOUBLE)
    expected, _ = first_step(lambda n: n(inputs))
    network = network_of()
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
    torch.set_default_device("meta")  # stands for an accelerator that the network is not on
    torch.set_default_dtype(torch.float16)
    try:
        found = step_of(optimizer, closure_of(lambda: network(inputs)))
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


# -- nothing stays behind --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["layers", "no layers", "error"])
def test_no_graph_outlives_a_step(kind):
    """Without the collector of cycles: what a cycle holds lives on."""
    network = network_of() if kind != "no layers" else nn.GRU(3, 2).double()
    inputs = torch.randn(5, 3, **DOUBLE)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01, decay=0.0)
    graphs = []

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark = Mark()
            graphs.append(weakref.ref(ctx.mark))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient / 0 if kind == "error" and len(graphs) > 2 else gradient

    def closure():
        outputs = network(inputs)
        prediction = Marked.apply(outputs[0] if kind == "no layers" else outputs)
        return prediction.square().sum(), prediction

    gc.collect()
    gc.disable()
    try:
        for number in range(4):
            if kind == "no layers" and not number:
                with pytest.warns(UserWarning, match="found no linear"):
                    optimizer.step(closure)
            elif kind == "error" and len(graphs) >= 2:
                with pytest.raises(hig.NonFiniteError):
                    optimizer.step(closure)
            else:
                optimizer.step(closure)
        alive = [graph() for graph in graphs if graph() is not None]
    finally:
        gc.enable()
    assert not alive and len(graphs) == 4


class Mark:
    """What lives as long as the graph."""
