"""Tables of runs, against numbers counted by hand."""

import math

import pytest

from experiments._robustness.summary import comparison, defaults, groups, table
from tests.experiments.robustness.made import record


def cells(text, row):
    return [cell.strip() for cell in text.splitlines()[2 + row].strip("|").split("|")]


def of(ends, **changes):
    return [record(seed, end=end, **changes) for seed, end in enumerate(ends)]


def test_numbers_of_a_group():
    (group,) = groups(of([0.001, 0.002, 0.004, 0.5, None], early=0.25)).values()
    assert group.lost == 2 and group.median == 0.002
    assert group.worst == math.inf and group.spread == math.inf
    assert group.rate == 50.0 and group.early == 0.25
    (group,) = groups(of([0.001, 0.002, 0.004, 0.5])).values()
    assert (group.lost, group.median, group.worst, group.spread) == (1, 0.002, 0.5, 250)


def test_groups_without_a_median_or_twenty_steps():
    (group,) = groups(of([0.9, None], steps=150)).values()
    assert math.isnan(group.median) and math.isnan(group.spread)
    (group,) = groups(of([0.9], steps=10, early=None)).values()
    assert math.isnan(group.early)
    (group,) = groups([record(0, early=None), record(1, early=None), record(2)]).values()
    assert group.early == math.inf  # of a loss that overflowed


def test_a_row_for_each_problem_batch_and_method():
    made = [
        *of([0.001, 0.003], method="lm"),
        *of([0.002, 0.5]),
        *of([0.002], batch=64, rcond=1e-4),
        *of([0.002], problem="cart_pole", dtype="float64"),
    ]
    text = table(list(reversed(made)))
    assert cells(text, 0)[:5] == ["Nonlinear oscillators, 15 s", "128", "HIG trust", "2", "1"]
    assert cells(text, 0)[5:] == ["0.5", "2.0e-3", "0.5", "250", "50"]
    assert cells(text, 1)[2:7] == ["Levenberg–Marquardt trust", "2", "0", "0.5", "2.0e-3"]
    assert cells(text, 2)[1:3] == ["64", "HIG trust, rcond 1e-4"]
    assert cells(text, 3)[0] == "Cart-pole, 15 s, float64"
    assert len(text.splitlines()) == 6


def test_several_settings_of_a_method_are_compared_with_the_best():
    made = [
        *of([0.002], rule="default"),
        *of([0.001], rcond=1e-4, lr=0.5),
        *of([0.5], rcond=1e-3),
        *of([0.004], method="gn"),
    ]
    text = table(made)
    assert "over best" in text and "over best" not in table(made[:1])
    found = {cells(text, row)[2]: cells(text, row)[7] for row in range(4)}
    assert found == {
        "HIG default": "2", "HIG trust, rcond 1e-4, lr 0.5": "1", "HIG trust, rcond 1e-3": "–",
        "Gauss–Newton trust": "1",
    }  # fmt: skip


def test_notes_on_lost_runs_are_counted():
    notes = ((9, "the run is lost"),)
    made = [record(0, end=0.5, notes=notes), record(1, end=0.5), record(2, notes=notes)]
    assert cells(table(made), 0)[4] == "2 (1 noted)"


def test_two_labels_are_compared_seed_by_seed():
    before = of([0.002, 0.002, 0.5, 0.004, 7.0])
    after = of([0.001, 0.001, 0.003], label="after", steps=450, early=0.05)
    after += of([0.1], label="after", method="gn")
    text = comparison(before, after)
    assert len(text.splitlines()) == 3
    assert cells(text, 0) == [
        "Nonlinear oscillators, 15 s", "128", "HIG trust", "3", "1 → 0", "0.5 → 0.05",
        "2.0e-3 → 1.0e-3", "0.5", "250 → 3", "0.9",
    ]  # fmt: skip


def test_nothing_to_compare():
    text = "The two have no run in common."
    assert comparison(of([0.1]), of([0.1], batch=64)) == text
    assert comparison([record(0)], [record(1)]) == text


@pytest.mark.parametrize(
    ("end", "shown"), [(2.5e-11, "2.5e-11"), (0.099, "9.9e-2"), (12.34, "12"), (3e20, "3.0e20")]
)
def test_losses_are_written_in_two_digits(end, shown):
    assert cells(table(of([end], start=1e22)), 0)[6] == shown


def test_defaults_beside_the_best_of_the_others():
    made = [
        *of([0.003, 0.004, 0.9], rule="default"),
        *of([0.002], rcond=1e-4, lr=0.5),
        *of([0.001, 0.003], rcond=1e-3),
        *of([0.5], rcond=1e-6),  # lost
        *of([0.006], method="gn", rule="default"),  # with nothing to compare
        *of([0.008], method="lm", rule="default"),
        *of([0.002], method="lm", rule="published"),
        *of([0.001], method="lm", rule="published", batch=64),
    ]
    text = defaults(made)
    assert len(text.splitlines()) == 2 + 2
    where = ["Nonlinear oscillators, 15 s", "128"]
    assert cells(text, 0)[:5] == [*where, "HIG", "4.0e-3", "2.0e-3"]
    assert cells(text, 0)[5] in ("trust, rcond 1e-4, lr 0.5", "trust, rcond 1e-3")
    assert cells(text, 0)[6:] == ["2", "3", "1"]
    assert cells(text, 1)[2:7] == ["Levenberg–Marquardt", "8.0e-3", "2.0e-3", "published", "4"]
    assert "no runs by default" in defaults(of([0.1]))
