"""The report of a step: its numbers and its text."""

import copy
import pickle

import pytest
import torch

import hig
from hig._step.reports import StepReport
from hig._step.row_map import FewerRows
from hig._torch.ranks import Communication
from tests.hig.networks import build, least_squares
from tests.textbook import textbook_jacobian


def report(**changes):
    settings = {
        "loss": torch.tensor(0.125),
        "engine": "layerwise",
        "route": "row_gram",
        "rows": 4,
        "columns": 9,
        "spectrum": lambda: torch.tensor([4.0, 1.0, 0.5, 0.0], dtype=torch.float64),
        "rcond": 0.125,
    }
    return StepReport(**(settings | changes))


@pytest.mark.parametrize(
    ("rcond", "rank"), [(0.125, 2), (0.124, 3), (1e-300, 3), (0.25, 1), (0.999, 1)]
)
def test_rank_counts_strictly_above_the_cutoff(rcond, rank):
    found = report(rcond=rcond)
    assert found.rank == rank
    assert isinstance(found.rank, int)


def test_rank_of_a_zero_jacobian():
    assert report(spectrum=lambda: torch.zeros(3, dtype=torch.float64)).rank == 0


def test_where_nothing_is_cut_no_spectrum_is_needed():
    asked = []
    found = report(rcond=0.0, spectrum=lambda: asked.append(1))
    assert found.rank == 4
    assert not asked


def test_the_spectrum_is_computed_once():
    asked = []
    found = report(spectrum=lambda: asked.append(1) or torch.ones(2))
    assert torch.equal(found.singular_values, found.singular_values)
    assert len(asked) == 1


def test_text_of_a_plain_step():
    text = str(report(seconds={"jacobian": 0.0125, "gram": 0.002}))
    assert text == (
        "loss 0.125; rank 2 of 4 (J 4 x 9, rcond 1.2e-01); engine layerwise, route row_gram; "
        "ms: jacobian 12.5, gram 2.0"
    )


def test_text_of_a_step_with_everything():
    text = str(
        report(step_size=0.5, gain_ratio=0.876, damping=1e-3, notes=["first note", "second note"])
    )
    assert "step size 0.5; gain ratio 0.88; damping 1.00e-03; " in text
    assert text.endswith("first note; second note")


def test_text_of_a_step_of_several_processes():
    exchanged = Communication(2, collectives=3, received=4_000_000, seconds=0.5)
    text = str(report(communication=exchanged, notes=["a note"]))
    assert text.endswith("; 2 processes: 3 exchanges, 4 MB, 500.0 ms; a note")


@pytest.mark.parametrize("name", ["step_size", "gain_ratio", "damping"])
def test_what_was_not_measured_is_not_in_the_text(name):
    word = name.replace("_", " ")
    assert word not in str(report())
    assert word in str(report(**{name: 0.0}))  # zero is a measurement


def test_the_smaller_side_bounds_the_rank():
    assert "rank 2 of 4 (J 9 x 4" in str(report(rows=9, columns=4))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"rows": 1023}, False),
        ({"rcond": 0.0}, False),
        ({"route": "lanczos"}, False),
        ({"rcond": 1e-9}, False),  # keeps all
        ({"seconds": {"jacobian": 9.0, "decomposition": 1.0}}, False),
    ],
)
def test_few_values_of_many_are_a_case_for_products_alone(changes, expected):
    values = torch.cat([torch.ones(128), torch.full((896,), 1e-3)]).double()
    large = {"rows": 1024, "columns": 2000, "rcond": 1e-2, "spectrum": lambda: values}
    large |= {"seconds": {"jacobian": 1.0, "decomposition": 9.0}}
    assert ("method='lanczos' finds them faster" in str(report(**(large | changes)))) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"rcond": 0.0}, True),
        ({"samples": 0}, False),
        ({"samples": 512}, False),  # three outputs each
        ({"rows": 512, "samples": 64}, False),
        ({"seconds": {"forward": 9.0, "jacobian": 1.0}}, False),
        ({"seconds": {}}, False),
        ({"fewer_rows": FewerRows(128, 12, 30, True)}, False),
    ],
)
def test_time_that_goes_into_many_outputs_is_a_case_for_a_sketch(changes, expected):
    large = {"rows": 1536, "columns": 2000, "samples": 128, "rcond": 1e-2}
    large |= {"seconds": {"forward": 1.0, "jacobian": 9.0}}
    large |= {"spectrum": lambda: torch.ones(1536).double()}
    text = str(report(**(large | changes)))
    assert ("went into 12 rows of each sample: sketch='auto' takes few" in text) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"rcond": 0.5}, "nearly everything is cut"),
        ({"rcond": 1e-9}, "may be rounding alone: rcond='auto' cuts them"),
        ({"rcond": 1e-9, "dtype": torch.float64}, None),
        ({"rcond": 0.0}, None),
        ({"rcond": 0.5, "route": "lanczos"}, None),
    ],
)
def test_a_cut_of_all_or_of_nothing_gives_a_hint(changes, expected):
    values = torch.tensor([1.0, 1e-3, 1e-8], dtype=torch.float64)
    given = {"rows": 3, "columns": 9, "rcond": 1e-6, "dtype": torch.float32}
    text = str(report(**(given | {"spectrum": lambda: values} | changes)))
    assert ("rcond='auto'" in text) == (expected is not None)
    assert expected is None or expected in text


def test_a_zero_jacobian_is_no_case_for_another_cut():
    text = str(report(rows=3, columns=9, spectrum=lambda: torch.zeros(3).double()))
    assert "rcond='auto'" not in text


def damped(optimizer=hig.LevenbergMarquardt, rows=8):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    x = torch.randn(rows, 3)

    def closure():
        prediction = network(x)
        return (prediction - 1).square().mean(), prediction

    return optimizer(network.parameters()), closure


def test_singular_values_of_a_damped_step_until_the_next():
    optimizer, closure = damped()
    _, prediction = closure()
    parameters = optimizer.param_groups[0]["params"]
    expected = torch.linalg.svdvals(textbook_jacobian(prediction, parameters))
    optimizer.step(closure)
    first = optimizer.report
    copies = [copy.deepcopy(first), copy.copy(first)]
    optimizer.step(closure)
    unread = optimizer.report
    for late in (first, *copies):
        with pytest.raises(ValueError, match=r"read report.singular_values right after the step"):
            _ = late.singular_values
    values = unread.singular_values
    assert values.shape == expected.shape
    optimizer.step(closure)
    assert unread.singular_values is values  # read in time
    assert str(first)  # needs none
    assert first.rank == min(first.rows, first.columns)


def test_singular_values_are_those_of_the_matrix():
    optimizer, closure = damped()
    _, prediction = closure()
    parameters = optimizer.param_groups[0]["params"]
    expected = torch.linalg.svdvals(textbook_jacobian(prediction, parameters).double())
    optimizer.step(closure)
    found = copy.deepcopy(optimizer.report).singular_values
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected[0]))


def test_a_step_that_fails_ends_the_time_for_singular_values():
    optimizer, closure = damped()
    optimizer.step(closure)
    with pytest.raises(ValueError, match="the closure must return"):
        optimizer.step(lambda: None)
    with pytest.raises(ValueError, match="right after the step"):
        _ = optimizer.report.singular_values


def test_a_saved_report_has_the_values_that_were_read():
    optimizer, closure = damped()
    optimizer.step(closure)
    unread = pickle.loads(pickle.dumps(optimizer.report))
    with pytest.raises(ValueError, match="right after the step"):
        _ = unread.singular_values
    values = optimizer.report.singular_values
    assert torch.equal(pickle.loads(pickle.dumps(optimizer.report)).singular_values, values)


def test_a_damped_record():
    network = torch.nn.Linear(3, 2)
    with hig.record(network.parameters()) as record:
        prediction = network(torch.randn(5, 3))
        loss = prediction.square().mean()
    record.backward(loss, prediction, filter=hig.Damped(1e-2))
    assert len(record.report.singular_values) == 8
    record.backward(loss, prediction, filter=hig.Damped(1e-2))
    late = record.report
    del record
    with pytest.raises(ValueError, match="right after the step"):
        _ = late.singular_values


def test_the_loss_of_a_report_is_no_view_of_all_losses():
    optimizer, closure = damped()
    whole = []

    def one_of_many():
        loss, prediction = closure()
        losses = torch.cat([loss[None], torch.zeros(10_000)])
        whole.append(losses)
        return losses[0], prediction

    loss = optimizer.step(one_of_many)
    for found in (loss, optimizer.report.loss):
        assert found.untyped_storage().nbytes() == found.element_size()


def test_the_report_of_a_step():
    network, inputs = build("mlp", torch.float32)
    closure = least_squares(network, inputs)
    optimizer = hig.HIG(network.parameters(), lr=0.5, rcond=1e-2, step_rule="fixed")
    assert optimizer.report is None
    optimizer.step(closure)
    report = optimizer.report
    assert (report.rows, report.columns) == (15, sum(p.numel() for p in network.parameters()))
    assert report.engine == "layerwise"
    assert report.step_size == 0.5
    assert report.rank == int((report.singular_values > 1e-2 * report.singular_values[0]).sum())
    assert set(report.seconds) >= {"forward", "jacobian", "gram", "decomposition", "direction"}
    assert "rank" in str(report)
