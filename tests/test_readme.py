"""Every Python snippet of README and pages runs, in the order in which it is read."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

import hig

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page):
    """The page below docs/, or below the root of the repository."""
    return page.relative_to(ROOT).as_posix().removeprefix("docs/")


def snippets_of(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


WITH_SNIPPETS = [page for page in PAGES if snippets_of(page)]


def test_snippets_run_and_train(capsys):
    snippets = snippets_of(README)
    assert len(snippets) == 2
    torch.manual_seed(0)
    names = {}
    for snippet in snippets:
        exec(compile(snippet, str(README), "exec"), names)
        if len(names.get("trained", "")) == 0:
            names["trained"] = capsys.readouterr().out
    assert float(names["trained"].split()[0]) < 1e-6
    assert "engine layerwise" in names["trained"]
    assert all(parameter.grad is not None for parameter in names["network"].parameters())


def test_the_table_of_problems_and_methods_is_that_of_the_scripts():
    text = README.read_text(encoding="utf-8").split("## Problems and methods")[1]
    head, *rows = re.findall(r"^\| ?(.*) \|$", text.split("## Results")[0], re.M)
    notes = dict(re.findall(r"^([¹²³]) (.*)$", text, re.M))
    columns = [re.findall(r"`(\w+)`", notes.get(c.strip()[-1:], c)) for c in head.split("|")[1:]]
    listed = {}
    for row in rows:
        name, *cells = row.split("|")
        methods = {
            method
            for cell, column in zip(cells, columns, strict=True)
            for method in (column if "●" in cell else re.findall(r"`(\w+)`", cell))
        }
        listed |= dict.fromkeys(re.findall(r"`([\w/]+)`", name), methods)
    found = {}
    for path in (ROOT / "experiments").rglob("submit_*.py"):
        folder = path.parent.relative_to(ROOT / "experiments").as_posix()
        found.setdefault(folder, set()).add(path.stem.removeprefix("submit_"))
    assert listed == found


# Results that the snippets of a page must reach, beyond running.
REACHED = {
    "api/index.md": lambda names: (
        names["results"]["loss"] == names["diagnosis"].loss
        and names["final"].shape == (32, 2)
        and torch.equal(names["x"].grad, torch.full((4, 3), 2.0))
        and names["multi"].smallest_cosine > 0
    ),
    "api/conflictfree.md": lambda names: (
        names["operator"].report.smallest_cosine > 0
        and names["alternating"].operator.all_initialized
    ),
    "api/testing.md": lambda names: names["report"].passed,
    "distributed.md": lambda names: names["optimizer"].report.engine == "layerwise",
    "physics_informed.md": lambda names: float(names["error"]) < 1e-5,
    "several_losses.md": lambda names: names["operator"].report.smallest_cosine > 0,
    "choosing.md": lambda names: names["unseen"] > 0.4,
    "CONTRIBUTING.md": lambda names: (
        names["results"]["test_loss"][-1] < 0.1 and names["history"][-1] < 0.1 * names["history"][0]
    ),
}


# Nothing is asked of what a page finds after so many steps: here it takes fewer.
SHORTER = {"settings.md": ("islice(batches, 100)", "islice(batches, 15)")}


def shortened(page, snippets):
    """The snippets with short trainings."""
    long, short = SHORTER.get(name_of(page), ("", ""))
    assert not long or sum(snippet.count(long) for snippet in snippets) == 1
    return [snippet.replace(long, short) if long else snippet for snippet in snippets]


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
def test_snippets_of_a_page_run(page):
    torch.manual_seed(0)
    names = {"__name__": "page"}
    sys.modules["page"] = types.ModuleType("page")  # where dataclasses look for annotations
    for snippet in shortened(page, snippets_of(page)):
        exec(compile(snippet, str(page), "exec", dont_inherit=True), names)
    assert REACHED.get(name_of(page), bool)(names)


def test_what_pages_must_reach_is_that_of_pages():
    assert REACHED.keys() <= {name_of(page) for page in WITH_SNIPPETS}


def test_the_simulator_in_jax():
    pytest.importorskip("jax")
    page = ROOT / "docs" / "own_simulator.md"
    (snippet,) = re.findall(r"```py\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    names = {"hig": hig}
    exec(compile(snippet, str(page), "exec"), names)
    report = hig.testing.check_simulator(names["through_jax"], torch.randn(4, 20))
    assert report.passed, report
    assert report.passes == 2


def is_command(module):
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_commands_and_links_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert is_command(module), module
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", text, re.M) + re.findall(r"`make ([\w-]+)`", text):
        assert f"\n{target}:" in makefile, target
    for link, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), f"{link}#{anchor}"


def anchors_of(page):
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_there_is_something_on_every_page():
    assert len(PAGES) > 10
    for page in (README, *PAGES):
        text = page.read_text(encoding="utf-8")
        assert len(text.split()) > 50 or "\n::: hig." in text, page
