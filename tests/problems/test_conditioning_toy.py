import math

import numpy as np
import pytest
import torch

from problems.conditioning_toy import ConditioningToy


def case(problem, dtype=torch.float64):
    train, _ = problem.data(torch.Generator().manual_seed(3))
    return problem.network().to(dtype), {key: value.to(dtype) for key, value in train.items()}


def test_data_are_uniform():
    problem = ConditioningToy(train_size=2000, test_size=7)
    train, test = problem.data(torch.Generator().manual_seed(4))
    x = train["x"]
    assert (x.shape, test["target"].shape) == ((2000, 1), (7, 2))
    quarters = torch.histc(x, 4, min=-1, max=1)
    assert ((quarters - 500).abs() < 100).all()


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_agrees_with_the_formula_sample_by_sample(scale):
    problem = ConditioningToy(scale=scale, train_size=5)
    network, batch = case(problem)
    prediction = problem.predict(network, batch)
    losses = []
    for x, row in zip(batch["x"][:, 0].tolist(), prediction.tolist(), strict=True):
        y = network(torch.tensor([x], dtype=torch.float64)).tolist()
        assert row == pytest.approx([y[0], scale * y[1]], rel=1e-12)
        first, second = y[0] - math.sin(6 * x), scale * y[1] - math.cos(9 * x)
        losses.append(0.5 * first**2 + 0.5 * second**2)
    assert problem.loss(prediction, batch).item() == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_of_the_network(dtype):
    problem = ConditioningToy(train_size=5)
    network, batch = case(problem, dtype)
    prediction = problem.predict(network, batch)
    assert prediction.dtype == problem.loss(prediction, batch).dtype == dtype


def gradient_norm(scale, output):
    torch.manual_seed(0)
    problem = ConditioningToy(scale=scale, train_size=50)
    network, batch = case(problem)
    output = problem.predict(network, batch)[:, output].sum()
    gradients = torch.autograd.grad(output, network.parameters())
    return torch.cat([gradient.flatten() for gradient in gradients]).norm().item()


def test_scale_is_that_of_the_second_output():
    assert gradient_norm(0.01, output=0) == gradient_norm(1.0, output=0)
    assert gradient_norm(0.01, output=1) == pytest.approx(0.01 * gradient_norm(1.0, output=1))


def test_metrics_of_chosen_neurons():
    problem = ConditioningToy(hidden=(3,))
    network = problem.network().double()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[0.0], [1.0], [100.0]]))
        network[0].bias.copy_(torch.tensor([20.0, 0.0, 0.0]))
    x = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    metrics = problem.metrics(network, {"x": x})
    # Saturated for all samples; in its linear range; saturated on either side of zero.
    assert metrics["activation_mean"].tolist() == pytest.approx([1, 0, 0])
    assert metrics["activation_spread"].tolist() == pytest.approx([0, math.tanh(0.5), 1])


def test_example_is_sorted_and_belongs_together():
    problem = ConditioningToy(train_size=9)
    network, batch = case(problem)
    example = problem.example(network, batch)
    assert {key: value.shape for key, value in example.items()} == {
        "x": (9,),
        "prediction": (9, 2),
        "target": (9, 2),
    }
    assert np.all(np.diff(example["x"]) > 0)
    np.testing.assert_allclose(example["target"][:, 1], np.cos(9 * example["x"]))
    x = torch.from_numpy(example["x"])[:, None]
    np.testing.assert_allclose(
        example["prediction"], problem.predict(network, {"x": x}).detach(), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("scale", 0.0), ("scale", math.nan), ("train_size", 0), ("hidden", (7, 0))],
)
def test_parameters_must_be_positive(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*, got .*; the default is"):
        ConditioningToy(**{field: value})
