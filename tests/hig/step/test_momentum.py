"""Momentum, whole and projected, against dense matrices in float64."""

import pytest
import torch
from torch import nn

import hig
from tests.hig.networks import LAYERED, least_squares
from tests.textbook import flat, relative_error, step_of, textbook_jacobian, textbook_power

MU, RCOND, DAMPING = 0.7, 0.05, 1e-2
KINDS = pytest.mark.parametrize("kind", ["plain", "projected"])


FIXED = {"step_rule": "fixed"}


def problem(samples=5, name="narrow", dtype=torch.float64):
    torch.manual_seed(0)
    network = LAYERED[name][0]().to(dtype)
    return network, least_squares(network, torch.randn(samples, 4, dtype=dtype))


def damped(parameters, lr, **options):
    optimizer = hig.HIG(parameters, lr=lr, **FIXED | options)
    optimizer.filter = hig.Damped(DAMPING)
    return optimizer


def truncated(make):
    return lambda parameters, lr, **options: make(parameters, lr=lr, rcond=RCOND, **FIXED | options)


OPTIMIZERS = {
    "hig": truncated(hig.HIG),
    "gn": truncated(hig.GaussNewton),
    "lm": lambda *args, **options: hig.LevenbergMarquardt(
        *args, damping=DAMPING, **FIXED | options
    ),
    "damped": damped,
    "damped and cut": truncated(hig.LevenbergMarquardt),
}


def textbook_direction(filter, jacobian, gradient, last, kind):
    """The direction from all singular vectors, and for a damped filter as SPRING writes it."""
    if isinstance(filter, hig.HalfInverse):
        own = textbook_power(jacobian, gradient, filter.kappa, filter.rcond)
        if kind == "plain":
            return own + MU * last
        values, right = torch.linalg.svd(jacobian, full_matrices=False)[1:]
        seen = right[values > filter.rcond * values.max()]
        return own + MU * (last - seen.T @ (seen @ last))
    left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
    kept = values > filter.rcond * values.max()
    jacobian = left[:, kept] @ torch.diag(values[kept]) @ right[kept]
    if kind == "projected":
        gradient = gradient - MU * jacobian @ last
    shifted = jacobian @ jacobian.T + filter.damping * torch.eye(len(jacobian)).double()
    return MU * last + jacobian.T @ torch.linalg.solve(shifted, gradient)


def linearised(network, closure):
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    return textbook_jacobian(prediction, network.parameters()), gradient.flatten()


def follow(optimizer, network, kind, samples=5, rates=0.02):
    """Compare steps with the textbook's; return how much momentum changed the last of them."""
    last = torch.zeros_like(flat(network.parameters()))
    for _ in range(4):
        closure = least_squares(network, torch.randn(samples, 4, dtype=torch.float64))
        jacobian, gradient = linearised(network, closure)
        own = textbook_direction(optimizer.filter, jacobian, gradient, 0 * last, kind)
        last = textbook_direction(optimizer.filter, jacobian, gradient, last, kind)
        assert relative_error(step_of(optimizer, closure), -rates * last) < 1e-8
    return relative_error(last, own)


@KINDS
@pytest.mark.parametrize("engine", ["layerwise", "rows"])
@pytest.mark.parametrize("method", ["gram", "svd", "lanczos"])
@pytest.mark.parametrize(("samples", "side"), [(5, "row_gram"), (9, "column_gram")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_the_formula(name, samples, side, method, engine, kind):
    network, _ = problem()
    options = {"engine": engine, "method": hig.Lanczos(1e-12) if method == "lanczos" else method}
    optimizer = OPTIMIZERS[name](
        network.parameters(), 0.02, momentum=MU, momentum_kind=kind, **options
    )
    assert follow(optimizer, network, kind, samples) > 0.01
    report = optimizer.report
    assert report.route == (side if method == "gram" else method)
    if report.rcond == RCOND and method != "lanczos":
        assert report.rank < min(report.rows, report.columns)  # what is cut is there


@KINDS
def test_learning_rates_of_groups_scale_the_step_and_not_the_memory(kind):
    network, _ = problem()
    groups = [{"params": network[0].parameters(), "lr": 0.03}, {"params": network[2].parameters()}]
    optimizer = OPTIMIZERS["hig"](groups, 0.01, momentum=MU, momentum_kind=kind)
    rates = torch.tensor([0.03] * 10 + [0.01] * 9, dtype=torch.float64)
    follow(optimizer, network, kind, rates=rates)


@KINDS
def test_parameters_that_a_batch_does_not_reach_or_that_were_frozen(kind):
    """Their columns are zero; what thaws has no past."""
    torch.manual_seed(0)
    heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 2)]).double()
    inputs, turn = torch.randn(3, 4).double(), [0]

    def closure():
        prediction = heads[turn[0]](inputs).tanh() + heads[2](inputs)
        return (prediction - 1).square().sum(), prediction

    optimizer = OPTIMIZERS["hig"](heads.parameters(), 0.02, momentum=MU, momentum_kind=kind)
    last = torch.zeros(30).double()
    for turn[0], trained in [(0, True), (1, True), (0, False), (0, True), (1, True)]:
        jacobian, gradient = linearised(heads, closure)
        heads[2].requires_grad_(trained)
        if not trained:  # the others continue without it
            last[20:], jacobian[:, 20:] = 0, 0
            optimizer.state.pop(heads[2].weight), optimizer.state.pop(heads[2].bias)
        last = textbook_direction(optimizer.filter, jacobian, gradient, last, kind)
        assert relative_error(step_of(optimizer, closure), -0.02 * last) < 1e-9
        heads[2].requires_grad_(True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_momentum_nothing_is_kept_and_not_a_bit_is_changed(name):
    steps = []
    for options in ({}, {"momentum": 0.0, "momentum_kind": "projected"}, {"momentum": MU}):
        network, closure = problem(dtype=torch.float32)
        optimizer = OPTIMIZERS[name](network.parameters(), 0.05, **options)
        steps.append([step_of(optimizer, closure) for _ in range(3)])
        kept = [key for key in optimizer.state if isinstance(key, torch.Tensor)]
        assert len(kept) == (4 if options.get("momentum") else 0)
    without, none, some = steps
    assert all(torch.equal(*pair) for pair in zip(without, none, strict=True))
    assert torch.equal(some[0], without[0])  # the first has no past
    assert not torch.equal(some[1], without[1])


def test_an_automatic_cut_off_is_that_of_the_projector_too():
    """Both see the same: one sample's Jacobian of full rank leaves the rest alone."""
    network, closure = problem(2)
    optimizer = hig.HIG(
        network.parameters(),
        0.02,
        rcond="auto",
        momentum=MU,
        momentum_kind="projected",
        step_rule="fixed",
    )
    last = torch.zeros(19).double()
    for _ in range(3):
        jacobian, gradient = linearised(network, closure)
        filter = hig.HalfInverse(rcond=1e-9)
        last = textbook_direction(filter, jacobian, gradient, last, "projected")
        assert relative_error(step_of(optimizer, closure), -0.02 * last) < 1e-7


def linear(scale=1.0):
    """A loss that is quadratic in the parameters, where the model of a step is exact."""
    torch.manual_seed(0)
    network, inputs = nn.Linear(6, 2).double(), torch.randn(2, 4, 6).double()
    batches = iter(range(1000))

    def closure_of(batch):
        def closure():
            prediction = network(inputs[batch])
            return scale * (prediction - 1).square().sum(), prediction

        return closure

    return network, (closure_of(batch % 2) for batch in batches)


@KINDS
@pytest.mark.parametrize("name", ["hig", "lm"])
def test_rules_look_along_the_whole_direction(name, kind):
    network, closures = linear()
    groups = [{"params": [network.weight]}, {"params": [network.bias]}]
    optimizer = OPTIMIZERS[name](groups, 1.0, step_rule="trust", momentum=MU, momentum_kind=kind)
    ratios = []
    for _ in range(8):
        optimizer.step(next(closures))
        if not any("back to the parameters" in note for note in optimizer.report.notes):
            ratios.append(optimizer.report.gain_ratio)
    assert len(ratios) >= 6
    assert ratios == pytest.approx([1] * len(ratios), abs=1e-9)


@KINDS
def test_a_line_search_continues_and_ends_at_the_minimum(kind):
    network, closures = linear()
    closure = next(closures)
    optimizer = OPTIMIZERS["hig"](
        network.parameters(), 1.0, step_rule="line_search", momentum=MU, momentum_kind=kind
    )
    losses = [float(optimizer.step(closure)) for _ in range(40)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-6 * losses[0]


@pytest.mark.parametrize("rule", ["trust", "line_search"])
@pytest.mark.parametrize("name", ["hig", "lm"])
def test_what_leads_uphill_is_dropped(name, rule):
    steps = []
    for momentum in (0.0, MU):
        network, closure = problem()
        optimizer = OPTIMIZERS[name](network.parameters(), 1.0, step_rule=rule, momentum=momentum)
        if momentum:
            jacobian, gradient = linearised(network, closure)
            uphill = (-100 * jacobian.T @ gradient).split([p.numel() for p in network.parameters()])
            for parameter, direction in zip(network.parameters(), uphill, strict=True):
                optimizer.state[parameter] = {"direction": direction.view_as(parameter)}
        steps.append(step_of(optimizer, closure))
    assert torch.equal(*steps) and steps[0].any()


@pytest.mark.parametrize("name", ["hig", "lm"])
def test_a_step_that_is_taken_back_ends_what_was_carried(name):
    network, closure = problem()
    optimizer = OPTIMIZERS[name](network.parameters(), 0.1, step_rule="trust", momentum=MU)
    optimizer.step(closure)
    assert optimizer.state[network[0].weight]
    before = flat(network.parameters()).clone()

    def wall():
        loss, prediction = closure()
        return (loss if torch.equal(flat(network.parameters()), before) else loss + 100), prediction

    optimizer.step(wall)
    assert torch.equal(flat(network.parameters()), before)
    for parameter in network.parameters():
        assert "direction" not in optimizer.state[parameter]
    assert optimizer.state["points"]["length"] == 0


@pytest.mark.parametrize("name", ["hig", "lm"])
def test_an_error_halfway_changes_no_memory(name):
    network, closure = problem()
    optimizer = OPTIMIZERS[name](network.parameters(), 0.1, step_rule="trust", momentum=MU)
    optimizer.step(closure)
    before = flat(network.parameters()).clone()
    last = [
        {name: value.clone() for name, value in optimizer.state[parameter].items()}
        for parameter in network.parameters()
    ]
    assert last[0].keys() == {"direction", "last_point", "safe_point"}

    def raises():
        if not torch.equal(flat(network.parameters()), before):
            raise OSError("disk full")
        return closure()

    with pytest.raises(OSError, match="disk full"):
        optimizer.step(raises)
    for parameter, values in zip(network.parameters(), last, strict=True):
        assert optimizer.state[parameter].keys() == values.keys()
        for name, value in values.items():
            assert torch.equal(optimizer.state[parameter][name], value)


def test_levenberg_marquardt_tries_again_without_what_was_carried():
    """Along the last direction the loss is ever higher, whatever the damping."""
    network, closure = problem()
    optimizer = OPTIMIZERS["lm"](network.parameters(), 0.1, momentum=MU, momentum_kind="projected")
    jacobian, _ = linearised(network, closure)
    unseen = torch.linalg.svd(jacobian, full_matrices=True)[2][-1]  # first order says nothing
    for parameter, part in zip(
        network.parameters(), unseen.split([p.numel() for p in network.parameters()]), strict=True
    ):
        optimizer.state[parameter] = {"direction": 1e4 * part.view_as(parameter)}
    step = step_of(optimizer, closure)
    assert optimizer.report.gain_ratio > 0.5
    assert step.norm() < 10  # nothing of the 1e4 along it
    damping = 4 * DAMPING
    expected = textbook_direction(hig.Damped(damping), *linearised_at(step), 0 * step, "plain")
    assert relative_error(step, -0.1 * expected) < 1e-8


def linearised_at(step):
    """At the start of the problem, which the step has left."""
    network, closure = problem()
    return linearised(network, closure)


def test_a_state_that_was_given_out_does_not_change():
    network, closure = problem()
    optimizer = OPTIMIZERS["hig"](network.parameters(), 0.1, momentum=MU)
    optimizer.step(closure)
    state = optimizer.state_dict()["state"][0]["direction"]
    kept = state.clone()
    optimizer.step(closure)
    assert torch.equal(state, kept)
    assert not torch.equal(optimizer.state_dict()["state"][0]["direction"], kept)
