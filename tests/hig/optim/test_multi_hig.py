"""One half-inverse direction per loss, combined, against the same written out with autograd."""

import copy

import pytest
import torch
from torch import nn

import hig
from tests.textbook import flat, relative_error, step_of, textbook_jacobian, textbook_power


def added(matrix):
    return matrix.sum(0)


def unit_sum(matrix):
    return (matrix / matrix.norm(dim=1, keepdim=True)).sum(0)


def two_losses(dtype=torch.float64):
    """Two batches of different size through one network, one loss on the slope of the outputs."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    inside, walls = torch.randn(7, 2, dtype=dtype), torch.randn(4, 2, dtype=dtype)

    def closure():
        residual = network(inside) * torch.tensor([1.0, 1e-3, 10.0], dtype=dtype) - 1
        boundary = network(walls)[:, :2] + 0.5
        return [(residual.square().mean(), residual), (boundary.square().mean(), boundary)]

    return network, closure


def directions_of(network, closure, kappa=-0.5, rcond=1e-6):
    rows = []
    for loss, prediction in closure():
        (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
        jacobian = textbook_jacobian(prediction, network.parameters())
        rows.append(textbook_power(jacobian, gradient.flatten(), kappa, rcond))
    return torch.stack(rows)


@pytest.mark.parametrize("kappa", [-0.5, -1.0])
@pytest.mark.parametrize("engine", ["auto", "layerwise", "rows"])
def test_the_step_combines_the_directions_of_the_losses(engine, kappa):
    network, closure = two_losses()
    expected = -0.3 * unit_sum(directions_of(network, closure, kappa))
    optimizer = hig.MultiHIG(
        network.parameters(), lr=0.3, kappa=kappa, operator=unit_sum, engine=engine
    )
    assert relative_error(step_of(optimizer, closure), expected) < 1e-9


def test_batches_of_different_size_go_layer_by_layer():
    network, closure = two_losses()
    optimizer = hig.MultiHIG(network.parameters(), operator=added)
    optimizer.step(closure)
    assert [part.engine for part in optimizer.report.parts] == ["layerwise", "layerwise"]
    assert [part.rows for part in optimizer.report.parts] == [21, 8]
    assert not any(part.notes for part in optimizer.report.parts)


def test_losses_may_share_the_forward_pass():
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs = torch.randn(5, 2, dtype=torch.float64)
    calls = []

    def closure():
        calls.append(1)
        features = network(inputs)
        first, second = features[:, :1], features[:, 1:]
        return [(first.square().sum(), first), ((second - 1).square().sum(), second)]

    expected = -added(directions_of(network, closure))
    calls.clear()
    optimizer = hig.MultiHIG(network.parameters(), operator=added)
    assert relative_error(step_of(optimizer, closure), expected) < 1e-9
    assert len(calls) == 1
    assert all(part.engine == "layerwise" for part in optimizer.report.parts)


def test_a_single_loss_is_the_half_inverse_step():
    network, closure = two_losses()
    twin = copy.deepcopy(network)
    multi = hig.MultiHIG(network.parameters(), operator=added)
    found = step_of(multi, lambda: closure()[:1])
    network.load_state_dict(twin.state_dict())
    expected = step_of(
        hig.HIG(network.parameters(), rcond=1e-6, step_rule="fixed"), lambda: closure()[0]
    )
    # The columns come in another order: what is rounding of J is 1e6 times as much of the step.
    assert relative_error(found, expected) < 1e6 * torch.finfo(torch.float64).eps


def test_a_parameter_of_one_loss_alone():
    network, closure = two_losses()
    offset = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def with_offset():
        (_, residual), other = closure()
        residual = residual + offset
        return [(residual.square().mean(), residual), other]

    optimizer = hig.MultiHIG([*network.parameters(), offset], operator=added)
    optimizer.step(with_offset)
    assert (offset.detach().abs() > 0).all()


def test_conflict_free_by_default():
    network, closure = two_losses()
    optimizer = hig.MultiHIG(network.parameters(), lr=0.1)
    matrix = directions_of(network, closure)
    moved = -step_of(optimizer, closure)
    cosines = matrix @ moved / (matrix.norm(dim=1) * moved.norm())
    assert float(cosines.min()) > 0.1
    torch.testing.assert_close(cosines[0], cosines[1])
    torch.testing.assert_close(optimizer.report.cosines, cosines)
    assert optimizer.report.smallest_cosine == pytest.approx(float(cosines.min()))


def test_the_slopes_are_those_of_the_losses():
    network, closure = two_losses()
    before = torch.stack([loss.detach() for loss, _ in closure()])
    optimizer = hig.MultiHIG(network.parameters(), lr=1e-7, operator=added)
    optimizer.step(closure)
    after = torch.stack([loss.detach() for loss, _ in closure()])
    torch.testing.assert_close((before - after) / 1e-7, optimizer.report.slopes, rtol=1e-4, atol=0)


@pytest.mark.parametrize("step_rule", ["trust", "line_search"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rules_look_at_the_sum_of_the_losses(step_rule, dtype):
    network, closure = two_losses(dtype)
    optimizer = hig.MultiHIG(network.parameters(), rcond=1e-3, step_rule=step_rule)
    losses = [float(optimizer.step(closure)) for _ in range(40)]
    assert losses[0] == pytest.approx(float(optimizer_loss(two_losses(dtype)[1])), rel=1e-6)
    assert losses[-1] < 0.15 * losses[0]
    assert all(parameter.dtype == dtype for parameter in network.parameters())


def optimizer_loss(closure):
    return sum(loss.detach() for loss, _ in closure())


def test_the_quadratic_model_is_exact_for_a_linear_network():
    network = nn.Linear(2, 3).double()
    inputs = torch.randn(6, 2, dtype=torch.float64)

    def closure():
        first, second = network(inputs)[:4], network(inputs)[2:] - 1
        return [(first.square().sum(), first), (second.square().sum(), second)]

    optimizer = hig.MultiHIG(network.parameters(), step_rule="trust", engine="rows")
    optimizer.step(closure)
    assert optimizer.report.gain_ratio == pytest.approx(1.0)


def test_groups_keep_their_own_step_sizes():
    network, closure = two_losses()
    expected = directions_of(network, closure).sum(0)
    sizes = [parameter.numel() for parameter in network.parameters()]
    first, second = expected.split([sum(sizes[:2]), sum(sizes[2:])])
    groups = [
        {"params": network[0].parameters(), "lr": 0.2},
        {"params": network[2].parameters(), "lr": 0.0},
    ]
    found = step_of(hig.MultiHIG(groups, operator=added), closure)
    assert relative_error(found, torch.cat([-0.2 * first, 0 * second])) < 1e-9


def test_report_in_words():
    network, closure = two_losses()
    optimizer = hig.MultiHIG(network.parameters(), step_rule="trust")
    optimizer.step(closure)
    text = str(optimizer.report)
    assert text.startswith("losses ")
    assert optimizer.report.losses.shape == (2,)
    assert float(optimizer.report.loss) == pytest.approx(float(optimizer.report.losses.sum()))
    for part in ("ranks ", "smallest cosine ", "step size ", "gain ratio ", "ms: "):
        assert part in text
    assert f"smallest slope {float(optimizer.report.slopes.min()):.3g}" in text
    assert "raises" not in text


def refuse(outcome, error, match, **options):
    network, _ = two_losses()
    before = flat(network.parameters()).clone()
    optimizer = hig.MultiHIG(network.parameters(), **options)
    with pytest.raises(error, match=match):
        optimizer.step(lambda: outcome(network))
    assert torch.equal(flat(network.parameters()), before)


def pair(network, scale=1.0):
    prediction = network(torch.ones(3, 2, dtype=torch.float64)) * scale
    return prediction.square().sum(), prediction


@pytest.mark.parametrize(
    ("outcome", "found"),
    [
        (lambda network: pair(network), r"a tuple of 2 whose element 0 is a tensor of shape \(\)"),
        (lambda network: pair(network)[0], r"a tensor of shape \(\)"),
        (lambda network: [], "an empty list"),
        (lambda network: [pair(network), 2.0], "a list of 2 whose element 1 is 2.0"),
        (lambda network: [pair(network)[:1]], "a list of 1 whose element 0 is a tuple of 1"),
    ],
)
def test_what_is_no_list_of_pairs(outcome, found):
    refuse(outcome, ValueError, rf"\(loss, prediction\) pairs, got {found}; pair each loss")


BAD_LOSSES = pytest.mark.parametrize(
    ("of", "error", "match"),
    [
        (lambda loss: 1.0, TypeError, "loss 1 must be a tensor, got 1.0"),
        (lambda loss: loss * torch.ones(3), ValueError, r"loss 1 must be a scalar, got shape"),
        (lambda loss: loss.long(), TypeError, "loss 1 must be real floating point"),
        (lambda loss: loss * float("nan"), hig.NonFiniteError, "loss 1 is nan although prediction"),
        (lambda loss: loss / 0, hig.NonFiniteError, "loss 1 is inf .*unchanged"),
        (lambda loss: (loss * 0).sqrt(), hig.NonFiniteError, "loss 1"),
    ],
)


@BAD_LOSSES
@pytest.mark.parametrize("shared", [True, False])
def test_a_bad_loss_is_named_by_its_number(of, error, match, shared):
    def outcome(network):
        first = pair(network)
        loss, prediction = first if shared else pair(network)
        return [first, (of(loss), prediction)]

    refuse(outcome, error, match)


def test_a_bad_prediction_is_named_by_its_number():
    def outcome(network, scale):
        return [pair(network), pair(network, scale)]

    refuse(lambda network: outcome(network, float("nan")), hig.NonFiniteError, "prediction 1 holds")

    def stray(network):
        first, second = pair(network), pair(network)
        return [first, (first[0], second[1])]

    refuse(stray, ValueError, "for loss 1 of 2: the loss does not depend on the prediction")


def test_a_loss_without_a_graph_is_refused():
    def outcome(network):
        loss, prediction = pair(network)
        return [(loss, prediction), (loss.detach(), prediction)]

    refuse(outcome, ValueError, "loss 1 carries no gradient graph")


def test_operators_of_another_shape():
    refuse(
        lambda network: [pair(network), pair(network)],
        ValueError,
        r"operator must map \(2, 39\) to one of shape \(39,\), got \(2, 39\)",
        operator=lambda matrix: matrix,
    )
    refuse(
        lambda network: [pair(network), pair(network)],
        TypeError,
        r"to a tensor of shape \(39,\), got None",
        operator=lambda matrix: None,
    )
