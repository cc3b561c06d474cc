"""Every Python snippet of README and pages runs, in the order in which it is read."""

import re
from pathlib import Path

import pytest
import torch

import hig

README = Path(__file__).parent.parent / "README.md"


def test_snippets_run_and_train(capsys):
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len(snippets) == 5
    torch.manual_seed(0)
    names = {}
    for snippet in snippets:
        exec(compile(snippet, str(README), "exec"), names)
        if len(names.get("trained", "")) == 0:
            names["trained"] = capsys.readouterr().out
    assert float(names["trained"].split()[0]) < 1e-6
    assert "engine layerwise" in names["trained"]
    assert names["direction"].shape == (200,)
    assert names["operator"].report.smallest_cosine > 0
    assert names["multi"].report.step_size > 0


def test_snippets_of_the_pages_run():
    torch.manual_seed(0)
    names = {}
    for page in sorted((README.parent / "docs").glob("*.md")):
        for snippet in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            exec(compile(snippet, str(page), "exec"), names)
    assert float(names["error"]) < 1e-5
    assert names["optimizer"].report.engine == "layerwise"
    assert names["operator"].report.smallest_cosine > 0
    assert names["alternating"].operator.all_initialized
    assert len(names["multi"].report.parts) == 1
    assert names["black_box_report"].passed
    assert not names["black_box_report"].batched


def test_the_simulator_in_jax():
    pytest.importorskip("jax")
    page = README.parent / "docs" / "own_simulator.md"
    (snippet,) = re.findall(r"```py\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    names = {"hig": hig}
    exec(compile(snippet, str(page), "exec"), names)
    report = hig.testing.check_simulator(names["through_jax"], torch.randn(4, 20))
    assert report.passed, report
    assert report.passes == 2


def is_command(module):
    path = README.parent / module.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def test_commands_of_the_readme_exist():
    text = README.read_text(encoding="utf-8")
    root = README.parent
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert is_command(module), module
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, re.M):
        assert f"\n{target}:" in makefile, target


def test_links_lead_to_pages_with_something_on_them():
    root = README.parent
    pages = [README, *sorted((root / "docs").glob("*.md"))]
    assert len(pages) > 3
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert len(text.split()) > 50, page
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), f"{link} in {page.name}"


def test_commands_of_the_pages_exist():
    root = README.parent
    for page in (root / "docs").glob("*.md"):
        for module in re.findall(r"python -m ([\w.]+)", page.read_text(encoding="utf-8")):
            assert is_command(module), f"{module} in {page.name}"
