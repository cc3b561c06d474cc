"""The site: every public name is on an API page, docstrings become Markdown, the build is clean."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hig
import hig.arguments
import hig.conflictfree
import hig.errors
import hig.testing

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "module"),
    [
        ("index", hig),
        ("conflictfree", hig.conflictfree),
        ("testing", hig.testing),
        ("files", hig.files),
        ("arguments", hig.arguments),
        ("arguments", hig.errors),
    ],
)
def test_every_public_name_is_on_its_page_once(page, module):
    text = (ROOT / "docs" / "api" / f"{page}.md").read_text(encoding="utf-8")
    found = re.findall(rf"^::: {re.escape(module.__name__)}\.(\w+)$", text, re.M)
    elsewhere = set() if module is hig else set(hig.__all__)
    documented = {name for name in module.__all__ if callable(getattr(module, name))}
    assert sorted(found) == sorted(documented - elsewhere)


def converted(text, monkeypatch):
    pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(ROOT / "docs")
    from docstrings import markdown

    return markdown(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r":math:`J^\kappa g` of ``x``", r"$J^\kappa g$ of `x`"),
        ("see :class:`~hig.StepReport`, :func:`rollout`", "see `StepReport`, `rollout`"),
        ("It is\n\n.. math::\n    a \\\\\n    b\n\nthen", "It is\n\n\n$$\na \\\\\nb\n$$\n\nthen"),
        ("Example::\n\n    a = 1\n\n    b()\n", "*Example*\n\n```python\na = 1\n\nb()\n```"),
        ("As in::\n\n    a()\n\nand so on", "As in:\n\n```python\na()\n```\n\nand so on"),
        ("Args:\n    x: a number, as ``T::`` is.", "Args:\n    x: a number, as `T::` is."),
    ],
)
def test_docstrings_become_markdown(text, expected, monkeypatch):
    assert converted(text, monkeypatch) == expected


def test_no_restructured_text_is_left(monkeypatch):
    for module in (hig, hig.conflictfree, hig.testing):
        for name in module.__all__:
            text = converted(inspect.getdoc(getattr(module, name)), monkeypatch)
            assert not re.search(r"::\n|:\w+:`|(?<!`)``\w|^ *\.\. \w", text, re.M), name


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    docs = ROOT / "docs"
    assert listed == {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search("^WARNING", done.stderr, re.M)
    page = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert 'id="hig.HIG.step"' in page
    assert "arithmatex" in page
    assert (tmp_path / "images" / "toy_saturation.png").exists()
    assert not list(tmp_path.glob("*.py"))
