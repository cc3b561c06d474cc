import pytest
import torch
from torch import nn

from problems._networks import dense_network
from problems.pinn._jets import Jet, is_tanh_network, jet, propagate, tangents
from tests.problems.pinn.nested import Nested


class Wrapped(nn.Module):
    """The same network behind another type."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, points):
        return self.network(points)


def case(inputs=3, outputs=2, points=7, depth=3):
    torch.manual_seed(0)
    network = dense_network([inputs, *[8] * depth, outputs], nn.Tanh, nn.init.xavier_normal_)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.7)
    return network.double(), torch.randn(points, inputs, dtype=torch.float64)


def oracle(network, points, first, second):
    found = Nested(network, points)
    derivatives = [found.first(i) for i in range(first)]
    derivatives += [found.second(i) for i in range(second)]
    return found.value, torch.stack(derivatives, 1)


def gradients(value, derivatives, network):
    torch.manual_seed(1)
    scalar = (value.sin() * torch.randn_like(value)).sum()
    scalar = scalar + (derivatives.square() * torch.randn_like(derivatives)).sum()
    found = torch.autograd.grad(scalar, list(network.parameters()), materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize(("first", "second"), [(1, 0), (1, 1), (2, 1), (3, 0), (3, 2), (3, 3)])
@pytest.mark.parametrize("wrap", [lambda network: network, Wrapped])
def test_agrees_with_autograd_of_autograd(first, second, wrap):
    network, points = case()
    found = jet(wrap(network), points, first, second)
    value, derivatives = oracle(network, points, first, second)
    assert found.derivatives.shape == (7, first + second, 2)
    assert (found.value - value).abs().max() < 1e-12
    assert (found.derivatives - derivatives).abs().max() < 1e-12
    expected = gradients(value, derivatives, network)
    difference = gradients(*found, network) - expected
    assert difference.abs().max() < 1e-12 * expected.abs().max()


def test_backward_of_the_rule_by_finite_differences():
    network, points = case(points=2, depth=1)
    weights = [parameter.detach() for parameter in network.parameters()]

    def outputs(*weights):
        changed = dense_network([3, 8, 2], nn.Tanh).double()
        for parameter, weight in zip(changed.parameters(), weights, strict=True):
            parameter.requires_grad_(False).copy_(weight)
        for layer, pair in zip(changed[::2], [weights[:2], weights[2:]], strict=True):
            del layer.weight, layer.bias
            layer.weight, layer.bias = pair
        return tuple(jet(changed, points, 2, 1))

    inputs = [weight.requires_grad_() for weight in weights]
    assert torch.autograd.gradcheck(outputs, inputs)


def test_batched_cotangents_give_single_passes():
    network, points = case()
    found = jet(network, points, 2, 1).derivatives
    cotangents = torch.randn(4, *found.shape, dtype=found.dtype)
    parameters = list(network.parameters())[:-1]  # derivatives do not see the last bias
    together = torch.autograd.grad(
        found, parameters, cotangents, is_grads_batched=True, retain_graph=True
    )
    for index, cotangent in enumerate(cotangents):
        alone = torch.autograd.grad(found, parameters, cotangent, retain_graph=True)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[index], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrap", [lambda network: network, Wrapped])
def test_further_axes_and_no_gradients(wrap):
    network, points = case(points=6)
    with torch.no_grad():
        flat = jet(wrap(network), points, 2, 1)
        paired = jet(wrap(network), points.view(3, 2, 3), 2, 1)
    for a, b in zip(flat, paired, strict=True):
        assert not b.requires_grad
        torch.testing.assert_close(a, b.flatten(0, 1), rtol=1e-12, atol=1e-14)


def test_without_derivatives_it_is_the_network():
    network, points = case()
    value, derivatives = jet(network, points, 0, 0)
    assert torch.equal(value, network(points))
    assert derivatives.shape == (7, 0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_of_the_network(dtype):
    network, points = case()
    for kind in (network, Wrapped(network)):
        found = jet(kind.to(dtype), points.to(dtype), 2, 1)
        assert found.value.dtype == found.derivatives.dtype == dtype


def test_only_plain_networks_are_propagated():
    class Doubled(nn.Linear):
        def forward(self, values):
            return 2 * super().forward(values)

    network, points = case()
    assert is_tanh_network(network)
    assert not is_tanh_network(Wrapped(network))
    other = nn.Sequential(Doubled(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    assert not is_tanh_network(other)
    found = jet(other, points, 1, 1)
    for a, b in zip(found, oracle(other, points, 1, 1), strict=True):
        assert (a - b).abs().max() < 1e-12


def test_a_rule_may_do_anything_with_the_channels():
    network, points = case(depth=1)
    start = Jet(points, tangents(points, 3, 0))
    value, channels = propagate(network, start, lambda z, channels: (z, 2 * channels))
    product = network[2].weight @ network[0].weight
    torch.testing.assert_close(value, network[2](network[0](points)))
    torch.testing.assert_close(channels, 2 * product.T.expand(7, -1, -1))


@pytest.mark.parametrize(("first", "second"), [(1, 2), (4, 0), (2, -1)])
def test_derivatives_that_are_not_there(first, second):
    network, points = case()
    with pytest.raises(ValueError, match="0 <= second <= first <= 3 inputs, got first"):
        jet(network, points, first, second)
