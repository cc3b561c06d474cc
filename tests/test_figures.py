"""Every figure of the pages is one that `make figures` makes, and is shown somewhere."""

import re
from pathlib import Path

from plots import study

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
KEPT = ROOT / "study" / "desk"


def test_every_figure_is_made_by_one_command():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = set(re.findall(r"--out docs/images/([\w.]+)", text))
    assert {path.name for path in IMAGES.glob("*.png")} == made


def test_what_it_makes_them_from_is_in_the_repository():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    patterns = re.findall(r"(study/\S+\.pickle)", text)
    assert patterns
    for pattern in patterns:
        assert list(ROOT.glob(pattern)), pattern


def test_the_figures_of_the_study_are_those_of_its_files():
    there = {path.stem for path in (IMAGES / "study").glob("*.png")}
    assert there and there == set(study.figures(KEPT))


def test_every_figure_is_shown_on_a_page():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {
        (page.parent / place).resolve()
        for page in pages
        for place in re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", page.read_text(encoding="utf-8"))
    }
    assert {path.resolve() for path in IMAGES.rglob("*.png")} == shown
