import pytest

from experiments import derivatives


def test_the_table_has_what_is_wrong_or_missing(capsys):
    derivatives.main(["tanh", "hardsigmoid", "cholesky_inverse", "--reasons"])
    printed = capsys.readouterr().out
    assert "3 operations" in printed
    assert "backward (one backward pass): 3 right, 0 wrong, 0 missing" in printed
    assert "forward (forward mode): 2 right, 1 wrong, 0 missing" in printed
    assert "| hardsigmoid |  |  |  |  | missing | missing |" in printed
    assert "| cholesky_inverse |  |  |  | **" in printed
    assert "| tanh" not in printed
    assert "hardsigmoid, double: derivative for aten::hardsigmoid_backward" in printed


def test_unknown_operations_are_refused(capsys):
    with pytest.raises(SystemExit):
        derivatives.main(["weather"])
    assert "invalid choice: 'weather'" in capsys.readouterr().err
