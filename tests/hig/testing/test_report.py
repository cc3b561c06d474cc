"""Reports of simulator checks as text and as lists."""

from hig.testing import Check, SimulatorReport

OK, NOTE = Check("output", "ok", "shape (4, 2)"), Check("batched passes", "note", "one by one", "?")
FAIL = Check("gradient check", "fail", "by input 0 only within 1e-03", "look for .item()")


def test_checks_are_lines_of_a_table_with_the_remedy_below():
    assert str(OK) == "ok    output               shape (4, 2)"
    first, second = str(FAIL).splitlines()
    assert first.index("by input") == str(OK).index("shape")
    assert second.strip() == "-> look for .item()"
    assert second.index("->") == first.index("by input")


def test_the_last_line_says_what_a_step_may_do():
    report = SimulatorReport([OK], "layerwise", True, ("gram", "svd"), 3, 50, 20)
    assert str(report).splitlines()[1] == (
        "ready: engine layerwise, 3 backward passes a step in batches, method gram, svd; "
        "checked by 50 simulations, 20 backward passes"
    )
    noted = SimulatorReport([OK, NOTE], "rows", False, ("gram",), 8)
    assert "ready, with notes (batched passes): engine rows" in str(noted)
    assert "8 backward passes a step one by one" in str(noted)
    failed = SimulatorReport([OK, NOTE, FAIL], "rows", False, ("gram",), 8)
    assert "not ready (gradient check): engine rows" in str(failed)
    none = SimulatorReport([FAIL], simulations=3)
    assert str(none).splitlines()[-1].startswith("not ready for a half-inverse step: gradient")
