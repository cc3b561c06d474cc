"""Steps that are recorded once and replayed, with a tape in place of the GPU's graphs."""

import copy

import pytest
import torch

import hig
from hig._step import optimizer as optimizer_module
from hig._torch import cuda_graph as cuda_graph_module
from problems import NonlinearOscillators
from tests.hig.networks import LAYERED, build
from tests.hig.tape import Tape
from tests.textbook import flat, relative_error


@pytest.fixture
def tapes(monkeypatch):
    """Those that were recorded."""
    found = []

    def record(compute):
        found.append(Tape())
        with found[-1]:
            return found[-1], compute()

    monkeypatch.setattr(cuda_graph_module, "record", record)
    monkeypatch.setattr(cuda_graph_module, "warm_up", lambda compute: compute())
    monkeypatch.setattr(optimizer_module, "check_recordable", lambda *_: None)
    return found


def steps(network, batches, targets, kind=hig.HIG, **options):
    """Losses of steps over batches that lie in the same memory, one after the other."""
    batch, target = batches[0].clone(), targets[0].clone()
    optimizer = kind(network.parameters(), lr=0.3, rcond=1e-4, **options)

    def closure():
        prediction = network(batch)
        return (prediction - target).square().flatten(1).sum(1).mean(), prediction

    losses = []
    for new, wanted in zip(batches, targets, strict=True):
        batch.copy_(new)
        target.copy_(wanted)
        losses.append(optimizer.step(closure))
    return losses, optimizer


def data(network, inputs, count=7):
    torch.manual_seed(1)
    batches = [torch.randn_like(inputs) for _ in range(count)]
    with torch.no_grad():
        shape = network(inputs).shape
    return batches, [torch.randn(shape, dtype=inputs.dtype) for _ in range(count)]


def both(tapes, network, given, **options):
    """Parameters after steps without and with a record, and the losses of both."""
    recorded = copy.deepcopy(network)
    expected, _ = steps(network, *given, **options)
    found, optimizer = steps(recorded, *given, cuda_graph=True, **options)
    assert [tape.replays for tape in tapes] == [len(given[0]) - cuda_graph_module.WARM_UPS]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-10, atol=0)
    return relative_error(flat(recorded.parameters()), flat(network.parameters())), optimizer


@pytest.mark.parametrize("name", LAYERED)
def test_steps_equal_those_without_a_record(tapes, name):
    network, inputs = build(name)
    error, optimizer = both(tapes, network, data(network, inputs))
    assert error < 1e-10
    assert optimizer.report.engine == "layerwise"
    assert "replay" in optimizer.report.seconds


@pytest.mark.parametrize(
    "options",
    [
        {"step_rule": "trust"},
        {"step_rule": "line_search"},
        {"engine": "rows"},
        {"method": "svd"},
        {"kind": hig.GaussNewton},
        {"kind": hig.LevenbergMarquardt},
        {"momentum": 0.5, "momentum_kind": "projected"},
    ],
    ids=str,
)
def test_with_other_rules_engines_and_methods(tapes, options):
    network, inputs = build("mlp")
    error, _ = both(tapes, network, data(network, inputs), **options)
    assert error < 1e-10


def test_a_rollout_is_checked_in_the_first_run_alone(tapes, monkeypatch):
    problem = NonlinearOscillators(time_steps=6, train_size=64, test_size=4)
    train, _ = problem.data(torch.Generator().manual_seed(0))
    network = problem.network().double()
    recorded = copy.deepcopy(network)
    asked = []
    original = hig._simulation.rollout.refusal_of_step
    monkeypatch.setattr(
        hig._simulation.rollout,
        "refusal_of_step",
        lambda *given: asked.append(given) or original(*given),
    )
    for trained, graph in ((network, False), (recorded, True)):
        asked.clear()
        batch = {key: value[:8].clone() for key, value in train.items()}
        optimizer = hig.HIG(trained.parameters(), rcond=1e-4, cuda_graph=graph, step_rule="fixed")

        def closure(trained=trained, batch=batch):
            prediction = problem.predict(trained, batch)
            return problem.loss(prediction, batch), prediction

        for start in range(0, 48, 8):
            for key, value in batch.items():
                value.copy_(train[key][start : start + 8])
            optimizer.step(closure)
        assert len(asked) == (1 if graph else 6)
    assert relative_error(flat(recorded.parameters()), flat(network.parameters())) < 1e-10


def test_losses_and_reports_are_not_overwritten(tapes):
    network, inputs = build("mlp")
    batches, targets = data(network, inputs)
    losses, optimizer = steps(network, batches, targets, cuda_graph=True)
    assert len({float(loss) for loss in losses}) == len(losses)
    assert float(optimizer.report.loss) == float(losses[-1])


def test_the_spectrum_of_an_earlier_report_is_that_of_its_step(tapes):
    network, inputs = build("mlp")
    batches, targets = data(network, inputs)
    batch, target = batches[0].clone(), targets[0].clone()
    optimizer = hig.LevenbergMarquardt(network.parameters(), cuda_graph=True, step_rule="fixed")

    def closure():
        prediction = network(batch)
        return (prediction - target).square().flatten(1).sum(1).mean(), prediction

    reports, spectra = [], []
    for new, wanted in zip(batches, targets, strict=True):
        batch.copy_(new)
        target.copy_(wanted)
        looked_at = hig.diagnose(network.parameters(), closure)
        spectra.append(looked_at.singular_values)
        optimizer.step(closure)
        reports.append(optimizer.report)
        assert len(optimizer.report.singular_values)  # computed now; the next step ends the time
    assert tapes[0].replays == 4
    for report, values in zip(reports, spectra, strict=True):
        found = report.singular_values.numpy()
        assert relative_error(torch.tensor(found), torch.tensor(values)) < 1e-7


def test_conditions_are_read_after_every_replay(tapes):
    network, inputs = build("mlp")
    batches, targets = data(network, inputs)
    batches[-1][2] = float("nan")

    def closure():
        prediction = network(batch)
        return (prediction - target).square().flatten(1).sum(1).mean(), prediction

    batch, target = batches[0].clone(), targets[0].clone()
    optimizer = hig.HIG(network.parameters(), rcond=1e-4, cuda_graph=True, step_rule="fixed")
    for new, wanted in zip(batches[:-1], targets[:-1], strict=True):
        batch.copy_(new)
        target.copy_(wanted)
        optimizer.step(closure)
    before = flat(network.parameters()).clone()
    batch.copy_(batches[-1])
    with pytest.raises(hig.NonFiniteError, match=r"the prediction holds NaN.*\[2\]"):
        optimizer.step(closure)
    assert torch.equal(flat(network.parameters()), before)
    batch.copy_(batches[0])
    optimizer.step(closure)  # and resumes
    assert tapes[0].replays == 5


def test_recorded_again_for_other_parameters_and_routes(tapes):
    network, inputs = build("mlp")
    batches, targets = data(network, inputs)

    def closure():
        prediction = network(batches[0])
        return (prediction - targets[0]).square().flatten(1).sum(1).mean(), prediction

    optimizer = hig.HIG(network.parameters(), rcond=1e-4, cuda_graph=True, step_rule="fixed")
    for _ in range(5):
        optimizer.step(closure)
    next(network.parameters()).requires_grad_(False)
    columns = optimizer.report.columns
    for _ in range(5):
        optimizer.step(closure)
    assert optimizer.report.columns < columns
    optimizer.filter = hig.HalfInverse(rcond=1e-2)
    for _ in range(5):
        optimizer.step(closure)
    assert [tape.replays for tape in tapes] == [2, 2, 2]


def test_layers_that_are_not_exact_are_refused(tapes):
    network, inputs = build("batch norm")
    batches, targets = data(network, inputs)
    before = flat(network.parameters()).clone()
    with pytest.raises(hig.SampleDependenceError, match="cuda_graph=True replays factors"):
        steps(network, batches, targets, cuda_graph=True)
    assert torch.equal(flat(network.parameters()), before)


def test_copies_record_for_themselves(tapes):
    network, inputs = build("mlp")
    _, optimizer = steps(network, *data(network, inputs), cuda_graph=True)
    other = copy.deepcopy(optimizer)
    assert other._recorded is not None and other._recorded is not optimizer._recorded


def test_on_the_cpu_a_step_says_so():
    network, inputs = build("mlp")
    with pytest.raises(ValueError, match="move network and data there, or leave it out"):
        steps(network, *data(network, inputs), cuda_graph=True)


class _Tolerance(torch.autograd.Function):
    """The identity; its derivative is that of a solver with a tolerance."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * (1 + 1e-12 * torch.sin(1e5 * cotangent))


def test_the_tolerance_of_a_solver_is_recorded(tapes):
    network, inputs = build("mlp")
    batches, _ = data(network, inputs)
    optimizer = hig.HIG(
        network.parameters(), lr=1e-3, rcond=1e-4, cuda_graph=True, step_rule="fixed"
    )

    def closure():
        prediction = _Tolerance.apply(network(batches[0]))
        return prediction.square().flatten(1).sum(1).mean(), prediction

    losses = []
    for _ in range(20):
        losses.append(float(optimizer.step(closure)))
        assert optimizer.report.engine == "layerwise"
    assert losses == sorted(losses, reverse=True)
    assert sum(tape.replays for tape in tapes) > 8
