"""A step that several processes take together against the step of one on the whole batch.

Two processes run most of the checks, four the rest; each check is a test of its own.
"""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import hig
from hig.conflictfree import ConFIG_update
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
    "sketch": (hig.HIG, {"steps": 3, "sketch": 1, **PROJECTED, **TRUST}),
    # 210 samples of three outputs: one direction of each.
    "sketch, auto": (hig.HIG, {"steps": 2, "sketch": "auto", "scale": 30, **TRUST}),
    "controls, trust": (hig.HIG, {"network": "few controls", "steps": 3, **PROJECTED, **TRUST}),
    "damped, sketch": (hig.LevenbergMarquardt, {"steps": 3, "sketch": 2, "damping": 1e-2}),
    "damped, many samples": (hig.LevenbergMarquardt, {**MANY, "rcond": 0.0, "damping": 1e-2}),
}
WITH_FOUR = [
    "conv2d", "attention", "mlp by rows", "many samples", "svd", "products", "trust", "sum",
    "damped", "sketch",
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
    optimizer = make(
        given, process_group=group, reduction=reduction, **{"step_rule": "fixed"} | options
    )
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


# -- checks of another kind ----------------------------------------------------------------------


def uneven_layers(rank):
    """Sequences of another length on each rank: the layers differ, the rows do not."""

    def found(ranks, group):
        torch.manual_seed(0)
        # Wide enough for factors to be exchanged, which are smaller than the columns.
        model = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 2)).double()
        inputs = [torch.randn(3, 4 + r, 20, dtype=torch.float64) for r in range(2)]
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


def floor(rank):
    """Levenberg-Marquardt at the floor of one batch, and after the data have changed."""
    return [at_the_floor(rule) for rule in ("fixed", "trust", "line_search")]


def at_the_floor(rule):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    inputs, targets = torch.randn(7, 3)[share()], torch.randn(2, 7, 2)[:, share()]
    lr = 7 if rule == "fixed" else 1  # half the sum for the fixed step
    optimizer = hig.LevenbergMarquardt(model.parameters(), lr=lr, step_rule=rule)
    reports = []
    for target in targets:

        def closure(target=target):
            prediction = model(inputs)
            return 0.5 * (prediction - target).square().sum(1).mean(), prediction

        for _ in range(40):
            optimizer.step(closure)
            reports.append(optimizer.report)
    notes = sum("below the rounding of the loss" in str(r.notes) for r in reports[20:40])
    losses = [float(r.loss) for r in reports[39:]]
    return notes, losses, [r.damping for r in reports], flat(model.parameters()).tolist()


def later_samples(rank):
    """Runs whose batches change, one of them so that a step goes back to the safe point."""
    found = {}
    for kind in (hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt):
        alone, expected = on_changing_batches(kind, slice(None), None)
        moved, seen = on_changing_batches(kind, share(), "auto")
        error = relative_error(moved, alone)
        found[kind.__name__] = error, moved.tolist(), seen, expected
    return found


def on_changing_batches(kind, chosen, group):
    torch.manual_seed(0)
    model, _ = networks.build("narrow")
    optimizer = kind(model.parameters(), rcond=1e-2, step_rule="trust", process_group=group)
    generator, seen = torch.Generator().manual_seed(1), []
    for number in range(14):
        inputs = torch.randn(7, 4, generator=generator, dtype=torch.float64)
        target = torch.ones((), dtype=torch.float64)
        if number == 6:
            safe = [optimizer.state[p]["safe_point"] for p in model.parameters()]
            with torch.no_grad():
                names = dict(zip(dict(model.named_parameters()), safe, strict=True))
                target = torch.func.functional_call(model, names, (inputs[chosen],))

        def closure(inputs=inputs[chosen], target=target):
            prediction = model(inputs)
            return (prediction - target).square().flatten(1).sum(1).mean(), prediction

        optimizer.step(closure)
        returned = any("back to the parameters" in note for note in optimizer.report.notes)
        seen.append((returned, optimizer.state["step_rule"]["ceiling"]))
    return flat(model.parameters()), seen


def of_parts(model, inputs, walls, reduction):
    """Losses of two parts of the rows, and the number of rows that each is a mean over."""
    both = model(torch.cat([inputs, walls]))
    inside, boundary = both.split([len(inputs), len(walls)])
    sizes = (1, 1) if reduction == "mean" else (len(inputs) / 7, len(walls) / 7)
    return [
        (sizes[0] * inside.square().mean(), both),
        (sizes[1] * (boundary - 1).square().mean(), both),
    ]


def of_columns(model, inputs, walls, reduction):
    prediction = model(inputs)
    first = prediction[:, :1].square().mean()
    return [(first, prediction), ((prediction - 1).square().mean(), prediction)]


def of_predictions(model, inputs, walls, reduction):
    pairs = [(model(inputs).tanh(), 0.0), (model(walls).square(), 0.5)]
    return [((p - target).square().mean(), p) for p, target in pairs]


def drawn(matrix):
    """An operator that draws from the generator of its process."""
    return torch.rand(len(matrix), dtype=matrix.dtype) @ matrix


# name -> losses, arguments
SEVERAL = {
    "several losses of columns": (of_columns, TRUST),
    "several losses of columns by rows": (of_columns, {"engine": "rows", **GRAM}),
    "several losses of parts, added": (of_parts, {"reduction": "sum", **GRAM}),
    "several predictions": (of_predictions, TRUST),
    "several predictions along a line": (
        of_predictions,
        {**GRAM, "step_rule": "line_search", "lr": 0.5},
    ),
}


SEVERAL_WITH_FOUR = ["several losses of columns", "several predictions"]


def train_several(losses, group, reduction="mean", operator=ConFIG_update, **options):
    torch.manual_seed(0)
    model = networks.build("narrow")[0]
    inputs, walls = torch.randn(2, 7, 4, dtype=torch.float64)
    if group is not None:  # other numbers of each: 4 and 5, 3 and 2
        inputs = inputs[share()]
        walls = walls.split([5, 2] if dist.get_world_size() == 2 else [2, 1, 3, 1])[dist.get_rank()]
    optimizer = hig.MultiHIG(
        model.parameters(), operator=operator, process_group=group, reduction=reduction, **options
    )
    start = flat(model.parameters())
    torch.manual_seed(0 if group is None else dist.get_rank())
    found = []
    for _ in range(3):
        optimizer.step(lambda: losses(model, inputs, walls, reduction))
        report = optimizer.report
        found += [*report.losses.tolist(), *report.cosines.tolist(), *report.slopes.tolist()]
    return flat(model.parameters()) - start, torch.tensor(found, dtype=torch.float64), report


def compare_several(name):
    losses, options = SEVERAL[name]
    (moved, numbers, report), alone = (
        train_several(losses, group, **options) for group in ("auto", None)
    )
    return {
        "bytes": moved.numpy().tobytes(),
        "errors": [relative_error(moved, alone[0]), relative_error(numbers, alone[1])],
        "steps": [report.step_size, alone[2].step_size],
        "notes": str(report),
        "communication": [report.communication, alone[2].communication],
    }


def drawn_operator(rank):
    return [train_several(f, "auto", operator=drawn, **GRAM)[0].tolist() for f in (
        of_columns, of_predictions
    )]  # fmt: skip


def means_of_parts(rank):
    return [train_several(f, "auto", **GRAM)[2].parts[0].notes for f in (of_parts, of_columns)]


CHECKS = (
    drawn_operator,
    means_of_parts,
    uneven_layers,
    recorded,
    without_gradients_enabled,
    page,
    floor,
    later_samples,
)
OTHERS = {f.__name__: f for f in CHECKS}


def in_two(rank):
    found = {name: compare(name) for name in CASES}
    found |= {name: compare_several(name) for name in SEVERAL}
    return found | {name: check(rank) for name, check in OTHERS.items()}


def in_four(rank):
    found = {name: compare(name) for name in WITH_FOUR}
    return found | {name: compare_several(name) for name in SEVERAL_WITH_FOUR}


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


def check_several(found):
    assert len({rank["bytes"] for rank in found}) == 1
    for rank in found:
        assert max(rank["errors"]) < 1e-10
        assert rank["steps"][0] == pytest.approx(rank["steps"][1], rel=1e-9)
        here, alone = rank["communication"]
        assert here.ranks == len(found) and alone is None
        assert f"{len(found)} processes:" in rank["notes"]


@pytest.mark.parametrize("name", SEVERAL)
def test_two_processes_step_for_several_losses(two, name):
    check_several([rank[name] for rank in two])


@pytest.mark.parametrize("name", SEVERAL_WITH_FOUR)
def test_four_processes_step_for_several_losses(four, name):
    check_several([rank[name] for rank in four])


def test_operators_that_draw_give_the_same_step(two):
    first, second = (rank["drawn_operator"] for rank in two)
    assert first == second


def test_means_of_parts_are_noted(two):
    for parts, columns in (rank["means_of_parts"] for rank in two):
        assert [note.partition(", which")[0] for note in parts] == [
            f"loss {index} depends on {numbers} of the 9 and 5 samples of the process ranks"
            for index, numbers in enumerate(("4 and 3", "5 and 2"))
        ]
        assert columns == []


def test_layers_that_differ_go_row_by_row(two):
    for error, engine, notes in (rank["uneven_layers"] for rank in two):
        assert error < 1e-10
        assert engine == "rows"
        assert any("differ among process ranks" in note for note in notes)


def test_recorded_gradients(two):
    assert all(rank["recorded"] < 1e-10 for rank in two)


def test_the_model_is_made_where_gradients_are_off(two):
    for found, usual in (rank["without_gradients_enabled"] for rank in two):
        assert found == usual != 0.1 * 0.5  # which a loss without curvature would give


def test_the_loop_of_the_page(two):
    first, second = (rank["page"] for rank in two)
    assert first == second
    assert first[1] < 1e-3 and first[2] == 2 * 64


@pytest.mark.parametrize("kind", ["HIG", "GaussNewton", "LevenbergMarquardt"])
def test_later_samples_are_those_of_all_processes(two, kind):
    first, second = (rank["later_samples"][kind] for rank in two)
    error, moved, seen, expected = first
    assert second[1] == moved and second[2] == seen  # the same bits
    assert error < 1e-8
    assert [returned for returned, _ in seen] == [returned for returned, _ in expected]
    assert seen[6][0]
    ceilings = [ceiling for _, ceiling in seen]
    assert ceilings == pytest.approx([ceiling for _, ceiling in expected], rel=1e-8)
    assert len(set(ceilings)) > 5


def test_levenberg_marquardt_at_the_floor_of_one_batch(two):
    for first, second in zip(*(rank["floor"] for rank in two), strict=True):
        notes, losses, dampings, moved = first
        assert dampings == second[2]
        assert moved == second[3]
        assert notes >= 10
        assert max(dampings[20:40]) <= 100 * min(dampings[20:40])
        # The optimum of the second data is reached within twenty steps.
        assert losses[1] > 1.1 * losses[-1]
        assert losses[21] < 1.01 * losses[-1]
