"""Operators of this package and of ``conflictfree``, timed in turn."""

import pytest
import torch

from experiments._measure import conflictfree_peers
from experiments._measure.conflictfree_peers import (
    OURS,
    THEIRS,
    compare_operators,
    network_of,
    operator_cases,
    operator_table,
    utility_cases,
)
from tests.textbook import flat, relative_error


@pytest.mark.parametrize("size", [10**3, 10**4, 10**5])
def test_networks_have_about_so_many_parameters(size):
    assert 0.7 < flat(network_of(size).parameters()).numel() / size < 1.1


@pytest.mark.parametrize("losses", [2, 3])
def test_both_compute_the_same(losses, monkeypatch):
    solve = torch.linalg.lstsq  # what torch takes by default is not always right
    monkeypatch.setattr(torch.linalg, "lstsq", lambda a, b: solve(a, b, driver="gelsd"))
    for case in [*operator_cases(losses), *utility_cases()]:
        results = []
        for package in (THEIRS, OURS):
            torch.manual_seed(1)
            network = network_of(1000)
            gradients = list(torch.randn(losses, flat(network.parameters()).numel()))
            returned = case.make(package, network, gradients)()
            written = flat(p.grad for p in network.parameters())
            results.append(written if returned is None else returned)
        assert relative_error(results[1], results[0]) < 1e-3, case.name


def test_rows_and_table(monkeypatch):
    monkeypatch.setattr(conflictfree_peers, "TURN_SECONDS", 0.0)
    rows = compare_operators(2, "processor", 60.0, losses=(2, 3), sizes=(500,))
    assert len(rows) == len(utility_cases()) + len(operator_cases(2)) + len(operator_cases(3))
    for row in rows:
        assert row["rounds"] == 2
        assert row["of_conflictfree"] > 0
    *head, line = operator_table(
        [{"case": "PCGrad", "losses": 2, "parameters": 9876, "hig_us": 1234.5,
          "conflictfree_us": 2469.0, "of_conflictfree": 0.5}]
    ).splitlines()  # fmt: skip
    assert line == "| PCGrad | 2 | 9,876 | 1,234 | 2,469 | 0.50 |"
    assert {text.count("|") for text in [*head, line]} == {7}
