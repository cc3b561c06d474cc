from pathlib import Path

from experiments import derivatives
from experiments._measure.derivative_cases import operations
from experiments._measure.derivatives import WAYS

ROOT = Path(__file__).parents[2]


def test_the_table_has_what_is_wrong_or_missing(capsys):
    derivatives.main(["tanh", "hardsigmoid", "cholesky_inverse", "--reasons"])
    printed = capsys.readouterr().out
    assert "3 operations" in printed
    assert "| one backward pass | 3 | – | – |" in printed
    assert "| forward mode (LinearStep) | 2 | – | cholesky_inverse 62% |" in printed
    assert "(curvature, Lanczos, jet) | 2 | 1 | – |" in printed
    assert f"\nMissing, {WAYS['double']}: hardsigmoid\n" in printed
    assert "Missing, one backward pass" not in printed
    assert "hardsigmoid, double: derivative for aten::hardsigmoid_backward" in printed


def test_errors_above_one_are_called_so(capsys):
    derivatives.main(["cdist"])
    assert "(rollout) | 0 | – | cdist >100% |" in capsys.readouterr().out


def test_the_page_has_each_way_and_operations_that_exist():
    page = (ROOT / "docs/own_simulator.md").read_text(encoding="utf-8")
    section = page.split("## Wrong derivatives in torch")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    assert {row[0] for row in rows[2:]} == set(WAYS.values())
    total = len(operations())
    assert f"Derivatives of {total} operations" in section
    for _, right, absent, listed in rows[2:]:
        wrong = [] if listed == "–" else [entry.rsplit(" ", 1)[0] for entry in listed.split(", ")]
        assert set(wrong) <= set(operations())
        assert int(right) + int(absent.replace("–", "0")) + len(wrong) == total
