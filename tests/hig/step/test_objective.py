"""Bad closures and non-finite numbers: a named error before any parameter has changed."""

import pytest
import torch
from torch import nn

import hig
from tests.textbook import flat


def setup(make):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    inputs = torch.randn(5, 3)
    return network, lambda: make(network, inputs)


def mean_square(prediction):
    return prediction.square().mean()


def no_pair(network, inputs):
    return mean_square(network(inputs))


def numpy_prediction(network, inputs):
    prediction = network(inputs)
    return mean_square(prediction), prediction.detach().numpy()


def detached(network, inputs):
    prediction = network(inputs)
    return mean_square(prediction), prediction.detach()


def detached_loss(network, inputs):
    prediction = network(inputs)
    return mean_square(prediction).detach(), prediction


def copied(network, inputs):
    prediction = network(inputs)
    return mean_square(prediction), prediction.clone()


def vector_loss(network, inputs):
    prediction = network(inputs)
    return prediction.square(), prediction


def penalty(network, inputs):
    prediction = network(inputs)
    return mean_square(prediction) + 0.1 * network[0].weight.square().sum(), prediction


def control_cost(network, inputs):
    controls = network(inputs)
    prediction = controls.sin()
    return mean_square(prediction) + 0.1 * mean_square(controls), prediction


def complex_prediction(network, inputs):
    prediction = torch.complex(network(inputs), network(inputs))
    return prediction.abs().square().mean(), prediction


def no_parameters(network, inputs):
    prediction = inputs.clone().requires_grad_() * 2
    return mean_square(prediction), prediction


def scalar_prediction(network, inputs):
    prediction = network(inputs).sum()
    return prediction.square(), prediction


def pairs(network, inputs):
    prediction = network(inputs)
    return [(mean_square(prediction), prediction)] * 2


def parts_of_a_prediction(network, inputs):
    inside, walls = network(inputs), network(inputs[:2])
    return mean_square(inside) + mean_square(walls), torch.cat([inside, walls])


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (pairs, ValueError, "got 2 pairs of these; hig.MultiHIG accepts several"),
        (lambda *given: pairs(*given)[:1], ValueError, "got 1 pairs of these"),
        (parts_of_a_prediction, ValueError, r"not depend .*from pieces of it \(whole.split\)"),
        (no_pair, ValueError, r"must return \(loss, prediction\), got Tensor"),
        (numpy_prediction, TypeError, "prediction must be a tensor, got ndarray"),
        (detached, ValueError, "no gradient graph"),
        (detached_loss, ValueError, "the loss carries no gradient graph"),
        (copied, ValueError, "the loss does not depend on the prediction"),
        (vector_loss, ValueError, r"loss must be a scalar, got shape \(5, 2\)"),
        (penalty, ValueError, r"parameter of shape \(4, 3\) other than through"),
        (penalty, ValueError, "keep penalties on parameters out"),
        (control_cost, ValueError, r"other than through .* controls for their cost \(torch.cat\)"),
        (complex_prediction, TypeError, "view_as_real"),
        (no_parameters, ValueError, "none of the parameters"),
        (scalar_prediction, ValueError, r"prediction must be \(batch, ...\)"),
    ],
)
def test_a_wrong_closure_is_explained(make, error, match):
    network, closure = setup(make)
    before = flat(network.parameters()).clone()
    with pytest.raises(error, match=match):
        hig.HIG(network.parameters()).step(closure)
    assert torch.equal(flat(network.parameters()), before)


def test_a_control_cost_is_taken_as_the_error_text_says():
    def joined(network, inputs):
        controls = network(inputs)
        prediction = torch.cat([controls.sin(), controls], 1)
        outcome, cost = prediction.split(2, 1)
        return mean_square(outcome - 1) + 0.1 * mean_square(cost), prediction

    network, closure = setup(joined)
    optimizer = hig.LevenbergMarquardt(network.parameters(), step_rule="trust")
    losses = [float(optimizer.step(closure)) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def nan_for_some_samples(network, inputs):
    prediction = network(inputs) * torch.tensor([1, 1, float("nan"), 1, float("inf")])[:, None]
    return mean_square(prediction), prediction


def nan_loss(network, inputs):
    prediction = network(inputs)
    return mean_square(prediction) * float("nan"), prediction


def infinite_loss_gradient(network, inputs):
    prediction = network(inputs)
    shifted = prediction - prediction.detach()
    return shifted.abs().sqrt().mean(), prediction


class InfiniteSlope(torch.autograd.Function):
    """The identity, with a derivative that is infinite for the fourth sample."""

    @staticmethod
    def forward(values):
        return values.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        factor = torch.ones(5, 1)
        factor[3] = float("inf")
        return torch.where(gradient == 0, gradient, gradient * factor)

    generate_vmap_rule = True


def infinite_jacobian(network, inputs):
    prediction = InfiniteSlope.apply(network(inputs))
    return mean_square(prediction), prediction


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (nan_for_some_samples, r"2 of 5 samples: \[2, 4\]"),
        (nan_loss, "the loss is nan although the prediction is finite"),
        (infinite_loss_gradient, "the gradient of the loss holds NaN or Inf"),
        (infinite_jacobian, r"Jacobian holds NaN or Inf.*samples \[3\].*2.weight"),
    ],
)
@pytest.mark.parametrize("kind", [hig.HIG, hig.LevenbergMarquardt])
@pytest.mark.parametrize("engine", ["auto", "rows"])
def test_non_finite_numbers_change_nothing(make, match, kind, engine):
    network, closure = setup(make)
    before = flat(network.parameters()).clone()
    with pytest.raises(hig.NonFiniteError, match=match):
        kind(network.named_parameters(), engine=engine).step(closure)
    assert torch.equal(flat(network.parameters()), before)


def test_an_error_inside_the_closure_changes_nothing_and_leaves_no_mode_behind():
    def broken(network, inputs):
        network(inputs)
        raise KeyError("simulator")

    network, closure = setup(broken)
    before = flat(network.parameters()).clone()
    with pytest.raises(KeyError, match="simulator"):
        hig.HIG(network.parameters()).step(closure)
    assert torch.equal(flat(network.parameters()), before)
    assert not torch.overrides._get_current_function_mode_stack()
