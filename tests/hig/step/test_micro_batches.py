"""Closures that yield their batch in parts."""

import pytest
import torch

import hig
from tests.hig import networks
from tests.textbook import flat, relative_error, step_of

COUNTS = [3, 1, 4]
NAMES = sorted(set(networks.ALL) - {"batch norm", "time major", "embedding"})
# Gram matrices in float64 give the step to 1e-10 as far as they resolve singular values.
MAKE = {
    "hig": lambda p, **o: hig.HIG(p, **{"rcond": 1e-2, **o}),
    "gn": lambda p, **o: hig.GaussNewton(p, **{"rcond": 1e-2, **o}),
    "lm": lambda p, **o: hig.LevenbergMarquardt(p, **{"damping": 1e-2, **o}),
}
EACH = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def both(name="mlp", reduction="mean", counts=COUNTS, dtype=torch.float64):
    """Two equal networks, with a closure for the whole batch and one for its parts."""
    whole, inputs = networks.build(name)
    parted, _ = networks.build(name)
    whole, parted = whole.to(dtype), parted.to(dtype)
    torch.manual_seed(1)
    inputs = torch.randn(sum(counts), *inputs.shape[1:], dtype=dtype)

    def loss_of(prediction):
        each = (prediction - 0.3).square().flatten(1).sum(1) + prediction.flatten(1).sum(1).exp()
        return each.mean() if reduction == "mean" else each.sum()

    def at_once():
        prediction = whole(inputs)
        return loss_of(prediction), prediction

    def in_parts():
        for part in inputs.split(counts):
            prediction = parted(part)
            yield loss_of(prediction), prediction

    return (whole, at_once), (parted, in_parts)


def compare(make, steps=1, bound=1e-10, **options):
    """Check that steps of parts are those of the whole batch; return the reports."""
    of_batch = {key: options.pop(key) for key in ("name", "reduction", "counts") if key in options}
    (whole, at_once), (parted, in_parts) = both(**of_batch)
    if "reduction" in of_batch:
        options["reduction"] = of_batch["reduction"]
    first, second = make(whole.parameters(), **options), make(parted.parameters(), **options)
    for _ in range(steps):
        expected, found = first.step(at_once), second.step(in_parts)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert relative_error(flat(parted.parameters()), flat(whole.parameters())) < bound
    assert first.report.rows == second.report.rows and first.report.route == second.report.route
    return first.report, second.report


@EACH
@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_the_whole_batch(make, name):
    compare(make, name=name, lr=0.1, step_rule="fixed", method="gram")


@EACH
@pytest.mark.parametrize("rule", ["trust", "line_search"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_measured_steps_are_those_of_the_whole_batch(make, rule, reduction):
    options = {"momentum": 0.5, "momentum_kind": "projected", "method": "gram"}
    reports = compare(make, 5, 1e-8, step_rule=rule, reduction=reduction, **options)
    assert reports[0].step_size == pytest.approx(reports[1].step_size, rel=1e-7)


@pytest.mark.parametrize("engine", ["auto", "rows", "layerwise"])
@pytest.mark.parametrize("method", ["gram", "svd", "auto"])
def test_every_engine_and_method(engine, method):
    compare(hig.HIG, lr=0.1, rcond=1e-2, engine=engine, method=method)


def test_more_rows_than_parameters():
    report, _ = compare(MAKE["hig"], name="narrow", counts=[20, 15, 7], lr=0.1, method="gram")
    assert report.route == "column_gram"


def test_controls_are_found_in_each_part():
    _, report = compare(hig.HIG, 4, 1e-8, name="few controls", step_rule="trust")
    assert report.fewer_rows == (8, 2, 7, True)


def test_parts_that_differ_in_what_is_exact():
    """One part is coupled, and has all rows, one by one."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    network.double()
    twin = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    twin.double().load_state_dict(network.state_dict())
    inputs, matrix = torch.randn(6, 3).double(), torch.randn(2, 5).double()

    def simulate(model, part, coupled):
        values = model(part)
        values = values - 0.2 * values.mean(0) if coupled else values
        return (values @ matrix).sin()

    def at_once():
        prediction = torch.cat(
            [simulate(network, inputs[:2], False), simulate(network, inputs[2:], True)]
        )
        return prediction.square().sum(1).mean(), prediction

    def in_parts():
        for part, coupled in ((inputs[:2], False), (inputs[2:], True)):
            prediction = simulate(twin, part, coupled)
            yield prediction.square().sum(1).mean(), prediction

    options = {"lr": 0.1, "rcond": 1e-2, "method": "gram"}
    expected = step_of(hig.HIG(network.parameters(), engine="rows", **options), at_once)
    optimizer = hig.HIG(twin.parameters(), **options)
    assert relative_error(step_of(optimizer, in_parts), expected) < 1e-10
    assert optimizer.report.rows == 30
    assert "samples influence one another" in str(optimizer.report)


def test_a_parameter_that_one_part_does_not_use():
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(3, 2).double() for _ in range(3)])
    twins = torch.nn.ModuleList([torch.nn.Linear(3, 2).double() for _ in range(3)])
    twins.load_state_dict(layers.state_dict())
    inputs = torch.randn(5, 3).double()

    def predict(model, part, other):
        return model[0](part).tanh() * model[other](part)

    def at_once():
        prediction = torch.cat([predict(layers, inputs[:3], 1), predict(layers, inputs[3:], 2)])
        return prediction.square().sum(1).mean(), prediction

    def in_parts():
        for part, other in ((inputs[:3], 1), (inputs[3:], 2)):
            prediction = predict(twins, part, other)
            yield prediction.square().sum(1).mean(), prediction

    options = {"lr": 0.1, "rcond": 1e-2, "method": "gram"}
    expected = step_of(hig.HIG(layers.parameters(), engine="rows", **options), at_once)
    change = step_of(hig.HIG(twins.parameters(), **options), in_parts)
    assert relative_error(change, expected) < 1e-10


def test_a_sketch_of_each_part():
    losses = []
    for network, closure in both():
        optimizer = hig.HIG(network.parameters(), sketch=2)
        losses.append([float(optimizer.step(closure)) for _ in range(20)])
        assert optimizer.report.fewer_rows == (8, 2, 3, False)
    assert losses[1][-1] < losses[1][0] - 0.05
    assert losses[1][-1] == pytest.approx(losses[0][-1], rel=1e-3)


def test_a_sketch_of_more_directions_than_controls_is_one_of_the_outputs():
    _, (network, in_parts) = both("few controls")
    optimizer = hig.HIG(network.parameters(), sketch=3)
    optimizer.step(in_parts)
    assert optimizer.report.fewer_rows == (8, 3, 7, False)


def test_a_return_to_better_parameters_sees_the_same_numbers():
    """The second step is not finite, and the rule goes back; parts draw their samples."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    drawn = []

    def in_parts():
        for _ in range(2):
            part = torch.randn(5, 3)
            drawn.append(part)
            prediction = network(part)
            yield prediction.square().sum(1).mean(), prediction

    optimizer = hig.HIG(network.parameters())
    optimizer.step(in_parts)
    with torch.no_grad():  # a little: more would be parameters that were set
        next(network.parameters()).add_(1e-12)
    saved = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer.step(in_parts)
    drawn.clear()
    torch.manual_seed(3)
    broken = []

    def breaking():
        broken.append(None)
        for loss, prediction in in_parts():
            yield (loss * torch.nan if len(broken) == 1 else loss), prediction

    optimizer.step(breaking)
    assert "back to the parameters before the last steps" in str(optimizer.report)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    after = torch.randn(2)
    torch.manual_seed(3)
    _ = torch.randn(5, 3), torch.randn(5, 3)
    assert torch.equal(after, torch.randn(2))
    assert all(torch.isfinite(value).all() for value in saved)


def test_diagnose():
    (whole, at_once), (parted, in_parts) = both()
    expected = hig.diagnose(whole.parameters(), at_once, rcond=1e-4)
    found = hig.diagnose(parted.parameters(), in_parts, rcond=1e-4)
    torch.testing.assert_close(
        torch.tensor(found.singular_values), torch.tensor(expected.singular_values)
    )
    for first, second in zip(found.directions, expected.directions, strict=True):
        assert first.cauchy == pytest.approx(second.cauchy, rel=1e-7)


def test_only_one_graph_exists_at_a_time():
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    alive, most = [], []

    class Counted(torch.autograd.Function):
        """Counts the tensors that graphs keep."""

        @staticmethod
        def forward(ctx, values):
            kept = values.exp()
            ctx.save_for_backward(kept)
            import weakref

            alive.append(weakref.ref(kept))
            return kept.clone()

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent * ctx.saved_tensors[0]

    def in_parts():
        for _ in range(4):
            most.append(sum(kept() is not None for kept in alive))
            prediction = Counted.apply(network(torch.randn(5, 3)))
            yield prediction.square().sum(1).mean(), prediction

    hig.HIG(network.parameters(), lr=0.1).step(in_parts)
    assert max(most[:4]) <= 1
    most.clear()
    hig.HIG(network.parameters()).step(in_parts)
    assert max(most[:4]) <= 1


def test_random_numbers_of_the_parts_are_those_of_trials():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))

    def in_parts():
        for _ in range(3):
            prediction = network(torch.randn(5, 3))
            yield prediction.square().sum(1).mean(), prediction

    optimizer = hig.HIG(network.parameters())
    for _ in range(5):
        optimizer.step(in_parts)
        assert not [note for note in optimizer.report.notes if "differ" in note]


def test_autocast_covers_the_parts():
    torch.manual_seed(0)
    network, dtypes = torch.nn.Linear(3, 2), []

    def in_parts():
        for _ in range(2):
            output = network(torch.ones(4, 3))
            dtypes.append(output.dtype)
            prediction = output.float()
            yield prediction.square().sum(1).mean(), prediction

    with torch.autocast("cpu", dtype=torch.bfloat16):
        hig.HIG(network.parameters()).step(in_parts)
    assert set(dtypes) == {torch.bfloat16}


def test_a_part_that_is_not_finite_leaves_the_parameters():
    _, (network, in_parts) = both()
    before = flat(network.parameters()).clone()

    def closure():
        yield from in_parts()
        prediction = network(torch.full((1, 4), torch.nan, dtype=torch.float64))
        yield prediction.sum(), prediction

    with pytest.raises(hig.NonFiniteError, match="parameters are unchanged"):
        hig.HIG(network.parameters()).step(closure)
    assert torch.equal(flat(network.parameters()), before)


REFUSED = {
    "nothing": (lambda n: iter(()), {}, "yielded no micro-batch"),
    "no pair": (lambda n: iter([n(torch.ones(2, 4).double()).sum()]), {}, "must return"),
    "products": (
        lambda n: iter([(n(torch.ones(2, 4).double()).sum(),) * 2]),
        {"method": "lanczos"},
        "differentiates all of them again",
    ),
}


@pytest.mark.parametrize(("yields", "options", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done(yields, options, text):
    _, (network, _) = both()
    with pytest.raises(ValueError, match=text):
        hig.HIG(network.parameters(), **options).step(lambda: yields(network))


def test_parts_with_other_outputs_are_refused():
    network = torch.nn.Linear(3, 4)

    def in_parts():
        for outputs in (4, 3):
            prediction = network(torch.ones(2, 3))[:, :outputs]
            yield prediction.square().mean(), prediction

    with pytest.raises(ValueError, match="same outputs per sample, got shapes"):
        hig.HIG(network.parameters()).step(in_parts)


def test_parts_that_share_a_graph_are_refused():
    network, head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    parameters = [*network.parameters(), *head.parameters()]

    def in_parts():
        features = network(torch.ones(4, 3)).exp()
        for part in features.split(2):
            prediction = head(part)
            yield prediction.square().mean(), prediction

    with pytest.raises(ValueError, match="share a part of their graphs"):
        hig.HIG(parameters).step(in_parts)
