"""Times of Jacobians by each way, and the table of what is a layer."""

import json
from pathlib import Path

import pytest
import torch

import hig
from experiments import jacobians
from experiments._measure.engine_networks import MAKERS, make
from plots import jacobians as figure

ROOT = Path(__file__).parents[2]


def test_table_files_and_figure(tmp_path, capsys):
    numbers = tmp_path / "jacobians.json"
    line = ["time_first", "fourier_operator", "--rounds", "1", "--json", str(numbers)]
    jacobians.main([*line, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    cases = json.loads(numbers.read_text())["cases"]
    assert list(cases) == ["time_first", "fourier_operator"]
    by_way = {row["way"]: row for row in cases["time_first"]}
    assert {"layers", "rows", "torch.func", "Adam's step"} <= set(by_way)
    assert float(by_way["layers"]["error"]) < 1e-5
    assert by_way["rows"]["error"] == "0e+00" and by_way["Adam's step"]["of_adam"] == 1
    assert (by_way["layers"]["rows"], by_way["layers"]["columns"]) == (240, 1250)
    assert "torch.func" not in {row["way"] for row in cases["fourier_operator"]}
    assert "| linear layers, time first | 240 × 1250 | layers |" in printed
    file, image = tmp_path / "jacobians.pickle", tmp_path / "jacobians.png"
    assert list(hig.load_results(file)["jacobians"]) == list(cases)
    assert figure.main([str(file), "--out", str(image)]) == 0
    assert image.stat().st_size > 10_000


@pytest.mark.parametrize("name", MAKERS)
def test_all_weights_of_a_case_are_layers(name):
    case = make(name)
    optimizer = hig.HIG(case.network.parameters(), lr=1e-6, step_rule="fixed", rcond=1e-3)
    optimizer.step(case.closure)
    assert optimizer.report.engine == "layerwise"


@pytest.mark.parametrize("name", ["pinn", "pinn_burgers"])
def test_residuals_at_one_point_are_those_of_all(name):
    case = make(name)
    assert case.residual is not None
    single = torch.stack([case.residual(case.network, x) for x in case.inputs[:5]])
    assert torch.allclose(case.prediction()[:5], single, atol=1e-12)


def test_the_page_has_the_table_of_layers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs/jacobian.md").read_text(encoding="utf-8"), encoding="utf-8")
    before = page.read_text(encoding="utf-8")
    jacobians.main(["--into", str(page)])
    assert page.read_text(encoding="utf-8") == before
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="has no marks"):
        jacobians.main(["--into", str(page)])
