"""What is shipped: the library alone, typed, with bounds for everything that it is tested with."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import hig

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_library_needs_torch_and_numpy_alone():
    assert [re.match(r"\w+", each)[0] for each in PROJECT["dependencies"]] == ["torch", "numpy"]
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["hig"]
    assert (ROOT / "hig" / "py.typed").exists()


def test_the_wheel_holds_the_library_alone(tmp_path, monkeypatch):
    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        names = wheel.namelist()
        texts = [wheel.read(name).decode() for name in names if name.endswith("METADATA")]
    assert {name.split("/")[0] for name in names} == {"hig", f"hig-{hig.__version__}.dist-info"}
    assert "hig/py.typed" in names
    assert {name for name in names if name.endswith(".py")} == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "hig").rglob("*.py")
    }
    assert "Classifier: Typing :: Typed" in texts[0]


def test_every_dependency_has_a_lower_bound_that_is_tested():
    command = [sys.executable, ".ci/lower_bounds.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = {re.split(r"\[|==", line)[0] for line in done.stdout.splitlines()}
    named = [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    assert found == {re.match(r"[\w-]+", each)[0] for each in named} - {"hig"}
    assert "torch==2.11\n" in done.stdout
    assert ".ci/lower_bounds.py" in read("Makefile")
    assert "`make lower-bounds`" in read("README.md")


def test_extras_are_named_in_the_readme():
    text = read("README.md").split("## Installation")[1]
    assert [extra for extra in EXTRAS if f"`{extra}`" not in text] == []


def test_versions_agree():
    assert f"version: {hig.__version__}\n" in read("CITATION.cff")
    assert f"## {hig.__version__}" in read("CHANGELOG.md")


def test_the_licence_is_the_same_everywhere():
    assert read("LICENSE").startswith("MIT License")
    assert PROJECT["license"] == "MIT"
    assert "license: MIT" in read("CITATION.cff")


def test_both_publications_are_cited():
    for number in ("2203.10131", "2408.11104"):
        assert f"arXiv:{number}" in read("CITATION.cff")
        assert number in read("README.md")
