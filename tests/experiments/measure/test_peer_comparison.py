import torch

from experiments._measure import peer_comparison
from experiments._measure.peer_comparison import PEER_PROBLEMS, compare, peer_table
from experiments._measure.peers import GRAM, STEP, PeerCase
from experiments._methods.regression import Regression

TINY = Regression(widths=(3, 6, 2), train_size=8)


class OwnCases(peer_comparison.PeerCases):
    """Our own, and one that is wrong by a half."""

    def cases(self):
        def half():
            gram = self.gram(self.problem)
            return lambda: 1.5 * gram()

        own = [case for case in super().cases() if case.case.startswith("hig")]
        return [*own, PeerCase(GRAM, "another", half, "too much of it")]


def test_rows_have_time_and_error_relative_to_ours(monkeypatch):
    monkeypatch.setattr(peer_comparison, "PeerCases", OwnCases)
    rows = compare(TINY, 8, rounds=3, device="cpu", clock="processor", patience=60.0)
    assert all(row["rounds"] == 3 for row in rows)
    assert all(row["min_ms"] <= row["median_ms"] <= row["max_ms"] for row in rows)
    assert [row["of_hig"] for row in rows if row["quantity"] == STEP] == [1]
    (*own, other) = rows
    assert abs(other["error"] - 0.5) < 1e-5
    assert max(row["error"] for row in own) < 2e-3
    assert other["of_hig"] != 1


def test_table_has_a_line_for_each_row():
    row = {
        "quantity": GRAM, "case": "another", "rounds": 3, "median_ms": 12.34, "min_ms": 11.0,
        "max_ms": 14.0, "of_hig": 2.345, "error": 3e-7, "note": "dense",
    }  # fmt: skip
    *head, line = peer_table([row]).splitlines()
    assert line == "| Gram matrix | another | 12.3 | 11.0 – 14.0 | 2.35 | 3e-07 | dense |"
    assert {text.count("|") for text in [*head, line]} == {8}


def test_every_problem_has_a_target_like_its_prediction():
    for make in PEER_PROBLEMS.values():
        problem = make()
        train, _ = problem.data(torch.Generator().manual_seed(0))
        batch = {key: value[:2].float() for key, value in train.items()}
        assert problem.predict(problem.network(), batch).shape == batch["target"].shape
        assert problem.settings["lm"].batch_size > 0
