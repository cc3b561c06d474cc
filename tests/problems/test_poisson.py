from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from problems import Poisson, PoissonSource
from problems._fields import math

GOLDEN = Path(__file__).parents[1] / "golden" / "poisson.npz"
DTYPES = [torch.float32, torch.float64]


def laplacian(x):
    p = pad(x, (1, 1, 1, 1))
    return p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2] - 4 * x


def case(samples=3, dtype=torch.float64, **parameters):
    torch.manual_seed(1)
    problem = Poisson(train_size=samples, test_size=1, **parameters)
    train, _ = problem.data(torch.Generator().manual_seed(2))
    batch = {name: values.to(dtype) for name, values in train.items()}
    return problem, problem.network().to(dtype), batch


def test_network_is_the_published_one():
    network = Poisson().network()
    assert [tuple(p.shape) for p in network.parameters() if p.ndim == 2] == [
        (64, 64), (128, 64), (64, 128), (64, 64),
    ]  # fmt: skip
    assert sum(p.numel() for p in network.parameters()) == 24896
    assert isinstance(network[1], torch.nn.Tanh)


@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prediction_is_the_laplacian_of_the_answer(size, dtype):
    problem, network, batch = case(dtype=dtype, size=size)
    prediction = problem.predict(network, batch)
    answers = [network(target.flatten()).view(size, size) for target in batch["target"]]
    assert prediction.dtype == dtype
    torch.testing.assert_close(prediction, laplacian(torch.stack(answers)))


def test_data():
    problem = Poisson(train_size=10, test_size=7, size=6)
    train, _ = problem.data(torch.Generator().manual_seed(4))
    assert train["truth"].shape == train["target"].shape == (10, 6, 6)
    torch.testing.assert_close(train["target"], laplacian(train["truth"]), rtol=0, atol=1e-13)


def test_data_are_of_the_scale_of_the_reference():
    with np.load(GOLDEN) as data:
        golden = dict(data)
    train, _ = Poisson().data(torch.Generator().manual_seed(4))
    np.testing.assert_allclose(golden["x_gt"].std((1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(train["truth"].std((1, 2), correction=0), 1, rtol=1e-6)
    ours = train["target"].std((1, 2), correction=0)
    theirs = golden["y_target"].std((1, 2))
    assert abs(theirs.mean() - ours.mean()) < 3 * ours.std() / len(theirs) ** 0.5


@pytest.mark.parametrize("size", [64, 700, 2000])
def test_batches_are_fresh_and_repeatable(size):
    problem = Poisson(train_size=3, size=4)
    train, _ = problem.data(torch.Generator().manual_seed(0))
    train = {name: values.float() for name, values in train.items()}

    def first(count, seed):
        batches = problem.batches(train, size, torch.Generator().manual_seed(seed))
        return [next(batches) for _ in range(count)]

    count = 1024 // size + 2  # beyond the first pool
    drawn = first(count, 1)
    for batch in drawn:
        assert batch["truth"].shape == batch["target"].shape == (size, 4, 4)
        assert batch["truth"].dtype == torch.float32
        torch.testing.assert_close(batch["target"], laplacian(batch["truth"]), rtol=0, atol=1e-5)
    corners = torch.cat([batch["truth"][:, 0, :2] for batch in drawn])
    assert len(corners.unique(dim=0)) == count * size
    for batch, again in zip(drawn, first(count, 1), strict=True):
        assert torch.equal(batch["target"], again["target"])
    assert not torch.equal(drawn[0]["truth"], first(1, 2)[0]["truth"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_is_the_sum_of_what_phiflow_calls_l2_loss(dtype):
    problem, network, batch = case(dtype=dtype)
    prediction = problem.predict(network, batch)
    loss = problem.loss(prediction, batch)
    difference = (prediction - batch["target"]).detach()
    with math.precision(64):
        wrapped = math.wrap(difference.double(), math.batch("samples"), math.spatial("x,y"))
        expected = float(math.sum(math.l2_loss(wrapped), "samples"))
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, prediction)
    torch.testing.assert_close(gradient, difference)
    assert Poisson.loss_reduction == "sum"


def dense_metric(size, power):
    """(L Lᵀ)^power of the Laplacian as a matrix."""
    cells = size**2
    matrix = laplacian(torch.eye(cells, dtype=torch.float64).view(cells, size, size)).flatten(1)
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors @ torch.diag(values**power) @ vectors.T


@pytest.mark.parametrize("size", [2, 5, 8])
def test_root_of_the_metric(size):
    fields = torch.randn(3, size, size, dtype=torch.float64)
    expected = fields.flatten(1) @ dense_metric(size, -1 / 8)
    found = Poisson(size=size).metric_root(fields)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-10, atol=1e-12)
    assert Poisson(size=size).metric_root(fields.float()).dtype == torch.float32
    expected = fields.flatten(1) @ dense_metric(size, 1 / 8)
    found = PoissonSource(size=size).metric_root(fields)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-10, atol=1e-12)


def test_the_metric_changes_the_gradient_and_not_the_loss():
    problem, network, batch = case(metric=True)
    prediction = problem.predict(network, batch)
    loss = problem.loss(prediction, batch)
    assert loss.item() == Poisson().loss(prediction, batch).item()
    (gradient,) = torch.autograd.grad(loss, prediction)
    residual = (prediction - batch["target"]).detach()
    expected = residual.flatten(1) @ dense_metric(8, -1 / 4)
    torch.testing.assert_close(gradient.flatten(1), expected, rtol=1e-10, atol=1e-12)


def test_metrics():
    problem, network, batch = case()
    metrics = problem.metrics(network, batch)
    answers = network(batch["target"].view(3, 64)).view(3, 8, 8)
    expected = np.mean(np.abs((answers - batch["truth"]).detach().numpy()))
    assert {name: value.shape for name, value in metrics.items()} == {"l1_distance": ()}
    assert metrics["l1_distance"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_example(dtype):
    problem, network, batch = case(dtype=dtype)
    example = problem.example(network, batch)
    assert set(example) == {"truth", "prediction", "quantity"}
    assert example["quantity"] == "solution"
    assert example["truth"].dtype == example["prediction"].dtype == np.float64
    np.testing.assert_array_equal(example["truth"], batch["truth"].double())
    expected = torch.as_tensor(example["prediction"]).to(dtype)
    torch.testing.assert_close(laplacian(expected), problem.predict(network, batch).detach())


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("size", 1, "size must be at least 2, got 1"),
        ("size", 0, "size must be at least 1, got 0"),
        ("train_size", 0, "train_size must be at least 1, got 0"),
        ("hidden", (64, 0), "each of hidden must be at least 1, got 0"),
    ],
)
def test_parameters(field, value, text):
    with pytest.raises(ValueError, match=text):
        Poisson(**{field: value})
