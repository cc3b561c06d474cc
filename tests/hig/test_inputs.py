"""Inputs, predictions, losses and parameters of all kinds that torch's own optimisers take."""

import warnings

import pytest
import torch
from torch import nn

import hig
from hig._torch.autograd_graph import origin, plain
from tests.textbook import flat, relative_error


class Points:
    """Stands for a tensor without being one, as torchphysics' points do."""

    def __init__(self, values):
        self.values = values
        self.space = "x"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        def bare(item):
            if isinstance(item, tuple | list):
                return type(item)(map(bare, item))
            return item.values if isinstance(item, cls) else item

        return func(*map(bare, args), **{k: bare(v) for k, v in (kwargs or {}).items()})


class Wrapped(Points):
    """Results of operations are of the same class."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs)
        return cls(found) if isinstance(found, torch.Tensor) else found

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        method = getattr(torch.Tensor, name)
        kind = type(self)
        return lambda *args, **kwargs: kind.__torch_function__(
            method, (kind,), (self, *args), kwargs
        )


class Labelled(torch.Tensor):
    """A tensor whose columns have labels, as PINA's; its own methods do other things."""

    @staticmethod
    def __new__(cls, values, labels=()):
        return values.as_subclass(cls)

    def __init__(self, values, labels=()):
        self.labels = list(labels)

    def __getitem__(self, index):
        raise KeyError("labels are wanted")

    def view_as(self, other):
        raise KeyError("labels are wanted")


class Subclass(torch.Tensor):
    """A tensor that only has another name."""


KINDS = {
    "points": Points,
    "wrapped": Wrapped,
    "labelled": Labelled,
    "subclass": lambda x: x.as_subclass(Subclass),
    "parameter": lambda x: nn.Parameter(x, requires_grad=False),
}


class OneOfSeveral(hig.MultiHIG):
    def step(self, closure):
        def both():
            loss, prediction = closure()
            return [(loss, prediction), (torch.mul(loss, 3), prediction)]

        return super().step(both)


def recorded(params):
    params = list(params)

    class Recorded(torch.optim.SGD):
        def step(self, closure):
            with hig.record(params) as record:
                loss, prediction = closure()
            record.backward(loss, prediction, filter=hig.HalfInverse(rcond=1e-4))
            super().step()

    return Recorded(params, lr=0.1)


STEPS = {
    "hig": lambda p: hig.HIG(p, rcond=1e-4),
    "layerwise": lambda p: hig.HIG(p, rcond=1e-4, engine="layerwise"),
    "rows": lambda p: hig.HIG(p, rcond=1e-4, engine="rows"),
    "lanczos": lambda p: hig.HIG(p, rcond=1e-3, method="lanczos"),
    "trust": lambda p: hig.GaussNewton(p, rcond=1e-4, step_rule="trust"),
    "levenberg": lambda p: hig.LevenbergMarquardt(p, lr=0.5),
    "kronecker": lambda p: hig.KroneckerHIG(p, probe_every=1),
    "multi": lambda p: OneOfSeveral(p, rcond=1e-4, step_rule="trust"),
    "record": recorded,
}


ROW_BY_ROW = {name: make for name, make in STEPS.items() if name != "layerwise"}


def stepped(make, wrap=lambda x: x, around=lambda x: x, around_loss=lambda x: x, convolution=False):
    """Parameters after two steps of a network whose input, output or loss are something else."""
    torch.manual_seed(0)
    if convolution:
        network = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2))
    else:
        network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    network.double()
    inputs = torch.rand((12, 2, 4) if convolution else (12, 2), dtype=torch.float64)
    optimizer = make(network.parameters())

    def closure():
        prediction = around(plain(network(wrap(inputs)), "it"))
        values = torch.add(prediction, -1)  # by torch: objects have no operators
        loss = around_loss(torch.div(torch.sum(torch.square(values)), 12))
        return loss, prediction

    for _ in range(2):
        optimizer.step(closure)
    return flat(network.parameters()), optimizer


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_inputs_of_layers(make, kind, convolution):
    expected, _ = stepped(make, convolution=convolution)
    found, optimizer = stepped(make, wrap=KINDS[kind], convolution=convolution)
    assert relative_error(found, expected) < 1e-9
    report = getattr(optimizer, "report", None)
    if isinstance(report, hig.StepReport) and report.engine != "rows":
        assert report.engine == "layerwise", report.notes


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "parameter"])
@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_predictions_and_losses(make, kind):
    expected, _ = stepped(make)
    found, _ = stepped(make, around=KINDS[kind])
    assert relative_error(found, expected) < 1e-9
    found, _ = stepped(make, around_loss=lambda loss: KINDS[kind](plain(loss, "it")))
    assert relative_error(found, expected) < 1e-9


def test_the_graph_of_a_subclass_is_that_of_its_values():
    x = torch.ones(3, requires_grad=True)
    values = (2 * x).as_subclass(Subclass)
    found = plain(values, "it")
    assert type(found) is torch.Tensor
    loss = values.square().sum()
    (gradient,) = torch.autograd.grad(loss, origin(found), retain_graph=True)
    assert torch.equal(plain(gradient, "it"), torch.full((3,), 4.0))
    (back,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(back, torch.full((3,), 2.0))


class Two(Points):
    """Holds two tensors with a graph."""

    def __init__(self, values):
        super().__init__(values)
        self.more = 2 * values


def test_an_object_that_holds_several_tensors():
    with pytest.raises(TypeError, match="the prediction must be a tensor, got Two, which holds 2"):
        stepped(STEPS["hig"], around=Two)


@pytest.mark.filterwarnings("ignore")  # that masked tensors are a prototype
def test_tensors_that_are_kept_in_parts():
    network = nn.Linear(3, 2)

    def closure():
        prediction = network(torch.ones(4, 3))
        masked = torch.masked.masked_tensor(prediction.detach(), torch.ones(4, 2, dtype=torch.bool))
        return prediction.sum(), masked

    with pytest.raises(TypeError, match=r"got MaskedTensor.*to_tensor"):
        hig.HIG(network.parameters()).step(closure)


# -- parameters -------------------------------------------------------------------------------


def lazily(function, *arguments, **options):
    with warnings.catch_warnings():  # some versions of torch call lazy modules new
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


def lazy_network():
    return nn.Sequential(
        lazily(nn.LazyLinear, 5), nn.Tanh(), lazily(nn.LazyBatchNorm1d), lazily(nn.LazyLinear, 2)
    )


@pytest.mark.parametrize("make", ROW_BY_ROW.values(), ids=ROW_BY_ROW)
def test_lazy_modules_whose_first_call_is_the_closure(make):
    x, results = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)), []
    for called in (True, False):
        torch.manual_seed(0)
        network = lazy_network()
        if called:
            lazily(network, x)
            network[2].reset_running_stats()
        optimizer = make(network.parameters())

        def closure(network=network):
            prediction = network(x)
            return (prediction - 1).square().mean(), prediction

        for _ in range(2):
            lazily(optimizer.step, closure)
        assert int(network[2].num_batches_tracked) == 2
        results.append(flat(network.parameters()))
    assert torch.equal(*results)


def test_a_lazy_module_has_a_name_in_the_report():
    network = nn.Sequential(lazily(nn.LazyLinear, 2))
    unused = nn.Linear(2, 2)
    optimizer = hig.HIG([*network.parameters(), *unused.parameters()])

    def closure():
        prediction = network(torch.ones(4, 3))
        return prediction.square().mean(), prediction

    lazily(optimizer.step, closure)
    assert "parameter 2 (2, 2)" in str(optimizer.report)


class Classes(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 3, sparse=sparse)
        self.other = nn.Embedding(4, 3, sparse=sparse)
        self.last = nn.Linear(3, 2)

    def forward(self, index):
        return self.last(torch.tanh(self.embedding(index) + self.other(index % 4)))


@pytest.mark.parametrize("make", ROW_BY_ROW.values(), ids=ROW_BY_ROW)
def test_sparse_embeddings(make):
    index, results = torch.tensor([0, 2, 2, 4, 1]), []
    for sparse in (False, True):
        network = Classes(sparse).double()
        optimizer = make(network.parameters())

        def closure(network=network):
            prediction = network(index)
            return (prediction - 1).square().mean(), prediction

        for _ in range(2):
            optimizer.step(closure)
        results.append(flat(network.parameters()))
    assert relative_error(*results) < 1e-9


def test_a_gradient_that_is_sparse_already():
    network, index = Classes(True), torch.tensor([0, 2, 1])
    network(index).square().mean().backward()
    before = network.embedding.weight.grad.to_dense()
    with hig.record(network.parameters()) as record:
        prediction = network(index)
        loss = prediction.square().mean()
    record.backward(loss, prediction, filter=hig.HalfInverse())
    found = network.embedding.weight.grad - before
    network.zero_grad()
    record.backward(loss, prediction, filter=hig.HalfInverse())
    assert torch.allclose(found, network.embedding.weight.grad, atol=1e-5)


class Phased(nn.Module):
    """Complex factors of the Fourier coefficients, as a frozen parameter or a buffer."""

    def __init__(self, parameter):
        super().__init__()
        torch.manual_seed(0)
        phase = torch.polar(torch.ones(5), torch.linspace(0, 1, 5))
        count = torch.tensor(3)
        self.layer = nn.Linear(8, 8)
        if parameter:
            self.phase = nn.Parameter(phase, requires_grad=False)
            self.count = nn.Parameter(count, requires_grad=False)
        else:
            self.register_buffer("phase", phase)
            self.register_buffer("count", count)

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(self.layer(x)) * self.phase, n=8) / self.count


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_frozen_parameters_of_other_types(make):
    x = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    results = []
    for parameter in (False, True):
        network = Phased(parameter)
        optimizer = make(network.parameters())

        def closure(network=network):
            prediction = network(x)
            return (prediction - 1).square().mean(), prediction

        optimizer.step(closure)
        results.append(flat(network.layer.parameters()))
    assert torch.equal(*results)


def test_a_complex_parameter_that_is_trained_later():
    network, x = Phased(True), torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    optimizer = hig.HIG(network.parameters())

    def closure():
        prediction = network(x)
        return (prediction - 1).square().sum(1).mean(), prediction

    optimizer.step(closure)
    columns, start = optimizer.report.columns, network.phase.clone()
    network.phase.requires_grad_()
    optimizer.step(closure)
    assert optimizer.report.columns == columns + 10
    assert not torch.equal(network.phase, start)
