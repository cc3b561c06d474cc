import numpy as np
import pytest
import torch

import hig
from experiments import scaling
from experiments._measure.scaling_cases import dense_case, field_case
from experiments._measure.scaling_point import STEPS, build, measure
from experiments._measure.unet import UNet
from experiments._provenance import machine

FIXED = {"rows": 8, "parameters": 1000, "samples": 2}


@pytest.mark.parametrize("parameters", [10_000, 123_456, 1_000_000])
def test_dense_networks_have_the_wished_size(parameters):
    case = dense_case(512, parameters, "cpu")
    found = sum(p.numel() for p in case.network.parameters())
    assert found == pytest.approx(parameters, rel=0.02)
    loss, prediction = case.closure()
    assert prediction.numel() == case.rows == 512
    assert loss.requires_grad and torch.isfinite(loss)


def test_rows_that_do_not_make_whole_samples():
    with pytest.raises(ValueError, match="rows must be a multiple of 4, got 6; try 24"):
        dense_case(6, 100, "cpu")


def test_the_fields_diffuse():
    case = field_case(2, "cpu")
    loss, prediction = case.closure()
    assert prediction.shape == (2, 1, 64, 64)
    assert prediction.numel() == case.rows and loss.requires_grad
    found = prediction.detach()
    rough = found - found.mean((-2, -1), keepdim=True)
    steps = (rough - rough.roll(1, -1)).norm() / rough.norm()
    assert float(steps) < 0.8  # of white noise: 1.4


def test_unet_keeps_shapes_and_is_periodic():
    torch.manual_seed(0)
    network = UNet(2, 4)
    fields = torch.randn(3, 2, 8, 12)
    found = network(fields)
    assert found.shape == fields.shape
    shifted = network(fields.roll(4, -1))  # by whole cells of the coarsest resolution
    torch.testing.assert_close(shifted, found.roll(4, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", STEPS)
def test_a_point(method):
    case = build("rows", 16, "cpu", FIXED)
    found = measure(case, method, 2, "cpu")
    assert found["rows"] == 16
    assert found["columns"] == pytest.approx(1000, rel=0.05)
    assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0


def test_the_other_axis_stays():
    assert build("parameters", 1000, "cpu", FIXED).rows == 8
    assert build("fields", 1, "cpu", FIXED).rows == 4096
    case = build("outputs", 64, "cpu", FIXED)
    assert case.rows == 128
    assert case.closure()[1].shape == (2, 1, 8, 8)


@pytest.mark.parametrize(("outputs", "near"), [(4, 16), (36, 64), (60, 64), (1000, 1024)])
def test_outputs_that_make_no_field(outputs, near, capsys):
    with pytest.raises(SystemExit):
        scaling.main(["outputs", "--sizes", str(outputs)])
    assert f"multiple of four, got {outputs}; try {near}" in capsys.readouterr().err


def test_sketched_and_exact_steps_of_growing_fields(tmp_path, monkeypatch):
    monkeypatch.setitem(scaling.SIZES, "outputs", (16, 64))
    monkeypatch.setitem(scaling.LARGEST, ("outputs", "hig"), 16)
    line = ["outputs", "--rounds", "1", "--threads", "1", "--samples", "2", "--sketch", "3"]
    scaling.main([*line, "--clock", "processor", "--out", str(tmp_path)])
    found = {path.stem: hig.load_results(path) for path in tmp_path.glob("*.pickle")}
    sizes = {name: results["size"].tolist() for name, results in found.items()}
    assert sizes == {
        "scaling_outputs_hig": [16],
        "scaling_outputs_sketch": [16, 64],
        "scaling_outputs_adam": [16, 64],
    }
    sketched = found["scaling_outputs_sketch"]
    assert sketched["rows"].tolist() == [32, 128]
    assert (sketched["label"], sketched["clock"]) == ("HIG, sketch", "processor")
    assert sketched["fixed"]["sketch"] == 3 and sketched["fixed"]["samples"] == 2


def test_result_files_and_the_command_to_draw_them(tmp_path, capsys):
    line = ["rows", "--sizes", "16", "8", "--rounds", "1", "--parameters", "500", "--threads", "1"]
    scaling.main([*line, "--methods", "hig", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    (path,) = tmp_path.glob("*.pickle")
    results = hig.load_results(path)
    assert path.name == "scaling_rows_hig.pickle"
    assert (results["axis"], results["label"]) == ("rows", "HIG")
    assert results["machine"].keys() == machine("cpu").keys()
    assert results["origin"].keys() == {"command", "revision", "started"}
    assert results["size"].tolist() == results["rows"].tolist() == [8, 16]
    assert np.all(results["seconds_per_step"] > 0) and np.all(results["peak_bytes"] >= 0)
    assert "8 rows: HIG" in printed and f"python -m plots.scaling {path}" in printed
