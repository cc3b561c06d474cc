"""Options of a step: defaults, checks, and no change after the constructor."""

from dataclasses import fields
from inspect import signature

import numpy as np
import pytest

import hig
from hig._step.options import StepOptions


def test_the_defaults_are_those_of_the_optimisers():
    defaults = {field.name: field.default for field in fields(StepOptions)}
    assert StepOptions() == StepOptions(**defaults)
    for kind in (hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt, hig.MultiHIG):
        parameters = signature(kind).parameters.values()
        keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        if kind is hig.MultiHIG:  # of several losses no step is the best
            assert keywords.pop("step_rule") == "fixed"
        assert keywords and keywords.items() <= defaults.items()
    assert keywords.keys() < defaults.keys()  # of MultiHIG
    parameters = signature(hig.GaussNewton).parameters.values()
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == defaults.keys()


@pytest.mark.parametrize("chunk", [1, np.int64(7), None])
def test_the_chunk_is_a_plain_number(chunk):
    found = StepOptions(chunk=chunk).chunk
    assert found == chunk
    assert type(found) in (int, type(None))
