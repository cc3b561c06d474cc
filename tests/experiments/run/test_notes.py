"""Notes of the reports of a run."""

from experiments._run.notes import Notes


def test_notes_that_differ_in_numbers_are_one():
    notes = Notes()
    first = ["damping 1.5e-3 is high", "other"]
    assert notes.add(1, first) == first
    assert notes.add(2, ["damping 3e+10 is high"]) == []
    assert notes.add(5, ["damping is high", "other"]) == ["damping is high"]
    assert notes.found == ((1, "damping 1.5e-3 is high"), (1, "other"), (5, "damping is high"))
    assert notes.texts == [*first, "damping is high"]
