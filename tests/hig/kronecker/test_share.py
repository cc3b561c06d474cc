"""KroneckerHIG in several processes against one on the whole batch.

Two processes run most of the checks, four the rest; each check is a test of its own.
"""

import copy
import re
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hig
from hig._kronecker import layer_state
from tests.faults import OUTPUTS
from tests.hig import networks, processes
from tests.textbook import flat, relative_error

# Samples of each rank: unequal, and with four ranks single ones.
COUNTS = {2: (4, 3), 4: (1, 3, 1, 2)}
# In these two the batch is not the first axis.
NAMES = sorted({*networks.LAYERED, "attention", "viscosity"} - {"time major", "embedding"})
# Steps with and without a probe, and a decomposition now and then.
OPTIONS = {"lr": 0.01, "decay": 0.5, "probe_every": 3, "refresh_every": 4}


def twice(outputs):
    return 2 * outputs


# name -> arguments
CASES = {
    **{name: {"network": name} for name in NAMES},
    "sum": {"reduction": "sum"},
    "grafted by layer": {"graft": "layer"},
    "not grafted": {"graft": None},
    "grafted together": {"graft": "global"},
    "other powers and means": {"kappa": -1.0, "betas": (0.8, 0.9), "damping": 0.01},
    "metric": {"metric_root": twice, "seed": 3},
    "two learning rates": {"rates": (0.01, 0.002)},
}
WITH_FOUR = ["conv2d", "attention", "mlp", "sum", "grafted by layer"]


def share():
    """The samples of this rank."""
    counts = COUNTS[dist.get_world_size()]
    start = sum(counts[: dist.get_rank()])
    return slice(start, start + counts[dist.get_rank()])


def train(group, network="mlp", rates=None, reduction="mean", steps=5, **options):
    model, inputs = networks.build(network)
    inputs = torch.randn(7, *inputs.shape[1:], dtype=torch.float64)
    if group is not None:
        inputs = inputs[share()]
    least_squares = networks.least_squares(model, inputs)

    def closure():
        loss, prediction = least_squares()
        return len(inputs) * loss if reduction == "sum" else loss, prediction

    given = parameters = list(model.parameters())
    if rates:
        given = [{"params": given[:2], "lr": rates[0]}, {"params": given[2:], "lr": rates[1]}]
    options = {**OPTIONS, **options}
    optimizer = hig.KroneckerHIG(given, process_group=group, reduction=reduction, **options)
    start = flat(parameters)
    losses = [float(optimizer.step(closure)) for _ in range(steps)]
    losses = torch.tensor(losses, dtype=torch.float64)
    return flat(parameters), flat(parameters) - start, losses, optimizer


def compare(name):
    found, alone = (train(group, **CASES[name]) for group in ("auto", None))
    reports = found[-1].report, alone[-1].report
    return {
        "bytes": found[0].numpy().tobytes(),
        "errors": [relative_error(a, b) for a, b in zip(found[1:3], alone[1:3], strict=True)],
        "state error": relative_error(*(flat(state_of(run[-1])) for run in (found, alone))),
        "facts": [(r.layers, r.others, r.probed, r.refreshed, r.notes) for r in reports],
        "graft": [[r.step_norm, *r.graft] for r in reports],
        "communication": [r.communication for r in reports],
    }


def state_of(optimizer):
    """Means and factors; bases of factors have no unique sign."""
    names = ("exp_avg", "exp_avg_sq", "inputs", "outputs")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [optimizer.state[p] for p in parameters]
    return [state[name] for state in states for name in names if name in state]


# -- checks of another kind ----------------------------------------------------------------------


class Case:
    """A network with its closure, and what stepping raises."""

    def __init__(self, weights=0, **options):
        torch.manual_seed(weights)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.inputs = torch.ones(2, 4, dtype=torch.float64)
        self.optimizer = hig.KroneckerHIG(self.model.parameters(), **options)

    def closure(self):
        prediction = self.model(self.inputs)
        return prediction.square().mean(), prediction

    def raised(self, closure=None):
        """Name and text of the error, and whether it left the parameters as they were."""
        before = flat(self.model.parameters())
        try:
            self.optimizer.step(closure or self.closure)
        except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
            same = torch.equal(before, flat(self.model.parameters()))
            return type(error).__name__, str(error), same
        return None


def closure_raises(rank):
    case = Case()

    def closure():
        if rank == 1:
            raise KeyError("no such file")
        return case.closure()

    return case.raised(closure), case.raised()  # afterwards they continue together


def metric_raises(rank):
    def root(outputs):
        return outputs if rank == 0 else outputs[:1]

    return Case(metric_root=root).raised()


def factors_are_not_decomposed(rank):
    case, power = Case(graft="layer"), layer_state.damped_power

    def fails(*arguments):
        raise hig.DecompositionError("no convergence")

    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(layer_state, "damped_power", fails)
        found = case.raised()
    assert layer_state.damped_power is power
    return found


def nan_in_prediction(rank):
    case = Case()
    case.inputs[rank] = (1.0, float("nan"))[rank]
    return case.raised()


def nan_in_derivative(rank):
    case = Case()

    def closure():
        prediction = case.model(case.inputs)
        if rank == 1:
            prediction = OUTPUTS["NaN in the Jacobian"](prediction)
        return prediction.square().mean(), prediction

    return case.raised(closure)


def sum_overflows(rank):
    case = Case(reduction="sum")
    model = case.model.float()
    # Finite on each rank, also squared, and beyond float32 only together.
    largest = torch.finfo(torch.float32).max ** 0.5

    def closure():
        prediction = model[2](torch.zeros(1, 6))
        return prediction[0, 0] * 0.9 * largest, prediction

    return case.raised(closure)


def wrong_rate(rank):
    case = Case()
    case.optimizer.param_groups[0]["lr"] = (0.1, float("nan"))[rank]
    return case.raised()


def other_weights(rank):
    return Case(weights=rank).raised()


def other_outputs(rank):
    case = Case()

    def closure():
        prediction = case.model(case.inputs)[:, : 3 - rank]
        return prediction.square().mean(), prediction

    return case.raised(closure)


def other_settings(rank):
    options = [{"betas": (0.9, 0.99)}, {"seed": 1}, {"graft": None}, {"probe_every": 2}]
    return [Case(**(chosen if rank else {})).raised() for chosen in options]


def other_state(rank):
    case, loaded = Case(), Case(process_group=None)
    assert loaded.raised() is None
    if rank == 1:
        case.optimizer.load_state_dict(loaded.optimizer.state_dict())
    return case.raised()


def other_parameters_used(rank):
    case = Case()

    def closure():
        prediction = (case.model if rank else case.model[2])(torch.ones(2, 6 - 2 * rank).double())
        return prediction.square().mean(), prediction

    return case.raised(closure)


def other_layers(rank):
    case = Case()
    first, _, last = case.model

    def closure():
        hidden = first(case.inputs) if rank else case.inputs @ first.weight.T + first.bias
        prediction = last(hidden)
        return prediction.square().mean(), prediction

    return case.raised(closure)


def other_order(rank):
    """Calls in another order are the same layers."""

    def moved(chosen, group):
        torch.manual_seed(0)
        layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)]).double()
        inputs = torch.randn(7, 3, dtype=torch.float64)[chosen]
        optimizer = hig.KroneckerHIG(layers.parameters(), process_group=group)

        def closure():
            order = (0, 1) if group is None or rank else (1, 0)
            outputs = {number: layers[number](inputs) for number in order}
            prediction = outputs[0].tanh() + outputs[1].square()
            return prediction.square().mean(), prediction

        for _ in range(3):
            optimizer.step(closure)
        return flat(layers.parameters())

    return relative_error(moved(share(), "auto"), moved(slice(None), None))


def other_reasons(rank):
    """Other calls on each rank: parameters are left to Adam for the reason that the first gives."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3).double()
    factor = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = hig.KroneckerHIG([*model.parameters(), factor])

    def closure():
        hidden = model(torch.ones(2, 3, dtype=torch.float64))
        prediction = hidden * factor if rank else torch.einsum("bi,i->bi", hidden, factor)
        return prediction.square().mean(), prediction

    optimizer.step(closure)
    first = optimizer.report.notes
    optimizer.step(closure)
    return first, optimizer.report.notes


def no_layer(rank):
    parameter = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = hig.KroneckerHIG([parameter])

    def closure():
        prediction = (parameter * (1 + rank)).expand(2, 3)
        return prediction.square().mean(), prediction

    with pytest.warns(UserWarning, match="found no layer"):
        optimizer.step(closure)
    return parameter.tolist(), optimizer.report.layers


def uneven_positions(rank):
    """Sequences of another length on each rank: inputs are averaged over all positions."""

    def moved(ranks, group):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        inputs = [torch.randn(3, 4 + 3 * r, 5, dtype=torch.float64) for r in range(2)]
        optimizer = hig.KroneckerHIG(model.parameters(), process_group=group)

        def closure():
            prediction = torch.cat([model(inputs[r]).mean(1) for r in ranks])
            return prediction.square().mean(), prediction

        for _ in range(3):
            optimizer.step(closure)
        return flat(model.parameters())

    return relative_error(moved([rank], "auto"), moved([0, 1], None))


def replicas(rank):
    """DistributedDataParallel hands out the weights of the first rank, and adds nothing."""
    torch.manual_seed(rank)
    model = networks.build("mlp")[0]
    if rank:
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.1)
    wrapped = DistributedDataParallel(model)
    alone = copy.deepcopy(model)  # after the weights have been handed out
    inputs = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def moved(network, chosen, group):
        optimizer = hig.KroneckerHIG(network.parameters(), process_group=group)
        for _ in range(3):
            optimizer.step(networks.least_squares(network, inputs[chosen]))
        return flat(network.parameters())

    return relative_error(moved(wrapped, share(), "auto"), moved(alone, slice(None), None))


def continued(rank):
    """A run that is saved and loaded again."""
    whole = train("auto", steps=5)[0]
    model = networks.build("mlp")[0]
    _, _, _, optimizer = train("auto", steps=3)
    saved, values = optimizer.state_dict(), flat(optimizer.param_groups[0]["params"])
    nn.utils.vector_to_parameters(values, model.parameters())
    networks.build("mlp")  # the draws before the inputs
    inputs = torch.randn(7, 4, dtype=torch.float64)[share()]
    later = hig.KroneckerHIG(model.parameters(), **OPTIONS)
    later.load_state_dict(saved)
    for _ in range(2):
        later.step(networks.least_squares(model, inputs))
    return torch.equal(flat(model.parameters()), whole)


def another_processor(rank):
    """A rank that rounds in another way has the same parameters still."""
    decompose = layer_state.damped_power

    def rounded(*arguments):
        power = decompose(*arguments)
        return replace(power, scale=power.scale * (1 + 1e-13 * rank))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_state, "damped_power", rounded)
        return train("auto")[0].tolist()


def mixed_parameters(rank):
    """Parameters of several dtypes, complex ones among them, and a sparse gradient."""
    torch.manual_seed(0)
    table = nn.Embedding(5, 3, sparse=True)
    layer = nn.Linear(3, 3, dtype=torch.bfloat16)
    phase = nn.Parameter(torch.ones(1, 3, dtype=torch.complex64))
    parameters = [*table.parameters(), *layer.parameters(), phase]
    optimizer = hig.KroneckerHIG(parameters, lr=0.1)
    chosen = torch.arange(3) + rank

    def closure():
        hidden = layer(table(chosen).bfloat16()).float()
        prediction = (hidden * phase).real + (hidden * phase).imag.square()
        return prediction.square().mean(), prediction

    start = [parameter.detach().clone() for parameter in parameters]
    for _ in range(3):
        optimizer.step(closure)
    moved = [not torch.equal(p, before) for p, before in zip(parameters, start, strict=True)]
    return moved, [p.detach().cfloat().tolist() for p in parameters]


def groups_of_others(rank):
    group = dist.new_group([0])
    found = [Case(process_group=None).raised()]
    if rank == 0:
        case = Case(process_group=group)
        found += [case.raised(), case.optimizer.report.communication]
    return found


CHECKS = {f.__name__: f for f in (
    closure_raises, metric_raises, factors_are_not_decomposed, nan_in_prediction,
    nan_in_derivative, sum_overflows, wrong_rate, other_weights, other_outputs, other_settings,
    other_state, other_parameters_used, other_layers, other_order, other_reasons, no_layer,
    uneven_positions, replicas, continued, another_processor, mixed_parameters, groups_of_others,
)}  # fmt: skip


def in_two(rank):
    found = {name: compare(name) for name in CASES}
    return found | {name: check(rank) for name, check in CHECKS.items()}


def in_four(rank):
    return {name: compare(name) for name in WITH_FOUR}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return processes.run(in_two, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return processes.run(in_four, 4, tmp_path_factory.mktemp("four"))


def check_equal(found):
    assert len({rank["bytes"] for rank in found}) == 1
    for rank in found:
        assert max(rank["errors"]) < 1e-10
        assert rank["state error"] < 1e-10
        assert rank["facts"][0] == rank["facts"][1]
        assert rank["graft"][0] == pytest.approx(rank["graft"][1], rel=1e-9)
        here, alone = rank["communication"]
        assert here.ranks == len(found) and here.collectives > 5
        assert alone is None


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_step_of_one(two, name):
    check_equal([rank[name] for rank in two])


@pytest.mark.parametrize("name", WITH_FOUR)
def test_four_processes_take_the_step_of_one(four, name):
    check_equal([rank[name] for rank in four])


@pytest.mark.parametrize(
    ("name", "own", "text"),
    [
        ("metric_raises", "ValueError", "failed with ValueError: metric_root must keep"),
        ("wrong_rate", "ValueError", "failed with ValueError: lr"),
    ],
)
def test_an_error_on_one_process_is_raised_by_all(two, name, own, text):
    (kind, message, unchanged), (kind_there, _, unchanged_there) = (rank[name] for rank in two)
    assert kind == "RankError" and message.startswith(f"process rank 1 {text}")
    assert kind_there == own
    assert unchanged and unchanged_there


def test_an_error_in_one_closure_is_raised_by_all(two):
    (other, after), (own, after_own) = (rank["closure_raises"] for rank in two)
    assert own == ("KeyError", "'no such file'", True)
    assert other[0] == "RankError" and other[2]
    assert other[1].startswith("process rank 1 failed with KeyError: 'no such file'")
    assert after is None and after_own is None


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("nan_in_prediction", "NonFiniteError", "the prediction holds NaN"),
        ("nan_in_derivative", "NonFiniteError", "the derivative of the prediction holds NaN"),
        ("factors_are_not_decomposed", "DecompositionError", "no convergence"),
    ],
)
def test_errors_of_numbers_name_the_process(two, name, kind, text):
    other, own = (rank[name] for rank in two)
    assert own[0] == other[0] == kind and own[2] and other[2]
    assert own[1].startswith(text)
    assert other[1].startswith(f"on process rank 1: {text}")


def test_sums_that_overflow_leave_the_parameters(two):
    for kind, text, unchanged in (rank["sum_overflows"] for rank in two):
        assert kind == "NonFiniteError" and "overflows when squared" in text and unchanged


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("other_weights", "values of the parameters .* same seed"),
        ("other_outputs", "outputs per sample .* got 3 on rank 0, 2 on rank 1"),
        ("other_state", "other settings .* load the same state"),
        ("other_parameters_used", "parameters that the prediction depends on .* same network"),
        ("other_layers", "layers that have factors .* same network"),
    ],
)
def test_what_must_be_equal(two, name, text):
    for rank in two:
        kind, found, unchanged = rank[name]
        assert kind == "ValueError" and unchanged
        assert re.search(text, found), found


def test_settings_must_be_equal(two):
    for rank in two:
        for kind, found, unchanged in rank["other_settings"]:
            assert kind == "ValueError" and unchanged
            assert "learning rates, filter and other settings" in found


def test_layers_are_those_of_all_processes(two):
    assert all(rank["other_order"] < 1e-10 for rank in two)
    assert all(rank["uneven_positions"] < 1e-10 for rank in two)


def test_reasons_are_those_of_the_first_process(two):
    first, second = (rank["other_reasons"] for rank in two)
    assert first == second
    assert all("einsum" in str(notes) and "mul" not in str(notes) for notes in first)


def test_without_a_layer_all_warn(two):
    first, second = (rank["no_layer"] for rank in two)
    assert first == second and first[1] == 0


def test_distributed_data_parallel(two):
    assert all(rank["replicas"] < 1e-10 for rank in two)


def test_a_run_is_continued(two):
    assert all(rank["continued"] for rank in two)


def test_parameters_are_those_of_the_first_process(two):
    first, second = (rank["another_processor"] for rank in two)
    assert first == second


def test_parameters_of_every_dtype_move_together(two):
    (moved, first), (_, second) = (rank["mixed_parameters"] for rank in two)
    assert all(moved)
    assert first == second


def test_a_process_may_step_alone(two):
    member, outsider = (rank["groups_of_others"] for rank in two)
    assert member == [None, None, None]
    assert outsider == [None]
