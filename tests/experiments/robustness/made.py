"""Records that need no training."""

from dataclasses import fields

from experiments._robustness.case import Case, Record

MACHINE = {"hig": "0.1.0", "processor": "none in particular"}


def case(seed=0, **changes):
    found = {
        "label": "before",
        "problem": "nonlinear_oscillators",
        "method": "hig",
        "rule": "trust",
        "rcond": None,
        "batch": 128,
        "seconds": 15.0,
        "dtype": "float32",
        "seed": seed,
    }
    return Case(**found | changes)


def record(seed=0, end=0.001, steps=500, **changes):
    """A run from a loss of 1; changes are of the case or of the record."""
    of_case = {field.name for field in fields(Case)} & changes.keys()
    found = {
        "case": case(seed, **{name: changes.pop(name) for name in of_case}),
        "start": 1.0,
        "early": 0.5,
        "end": end,
        "steps": steps,
        "trained": 10.0,
        "stopped": "time" if end is not None else "NonFiniteError: the loss is nan",
        "notes": (),
        "origin": {"command": "python", "revision": "abc", "hig_revision": "def"},
        "machine": MACHINE,
    }
    return Record(**found | changes)
