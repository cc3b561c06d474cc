"""Runs of one kind, and which of them are lost."""

import json

import pytest

from experiments._robustness.case import Record
from tests.experiments.robustness.made import case, record


def test_every_part_of_a_case_is_in_its_place():
    changes = [
        {}, {"seed": 1}, {"label": "after"}, {"problem": "pinn/burgers"}, {"method": "gn"},
        {"rule": "fixed"}, {"rcond": 1e-6}, {"rcond": "auto"}, {"batch": 64}, {"seconds": 4.0},
        {"dtype": "float64"}, {"lr": 0.5},
    ]  # fmt: skip
    places = {case(**changed).place for changed in changes}
    assert len(places) == len(changes)
    name = "hig_trust_rcond1e-6_batch128_15s_float32_seed0.json"
    assert case(rcond=1e-6).place.as_posix() == f"before/nonlinear_oscillators/{name}"
    assert all(len(place.parts) == 3 for place in places)


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"end": 0.1}, False),
        ({"end": 0.11}, True),
        ({"end": None}, True),
        ({"end": 0.9, "steps": 99}, False),
        ({"end": 1.0, "steps": 99}, False),  # every step was taken back
        ({"end": 1.1, "steps": 99}, True),
        ({"end": None, "steps": 3}, True),
        ({"end": 0.2, "problem": "conditioning_toy", "method": "gn"}, False),
        ({"end": 0.21, "problem": "conditioning_toy", "method": "gn"}, True),
        ({"end": 0.2, "problem": "conditioning_toy"}, True),
        ({"end": 3.0, "start": 40.0}, False),
    ],
)
def test_lost_runs(changes, lost):
    assert record(**changes).lost is lost


def test_the_first_note_that_says_so():
    assert record().warned is None
    notes = ((1, "damping 3: the loss rises"), (7, "the run is lost: restart it"), (9, "lost"))
    assert record(notes=notes).warned == 7
    assert record(notes=((2, "glosted"),)).warned is None


def test_a_record_survives_json():
    whole = record(end=None, notes=((2, "a note"),), rcond="auto")
    assert Record.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize("change", [{"end": float("nan")}, {"start": None}, {"more": 1}])
def test_damaged_records(change):
    found = record().to_json() | change
    with pytest.raises((TypeError, ValueError)):
        Record.from_json(found)
