"""The comparison in one table, and the pages that have it."""

import pytest

from experiments import __main__ as command
from experiments._saved.result_files import ResultFileError
from experiments._study.keep import keep
from experiments._study.kept import read_kept
from experiments._study.summary import BEGIN, END, filled, summary
from tests.experiments.study.made import Made


@pytest.fixture
def study(tmp_path):
    """A kept study of two problems."""
    made = Made(tmp_path / "results" / "desk")
    for seed, end in enumerate((0.01, 3.04e-5, 0.02)):
        budget = {"time_budget": 60.0}
        made.run("comparison", "poisson", losses=(1, end), seed=seed, settings=budget)
        made.run("comparison", "poisson", "adam", losses=(1, 0.5), seed=seed, settings=budget)
    made.run("comparison", "poisson", "gn", losses=(1, 0.1), stopped="non-finite: loss")
    made.run("comparison", "toy", "config", losses=(1, 4e-3))
    made.run("comparison", "toy", "mconfig", losses=(1, 3e-3))
    made.run("comparison", "toy", "adam", losses=(1, 2e-3))
    keep(made.folder, tmp_path / "desk")
    return tmp_path / "desk"


def lines(text):
    header, _, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines())
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def test_medians_with_the_lowest_in_bold(study):
    found = lines(summary(read_kept(study)))
    assert list(found) == ["Poisson", "toy"]
    assert found["Poisson"] == {
        "HIG": "**0.01**",
        "Gauss–Newton": "not finite",
        "Levenberg–Marquardt": "",
        "Kronecker HIG": "",
        "SOAP": "",
        "Adam": "0.5",
        "best of the others": "",
    }
    assert found["toy"]["Adam"] == "**2.0e-3**"
    assert found["toy"]["best of the others"] == "M-ConFIG 3.0e-3"


def test_a_budget_that_all_runs_have_is_shown(tmp_path):
    made = Made(tmp_path / "results" / "desk")
    made.run("comparison", "poisson", settings={"time_budget": 60.0})
    made.run("comparison", "poisson", "adam", settings={"time_budget": 60.0})
    keep(made.folder, tmp_path / "desk")
    assert list(lines(summary(read_kept(tmp_path / "desk")))) == ["Poisson, 60 s"]


def test_pages_have_it_between_their_marks(study, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    line = ["report", str(study), "--out", str(tmp_path / "results.md"), "--into", str(page)]
    assert command.main(line) == 0
    assert f"report written to {tmp_path / 'results.md'}, {page}" in capsys.readouterr().out
    text = page.read_text()
    assert text == f"# Before\n\n{BEGIN}\n\n{summary(read_kept(study))}\n\n{END}\n\nafter\n"
    assert command.main(line) == 0
    assert page.read_text() == text


@pytest.mark.parametrize(
    "text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {END}", f"{BEGIN} {BEGIN} {END}"]
)
def test_a_page_without_both_marks_stays(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ResultFileError, match=r"page\.md must have the lines"):
        filled(page, "table")


def test_a_page_without_marks_leaves_all_as_they_are(study, tmp_path, capsys):
    good, bad, results = (tmp_path / name for name in ("good.md", "bad.md", "results.md"))
    good.write_text(f"{BEGIN}{END}")
    bad.write_text("none")
    line = ["report", str(study), "--out", str(results), "--into", str(good), str(bad)]
    assert command.main(line) == 2
    assert "bad.md must have the lines" in capsys.readouterr().err
    assert good.read_text() == f"{BEGIN}{END}" and not results.exists()
