"""The tutorials run to their ends, with short trainings, and what they find is right."""

import itertools
import json
import re
import time
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
NAMES = ["oscillators", "own_simulator", "phiflow", "pinn", "quantum_dipole"]
LARGEST = 400_000  # bytes
STEPS = 25  # of each training, of hundreds in the notebooks


def cells_of(path, kind):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def text_of(cell):
    return "".join(cell["source"])


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Executes the code of a notebook with trainings of so many steps; returns its names.

    The figures that it showed are in `figures`.
    """
    ticks = itertools.count()
    monkeypatch.setattr(time, "process_time", lambda: next(ticks))  # a step takes a second
    with matplotlib.rc_context({"backend": "Agg"}):
        from matplotlib import pyplot

        figures = []

        def show():
            """As a notebook does: draw what is open, and close it."""
            for number in pyplot.get_fignums():
                figures.append(pyplot.figure(number))
                figures[-1].canvas.draw()
            pyplot.close("all")

        def execute(name, steps):
            path = ROOT / "docs" / "tutorials" / f"{name}.ipynb"
            first, *others = [text_of(cell) for cell in cells_of(path, "code")]
            first, found = re.subn(r"(?m)^seconds = \d+", f"seconds = {steps}", first)
            assert found == 1
            names = {"__name__": name, "figures": figures}
            for number, code in enumerate([first, *others]):
                exec(compile(code, f"{name}, code cell {number}", "exec"), names)
            return names

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(pyplot, "show", show)
        yield execute
        pyplot.close("all")


def improvement(history):
    """Loss before over loss after."""
    return history[0][1] / history[-1][1]


def test_a_simulator_of_ones_own(run):
    names = run("own_simulator", STEPS)
    assert improvement(names["histories"]["HIG"]) > 100
    assert improvement(names["histories"]["HIG, momentum"]) > 100
    assert improvement(names["histories"]["Adam"]) > 5
    assert improvement(names["transferred"]) > 5
    assert names["optimizer"].report.engine == "layerwise"
    assert names["black_box_report"].passed
    assert not names["black_box_report"].batched
    assert len(names["figures"]) == 3


def test_oscillators(run):
    names = run("oscillators", STEPS)
    assert improvement(names["histories"]["HIG"]) > 10
    assert improvement(names["histories"]["Adam"]) > 2
    assert names["optimizers"]["HIG"].report.engine == "layerwise"
    assert names["diagnosis"].directions[0].name == "half-inverse"
    assert len(names["figures"]) == 3


def test_quantum_dipole(run):
    names = run("quantum_dipole", 35)
    assert improvement(names["histories"]["HIG"]) > 100
    assert names["optimizer"].report.engine == "layerwise"
    assert len(names["figures"]) == 3


def test_phiflow(run):
    names = run("phiflow", 40)
    assert names["phiflow_report"].passed
    assert names["phiflow_report"].batched
    for name in ("Adam", "Kronecker HIG"):
        assert improvement(names["histories"][name]) > 2, name
    # What the notebook says of the two spectra.
    flat, steep = (names[key].singular_values for key in ("poisson", "oscillators"))
    assert flat[len(flat) // 2] / flat[0] > 1e-2 > steep[len(steep) // 2] / steep[0]
    assert len(names["figures"]) == 3


def test_physics_informed(run):
    names = run("pinn", STEPS)
    assert improvement(names["histories"]["Levenberg–Marquardt"]) > 2
    assert names["optimizers"][0].report.engine == "layerwise"
    _, (_, config) = names["watched"][-1]
    assert config.min() > 0
    assert config.max() - config.min() < 1e-6
    assert len(names["figures"]) == 3


def test_all_are_here():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_in_the_file(path):
    """A title first, cells executed in order without errors, figures, nothing of a machine."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert text_of(notebook["cells"][0]).startswith("# ")
    code = cells_of(path, "code")
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert not any(cell["metadata"] for cell in notebook["cells"])
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert 2 <= sum("image/png" in output.get("data", {}) for output in outputs) <= 4
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    text = "\n".join(text_of(cell) for cell in cells_of(path, "markdown"))
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert links
    for link in links:
        assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_navigation_has_it(path):
    assert f"tutorials/{path.name}" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
