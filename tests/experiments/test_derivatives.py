import pytest

from experiments import derivatives


def test_the_table_has_what_is_wrong_or_missing(capsys):
    derivatives.main(["tanh", "hardsigmoid", "cholesky_inverse", "--reasons"])
    printed = capsys.readouterr().out
    assert "3 operations" in printed
    assert "| one backward pass | 3 | – | – |" in printed
    assert "| forward mode (LinearStep) | 2 | cholesky_inverse 62% | – |" in printed
    assert "(curvature, Lanczos, jet) | 2 | – | hardsigmoid |" in printed
    assert "hardsigmoid, double: derivative for aten::hardsigmoid_backward" in printed


def test_unknown_operations_are_refused(capsys):
    with pytest.raises(SystemExit):
        derivatives.main(["weather"])
    assert "invalid choice: 'weather'" in capsys.readouterr().err
