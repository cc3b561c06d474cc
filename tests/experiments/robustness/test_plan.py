"""All combinations of problems, batches, methods and seeds."""

import pytest

from experiments._robustness.plan import Plan
from experiments._robustness.variants import Variant


def test_the_default_is_twenty_seeds_of_five_problems():
    cases = Plan().cases("now")
    assert len(cases) == len(set(cases)) == 20 * 5 * 2 * 3
    assert {case.label for case in cases} == {"now"}
    assert [case.seed for case in cases] == sorted(case.seed for case in cases)
    of_dipole = {case.batch for case in cases if case.problem == "quantum_dipole"}
    assert of_dipole == {16, 8}


def test_equal_cases_are_run_once():
    plan = Plan(("conditioning_toy",), (Variant("hig"), Variant("hig")), (1.0, 1.0, 1e-9), 2)
    assert [(case.seed, case.batch) for case in plan.cases("now")] == [
        (0, 128), (0, 1), (1, 128), (1, 1),
    ]  # fmt: skip


def test_problems_without_the_method():
    with pytest.raises(ValueError, match="multitask/toy has no settings for hig, it has them for"):
        Plan(("multitask/toy",), (Variant("hig"),)).cases("now")
