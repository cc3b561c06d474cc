"""A step that several processes take together against the step of one on the whole batch.

Two processes run most of the checks, four the rest; each check is a test of its own.
"""

import os
import re
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import hig
from tests.hig import networks, processes
from tests.textbook import flat, relative_error

PAGE = Path(hig.__file__).parents[1] / "docs" / "distributed.md"
# Samples of each rank: unequal, and with four ranks single ones.
COUNTS = {2: (4, 3), 4: (1, 3, 1, 2)}
# Samples that influence one another (or their place in the batch does) have no share of their own.
NAMES = sorted(set(networks.ALL) - {"batch norm", "time major", "embedding"})
# Gram matrices in float64 give the step to 1e-10 as far as they resolve singular values.
GRAM = {"rcond": 1e-2, "method": "gram", "lr": 0.1}
MANY = {"network": "narrow", "scale": 5, **GRAM}
TRUST = {"step_rule": "trust", **GRAM}
PROJECTED = {"momentum": 0.5, "momentum_kind": "projected"}

# name -> optimizer, arguments
CASES = {
    **{name: (hig.HIG, {"network": name, **GRAM}) for name in NAMES},
    "mlp by rows": (hig.HIG, {"engine": "rows", **GRAM}),
    "conv2d by rows": (hig.HIG, {"network": "conv2d", "engine": "rows", **GRAM}),
    "many samples": (hig.HIG, MANY),
    "many samples by rows": (hig.HIG, {"engine": "rows", **MANY}),
    "svd": (hig.HIG, {"rcond": 1e-6}),
    "svd of many samples": (hig.HIG, {**MANY, "method": "svd"}),
    "products": (hig.HIG, {"rcond": 1e-2, "method": hig.Lanczos(1e-12)}),
    "products by rows": (
        hig.HIG,
        {"rcond": 1e-2, "engine": "rows", "method": hig.Lanczos(1e-12)},
    ),
    "trust": (hig.HIG, {"steps": 3, **TRUST}),
    "sum": (hig.HIG, {"reduction": "sum", **TRUST}),
    "line search": (hig.HIG, {**GRAM, "step_rule": "line_search", "lr": 0.5}),
    "two learning rates": (hig.HIG, {"rates": (1.0, 0.25), **GRAM}),
    "momentum": (hig.HIG, {"steps": 3, "momentum": 0.5, **TRUST}),
    "projected momentum": (hig.HIG, {"steps": 3, **PROJECTED, **TRUST}),
    "projected momentum, many samples": (hig.GaussNewton, {"steps": 3, **PROJECTED, **MANY}),
    "damped, projected momentum": (
        hig.LevenbergMarquardt,
        {"steps": 3, "damping": 1e-2, **PROJECTED},
    ),
    "Gauss-Newton": (hig.GaussNewton, {"network": "layer norm", **GRAM}),
    "damped": (hig.LevenbergMarquardt, {"steps": 3, "damping": 1e-2}),
    "damped, many samples": (hig.LevenbergMarquardt, {**MANY, "rcond": 0.0, "damping": 1e-2}),
}
WITH_FOUR = [
    "conv2d", "attention", "mlp by rows", "many samples", "svd", "products", "trust", "sum",
    "damped",
]  # fmt: skip


def share(scale=1):
    """The samples of this rank."""
    counts = [scale * count for count in COUNTS[dist.get_world_size()]]
    start = sum(counts[: dist.get_rank()])
    return slice(start, start + counts[dist.get_rank()])


def summed(closure, count):
    def total():
        loss, prediction = closure()
        return count * loss, prediction

    return total


def train(make, group, network="mlp", scale=1, steps=1, rates=None, reduction="mean", **options):
    """How far some steps lead, their losses and the last report."""
    model, inputs = networks.build(network)
    inputs = torch.randn(7 * scale, *inputs.shape[1:], dtype=torch.float64)
    if group is not None:
        inputs = inputs[share(scale)]
    closure = networks.least_squares(model, inputs)
    parameters = list(model.parameters())
    given = parameters
    if rates:
        given = [{"params": given[:2], "lr": rates[0]}, {"params": given[2:], "lr": rates[1]}]
    optimizer = make(given, process_group=group, reduction=reduction, **options)
    start = flat(parameters)
    if reduction == "sum":
        closure = summed(closure, len(inputs))
    losses = [float(optimizer.step(closure)) for _ in range(steps)]
    return flat(parameters) - start, losses, optimizer.report


def compare(name):
    make, options = CASES[name]
    moved, losses, report = train(make, "auto", **options)
    expected, expected_losses, alone = train(make, None, **options)
    return {
        "bytes": moved.numpy().tobytes(),
        "error": relative_error(moved, expected),
        "loss error": relative_error(torch.tensor(losses), torch.tensor(expected_losses)),
        "facts": [
            (r.engine, r.route, r.rows, r.columns, r.rank, len(r.notes)) for r in (report, alone)
        ],
        "steps": [r.step_size for r in (report, alone)],
        "communication": report.communication,
        "alone": alone.communication,
    }


# -- what goes wrong ---------------------------------------------------------------------------


class Case:
    """A network with its closure, and what stepping raises."""

    def __init__(self, seed=0, inputs=None, width=3, dtype=torch.float64, **options):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, width)).to(dtype)
        self.inputs = torch.ones(2, 4, dtype=dtype) if inputs is None else inputs
        self.optimizer = hig.HIG(self.model.parameters(), **{**GRAM, **options})

    def closure(self):
        prediction = self.model(self.inputs)
        return prediction.square().mean(), prediction

    def raised(self, closure=None):
        """Name and text of the error, and whether it left the parameters as they were."""
        before = flat(self.model.parameters())
        try:
            self.optimizer.step(closure or self.closure)
        except Exception as error:
            same = torch.equal(before, flat(self.model.parameters()))
            return type(error).__name__, str(error), same
        return None


def closure_raises(rank):
    case = Case()

    def closure():
        if rank == 1:
            raise KeyError("no such file")
        return case.closure()

    found = case.raised(closure)
    return found, case.raised()  # afterwards they go on together


def second_evaluation_raises(rank):
    case, calls = Case(step_rule="trust"), []

    def closure():
        calls.append(None)
        if rank == 1 and len(calls) == 2:
            raise OSError("disk full")
        return case.closure()

    return case.raised(closure)


def nan_in_prediction(rank):
    return Case(inputs=torch.full((2, 4), float("nan" if rank == 0 else 1)).double()).raised()


class NanBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def nan_in_jacobian(rank):
    case = Case()

    def closure():
        prediction = case.model(case.inputs)
        if rank == 1:
            prediction = NanBackward.apply(prediction)
        return prediction.square().mean(), prediction

    return case.raised(closure)


def other_weights(rank):
    return Case(seed=rank).raised()


def other_network(rank):
    return Case(width=3 + rank).raised()


def other_outputs(rank):
    case = Case()

    def closure():
        prediction = case.model(case.inputs)[:, : 3 - rank]
        return prediction.square().mean(), prediction

    return case.raised(closure)


def other_dtype(rank):
    return Case(dtype=(torch.float64, torch.float32)[rank]).raised()


def other_rate(rank):
    return Case(lr=0.1 + rank).raised()


def other_last_direction(rank):
    case = Case(momentum=0.5)
    assert case.raised() is None
    if rank == 1:
        case.optimizer.state[case.model[0].bias] = {"direction": torch.zeros(6).double()}
    return case.raised()


def other_parameters_used(rank):
    case = Case()

    def closure():
        prediction = (case.model if rank else case.model[2])(torch.ones(2, 6 - 2 * rank).double())
        return prediction.square().mean(), prediction

    return case.raised(closure)


def layerwise_on_one_rank_only(rank):
    # A statistic over the batch: of one sample it is nothing that samples share.
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    optimizer = hig.HIG(model.parameters(), engine="layerwise", **GRAM)
    inputs = torch.randn(1 + 2 * rank, 3, dtype=torch.float64)

    def closure():
        prediction = model(inputs)
        prediction = prediction - 0.5 * prediction.sum(0, keepdim=True) * (len(inputs) > 1)
        return prediction.square().mean(), prediction

    try:
        optimizer.step(closure)
    except Exception as error:
        return type(error).__name__, str(error), True


def several_predictions(rank):
    case = Case()
    case.optimizer = hig.MultiHIG(case.model.parameters())
    refused = case.raised(lambda: [case.closure()])
    case.optimizer = hig.MultiHIG(case.model.parameters(), process_group=None)
    return refused, case.raised(lambda: [case.closure()])


def kronecker_factors(rank):
    case = Case()
    case.optimizer = hig.KroneckerHIG(case.model.parameters())
    refused = case.raised()
    case.optimizer = hig.KroneckerHIG(case.model.parameters(), process_group=None)
    return refused, case.raised()


def group_of_others(rank):
    group = dist.new_group([0])
    try:
        case = Case(process_group=group)
    except ValueError as error:
        return str(error)
    return case.raised(), case.optimizer.report.communication


FAILURES = {f.__name__: f for f in (
    closure_raises, second_evaluation_raises, nan_in_prediction, nan_in_jacobian, other_weights,
    other_network, other_outputs, other_dtype, other_rate, other_last_direction,
    other_parameters_used,
    layerwise_on_one_rank_only, several_predictions, kronecker_factors, group_of_others,
)}  # fmt: skip


# -- what goes right in another way --------------------------------------------------------------


def uneven_layers(rank):
    """Sequences of another length on each rank: the layers differ, the rows do not."""

    def found(ranks, group):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        inputs = [torch.randn(3, 4 + r, 2, dtype=torch.float64) for r in range(2)]
        optimizer = hig.HIG(model.parameters(), process_group=group, **GRAM)

        def closure():
            prediction = torch.cat([model(inputs[r]).mean(1) for r in ranks])
            return prediction.square().mean(), prediction

        optimizer.step(closure)
        return flat(model.parameters()), optimizer.report

    (moved, report), (expected, _) = found([rank], "auto"), found([0, 1], None)
    return relative_error(moved, expected), report.engine, report.notes


def recorded(rank):
    def found(chosen, group):
        model, _ = networks.build("mlp")
        inputs = torch.randn(7, 4, dtype=torch.float64)[chosen]
        with hig.record(model.parameters()) as record:
            loss, prediction = networks.least_squares(model, inputs)()
        filter = hig.HalfInverse(rcond=1e-2)
        record.backward(loss, prediction, filter, method="gram", process_group=group)
        return flat(p.grad for p in model.parameters())

    return relative_error(found(share(), "auto"), found(slice(None), None))


def without_gradients_enabled(rank):
    # As within a decorated training function: the curvature must not get lost.
    usual = train(hig.HIG, "auto", **TRUST)[2].step_size
    with torch.no_grad():
        return train(hig.HIG, "auto", **TRUST)[2].step_size, usual


def page(rank):
    """The loop of docs/distributed.md, whose weights and losses are the same everywhere."""
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names = {}
    exec(compile(snippet, str(PAGE), "exec"), names)
    report = names["optimizer"].report
    return flat(names["network"].parameters()).tolist(), float(names["loss"]), report.rows


OTHERS = {f.__name__: f for f in (uneven_layers, recorded, without_gradients_enabled, page)}


def in_two(rank):
    found = {name: compare(name) for name in CASES}
    return found | {name: check(rank) for name, check in (FAILURES | OTHERS).items()}


def in_four(rank):
    return {name: compare(name) for name in WITH_FOUR}


def one_dies(rank):
    case = Case()
    assert case.raised() is None
    if rank == 1:
        os._exit(0)
    start = time.monotonic()
    return case.raised(), time.monotonic() - start


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return processes.run(in_two, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return processes.run(in_four, 4, tmp_path_factory.mktemp("four"))


def check_equal(found):
    assert len({rank["bytes"] for rank in found}) == 1
    for rank in found:
        assert rank["error"] < 1e-10
        assert rank["loss error"] < 1e-10
        assert rank["facts"][0] == rank["facts"][1]
        assert rank["steps"][0] == pytest.approx(rank["steps"][1], rel=1e-9)
        assert rank["communication"].ranks == len(found)
        assert rank["communication"].collectives > 5
        assert rank["alone"] is None


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_step_of_one(two, name):
    check_equal([rank[name] for rank in two])


@pytest.mark.parametrize("name", WITH_FOUR)
def test_four_processes_take_the_step_of_one(four, name):
    check_equal([rank[name] for rank in four])


def test_an_error_in_one_closure_is_raised_by_all(two):
    (other, after), (own, after_own) = (rank["closure_raises"] for rank in two)
    assert own == ("KeyError", "'no such file'", True)
    assert other[0] == "RankError" and other[2]
    assert other[1].startswith("rank 1 failed with KeyError: 'no such file'")
    assert after is None and after_own is None


def test_an_error_while_a_step_is_measured_undoes_it_everywhere(two):
    other, own = (rank["second_evaluation_raises"] for rank in two)
    assert own == ("OSError", "disk full", True)
    assert other[0] == "RankError" and "disk full" in other[1] and other[2]


@pytest.mark.parametrize(
    ("name", "guilty", "text"),
    [("nan_in_prediction", 0, "the prediction"), ("nan_in_jacobian", 1, "the Jacobian")],
)
def test_nan_on_one_rank_is_a_non_finite_error_on_all(two, name, guilty, text):
    found = [rank[name] for rank in two]
    assert all(kind == "NonFiniteError" and unchanged for kind, _, unchanged in found)
    assert found[guilty][1].startswith(f"{text} holds NaN")
    assert found[1 - guilty][1].startswith(f"on rank {guilty}: {text} holds NaN")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("other_weights", "values of the parameters .* same seed"),
        ("other_network", "number of parameters .* got 51 on rank 0, 58 on rank 1; build the same"),
        ("other_outputs", "outputs per sample .* got 3 on rank 0, 2 on rank 1"),
        ("other_dtype", "shapes and dtypes of the parameters"),
        ("other_rate", "learning rates, filter and other settings .* schedulers on all"),
        ("other_last_direction", "learning rates, filter and other settings"),
        ("other_parameters_used", "the Jacobian's columns .* same network"),
    ],
)
def test_what_must_be_equal(two, name, text):
    for rank in two:
        kind, found, unchanged = rank[name]
        assert kind == "ValueError" and unchanged
        assert re.search(text, found), found


def test_an_engine_that_one_rank_refuses_is_refused_by_all(two):
    other, own = (rank["layerwise_on_one_rank_only"] for rank in two)
    assert own[0] == other[0] == "SampleDependenceError"
    assert other[1].startswith("on rank 1: the layerwise engine")


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("several_predictions", "MultiHIG"), ("kronecker_factors", "KroneckerHIG")],
)
def test_what_is_not_shared_steps_in_one_process(two, name, optimizer):
    for refused, alone in (rank[name] for rank in two):
        assert refused[0] == "ValueError"
        expected = f"{optimizer} steps in one process, and torch.distributed has 2"
        assert refused[1].startswith(expected)
        assert alone is None


def test_a_group_that_others_form(two):
    member, outsider = (rank["group_of_others"] for rank in two)
    assert member == (None, None)
    assert outsider.startswith("this process does not belong to the process_group")


def test_layers_that_differ_go_row_by_row(two):
    for error, engine, notes in (rank["uneven_layers"] for rank in two):
        assert error < 1e-10
        assert engine == "rows"
        assert any("layers differ among" in note for note in notes)


def test_recorded_gradients(two):
    assert all(rank["recorded"] < 1e-10 for rank in two)


def test_the_model_is_made_where_gradients_are_off(two):
    for found, usual in (rank["without_gradients_enabled"] for rank in two):
        assert found == usual != 0.1 * 0.5  # which a loss without curvature would give


def test_the_loop_of_the_page(two):
    first, second = (rank["page"] for rank in two)
    assert first == second
    assert first[1] < 1e-3 and first[2] == 2 * 64


def test_a_process_that_dies_is_an_error_of_the_others(tmp_path):
    (error, seconds), lost = processes.run(one_dies, 2, tmp_path)
    assert lost is None
    assert error[0] == "RankError" and error[2]
    assert error[1].startswith("rank 0 of 2 lost the others")
    assert seconds < 20
