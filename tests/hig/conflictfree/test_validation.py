"""Validation of operators, directions, models and states, with the remedy in the text."""

import numpy as np
import pytest
import torch

from hig.conflictfree import (
    ConFIGOperator,
    EqualWeight,
    PseudoMomentumOperator,
    TrackMinimum,
)
from hig.conflictfree._validation import (
    check_combined,
    check_model,
    check_operator,
    check_state,
)

MATRIX = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("operator", "match"),
    [
        (ConFIGOperator, r"an object, got the class ConFIGOperator; make one: ConFIGOperator\("),
        ("config", r"to a direction \(P,\), got 'config'; take ConFIGOperator\(\)"),
        (torch.ones(2), r"got a tensor of shape \(2,\)"),
        (PseudoMomentumOperator(2), "without a memory.*, got PseudoMomentumOperator; take"),
    ],
)
def test_what_is_no_operator(operator, match):
    with pytest.raises(TypeError, match=match):
        check_operator(operator)


@pytest.mark.parametrize(
    ("direction", "error", "match"),
    [
        (None, TypeError, r"map \(2, 3\) to a tensor of shape \(3,\), got None"),
        (np.ones(3), TypeError, "got ndarray"),
        (1.0, TypeError, "got 1.0"),
        (torch.ones(()), ValueError, r"of shape \(3,\), got \(\)"),
        (MATRIX, ValueError, r"got \(2, 3\); return a combination of the rows"),
    ],
)
def test_what_is_no_direction(direction, error, match):
    check_combined(MATRIX.sum(0), MATRIX)
    with pytest.raises(error, match=match):
        check_combined(direction, MATRIX)


@pytest.mark.parametrize("model", [TrackMinimum, "x", EqualWeight()])
def test_what_is_no_length_model(model):
    check_model(TrackMinimum(), "length_model", "rescale_length", "TrackMinimum()")
    with pytest.raises(TypeError, match="length_model must"):
        ConFIGOperator(length_model=model)
    with pytest.raises(TypeError, match="weight_model must"):
        ConFIGOperator(weight_model=TrackMinimum())


def test_states():
    check_state({"m": 1, "t": 2}, ConFIGOperator(), "m", "t")
    with pytest.raises(ValueError, match=r"lacks t, it has \['m'\]; load what ConFIGOperator"):
        check_state({"m": 1}, ConFIGOperator(), "m", "t")
